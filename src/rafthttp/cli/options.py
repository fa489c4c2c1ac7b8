"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Urls = Annotated[
    list[str] | None,
    typer.Option("--url", metavar="URL", help="A node; repeat it for more. [default: port 8101]"),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="File with the shared token.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", help="Seconds for one request, tries included.")
]

DEFAULT_URL = "http://127.0.0.1:8101"
