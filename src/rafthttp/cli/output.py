"""What commands print, and the error that ends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from rafthttp import RaftHttpError
from rafthttp.kv.client import ServiceError
from rafthttp.kv.files import Transfer

# How often a line of progress appears where there is no terminal to draw a bar on.
_LINE_SECONDS: Final = 2.0


class CommandFailedError(RaftHttpError):
    """A command cannot do what it was asked; the text is one line for people.

    Attributes:
        code: the process's exit code.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


def print_error(text: str) -> None:
    """One line on stderr, whatever the text is."""
    line = " ".join(text.split()) or "unknown error"
    print(f"rafthttp: {line}", file=sys.stderr)  # noqa: T201 - the command line's output


def out(text: str = "") -> None:
    """One line on stdout, at once."""
    print(text, flush=True)  # noqa: T201 - the command line's output


def note(text: str) -> None:
    """One line on stderr that is no error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line's output


def read_token(path: Path | None) -> str | None:
    """The token of a file, without the white space around it.

    Raises:
        CommandFailedError: it cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        token = path.read_text("utf-8").strip()
    except OSError as error:
        raise CommandFailedError(f"cannot read the token file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandFailedError(f"the token file {path} is not text") from None
    if not token:
        raise CommandFailedError(f"the token file {path} is empty")
    return token


def explained(error: ServiceError, token_file: Path | None) -> str:
    """What the service said; for a refused token, what to do about it."""
    if error.status != HTTPStatus.UNAUTHORIZED:
        return str(error)
    if token_file is None:
        return "the service asks for a token: give --token-file FILE"
    return f"the token is wrong: the service does not accept that of {token_file}"


class TransferProgress:
    """A bar on a terminal, a line every two seconds elsewhere."""

    def __init__(self, verb: str, console: Console) -> None:
        self._verb = verb
        self._progress: Progress | None = None
        self._task: TaskID
        self._next_line = time.monotonic() + _LINE_SECONDS
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("files"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task(verb, total=None)

    def __call__(self, transfer: Transfer) -> None:
        """Show how far it is."""
        done = transfer.files + len(transfer.failed)
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=transfer.files_total)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            note(f"{self._verb}: {done} of {transfer.files_total} files")

    @contextmanager
    def shown(self) -> Generator[None]:
        """Draw while the block runs."""
        if self._progress is None:
            yield
            return
        with self._progress:
            yield


def size_text(size_bytes: int) -> str:
    """A size for people."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
