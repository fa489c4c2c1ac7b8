"""`rafthttp kv`: keys and values through any node."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console

from rafthttp.cli.options import DEFAULT_URL, Timeout, TokenFile, Urls
from rafthttp.cli.output import (
    CommandFailedError,
    TransferProgress,
    explained,
    note,
    out,
    read_token,
    size_text,
)
from rafthttp.cli.tls import client_context, with_tls
from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.commands import CommandError
from rafthttp.kv.files import JOBS_DEFAULT, Transfer, export_tree, import_tree

app: Final = typer.Typer(help="Read and write keys.", no_args_is_help=True)

# How many failed files are named; the rest is counted.
_NAMED_MAX: Final = 5

_T = TypeVar("_T")
Key = Annotated[str, typer.Argument(metavar="KEY", help="Any text; slashes are fine.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The tree's root.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Stands before each file's path in its key.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=256, help="Files under way at once.")]
Flat = Annotated[
    bool, typer.Option("--flat", help="One directory; each file's name is its key, %-encoded.")
]
Stale = Annotated[bool, typer.Option("--stale", help="Read the asked node's own state.")]
OnlyUrls = Annotated[
    bool, typer.Option("--only-urls", help="Ask no other nodes than those given by --url.")
]


@app.command()
@with_tls
def get(
    key: Key,
    url: Urls = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    stale: Stale = False,
) -> None:
    """Write a value to stdout, as it is."""
    value = _with_client(url, token_file, timeout, lambda client: client.get(key, stale=stale))
    if value is None:
        raise CommandFailedError(f"there is no key {key!r}")
    sys.stdout.buffer.write(value)
    sys.stdout.buffer.flush()


@app.command()
@with_tls
def put(
    key: Key,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", help="The value; stdin where it is left out.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read the value from a file.")] = None,
    url: Urls = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Store a value."""
    if value is not None and file is not None:
        raise CommandFailedError("give VALUE or --file, not both")
    if value is not None:
        data = value.encode("utf-8", "surrogateescape")
    elif file is not None:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise CommandFailedError(f"cannot read {file}: {error.strerror}") from None
    else:
        data = sys.stdin.buffer.read()
    _with_client(url, token_file, timeout, lambda client: client.put(key, data))


@app.command()
@with_tls
def delete(
    key: Key, url: Urls = None, token_file: TokenFile = None, timeout: Timeout = 10.0
) -> None:
    """Delete a key; it need not be there."""
    _with_client(url, token_file, timeout, lambda client: client.delete(key))


@app.command("import")
@with_tls
def import_(
    directory: Directory,
    url: Urls = None,
    token_file: TokenFile = None,
    prefix: Prefix = "",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Leave out files and directories of this name; repeat it."),
    ] = None,
    flat: Flat = False,
    jobs: Jobs = JOBS_DEFAULT,
    timeout: Timeout = 60.0,
) -> None:
    """Store every file of a directory tree; goes on through other nodes when one fails."""
    progress = TransferProgress("import", Console(stderr=True))

    async def run(client: KVClient) -> Transfer:
        return await import_tree(
            client,
            directory,
            prefix=prefix,
            exclude=exclude or (),
            flat=flat,
            jobs=jobs,
            on_progress=progress,
        )

    with progress.shown():
        transfer = _with_client(url, token_file, timeout, run)
    _report("stored", transfer)


@app.command("export")
@with_tls
def export(
    directory: Directory,
    url: Urls = None,
    token_file: TokenFile = None,
    prefix: Prefix = "",
    flat: Flat = False,
    jobs: Jobs = JOBS_DEFAULT,
    timeout: Timeout = 60.0,
    stale: Stale = False,
    only_urls: OnlyUrls = False,
) -> None:
    """Write every key as a file below a directory, and check it."""
    progress = TransferProgress("export", Console(stderr=True))

    async def run(client: KVClient) -> Transfer:
        return await export_tree(
            client,
            directory,
            prefix=prefix,
            stale=stale,
            flat=flat,
            jobs=jobs,
            on_progress=progress,
        )

    with progress.shown():
        transfer = _with_client(url, token_file, timeout, run, discover=not only_urls)
    _report("wrote and checked", transfer)


def _report(verb: str, transfer: Transfer) -> None:
    plural = "" if transfer.files == 1 else "s"
    out(f"{verb} {transfer.files} file{plural}, {size_text(transfer.size)}")
    for name, reason in transfer.failed[:_NAMED_MAX]:
        note(f"{name}: {reason}")
    if transfer.failed:
        raise CommandFailedError(f"{len(transfer.failed)} of {transfer.files_total} files failed")


def _with_client(
    urls: list[str] | None,
    token_file: Path | None,
    timeout: float,
    call: Callable[[KVClient], Awaitable[_T]],
    *,
    discover: bool = True,
) -> _T:
    if not timeout > 0:
        raise CommandFailedError(f"--timeout is {timeout:g}; it must be above 0")
    token = read_token(token_file)

    async def run() -> _T:
        async with KVClient(
            urls or [DEFAULT_URL],
            token=token,
            timeout=timeout,
            ssl=client_context(),
            discover=discover,
        ) as client:
            return await call(client)

    try:
        return asyncio.run(run())
    except ServiceError as error:
        unknown = error.outcome.value == "unknown"
        tail = " (it may have been done all the same)" if unknown else ""
        raise CommandFailedError(f"{explained(error, token_file)}{tail}") from None
    except (CommandError, ValueError) as error:
        raise CommandFailedError(str(error)) from None
