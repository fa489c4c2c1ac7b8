"""`rafthttp status` and `rafthttp leave`: one node, asked for by its URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rafthttp.cli.options import TokenFile
from rafthttp.cli.output import CommandFailedError, explained, out, read_token
from rafthttp.cli.tls import client_context, with_tls
from rafthttp.kv.client import KVClient, ServiceError

Url = Annotated[str, typer.Argument(metavar="URL", help="A node, http[s]://HOST:PORT.")]


@with_tls
def status(
    url: Url,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it is.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Show what a node knows of itself and of its cluster."""
    answer = _ask(url, token_file, timeout, KVClient.status)
    if as_json:
        out(json.dumps(answer, indent=2))
        return
    console = Console(highlight=False)
    leader = answer["leader"]
    console.print(
        f"[bold]{answer['id']}[/] at {answer['address']}: {answer['state']} in term"
        f" {answer['term']}, {'no leader known' if leader is None else 'leader ' + leader['id']}"
    )
    console.print(
        f"log to {answer['last_index']}, committed to {answer['commit_index']},"
        f" applied to {answer['applied_index']}"
    )
    table = Table("id", "address", "suffrage", "", box=None, pad_edge=False)
    for server in answer["servers"]:
        leads = leader is not None and server["id"] == leader["id"]
        table.add_row(
            server["id"], server["address"], server["suffrage"], "leader" if leads else ""
        )
    console.print(table)
    if answer.get("join_error"):
        console.print(f"not joined yet: {answer['join_error']}")


@with_tls
def leave(
    url: Url,
    token_file: TokenFile = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is done.")] = 15.0,
) -> None:
    """Ask a node to leave its cluster; its process stops once it has left.

    Start it again with --join to make it a member again.
    """
    answer = _ask(url, token_file, timeout, KVClient.leave)
    out(f"{answer['id']} has left its cluster and stops")


def _ask(
    url: str,
    token_file: Path | None,
    timeout: float,
    call: Callable[[KVClient], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    token = read_token(token_file)

    async def run() -> dict[str, Any]:
        async with _client(url, token, timeout) as client:
            return await call(client)

    try:
        return asyncio.run(run())
    except ServiceError as error:
        raise CommandFailedError(explained(error, token_file)) from None


def _client(url: str, token: str | None, timeout: float) -> KVClient:
    if not timeout > 0:
        raise CommandFailedError(f"--timeout is {timeout:g}; it must be above 0")
    try:
        return KVClient([url], token=token, timeout=timeout, ssl=client_context(), discover=False)
    except ValueError as error:
        raise CommandFailedError(str(error)) from None
