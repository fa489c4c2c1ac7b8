"""The `--rewrite-go-names` flag."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-go-names",
        action="store_true",
        default=False,
        help="list the exported names of the Go modules anew (needs Go)",
    )
