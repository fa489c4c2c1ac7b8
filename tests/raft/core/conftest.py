"""The `--rewrite` flag of the dialogues."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        default=False,
        help="write what the dialogues print into their files, to be read as a diff",
    )
