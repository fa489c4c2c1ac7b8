"""`rafthttp status`, `leave` and `transfer`: one node, asked for by its URL.

`status` then asks the members that the node names what they say of themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rafthttp.cli.options import TokenFile
from rafthttp.cli.output import CommandFailedError, explained, out, read_token
from rafthttp.cli.tls import client_context, with_tls
from rafthttp.kv.client import KVClient, ServiceError

# A member that is up answers in milliseconds; one that is not should not hold up the others' lines.
_MEMBER_SECONDS: Final = 1.0
_MEMBERS_AT_ONCE: Final = 16

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
    others = asyncio.run(_ask_members(url, answer, read_token(token_file), timeout))
    _show(answer, others)


def _show(answer: dict[str, Any], others: dict[str, dict[str, Any] | str]) -> None:
    """For people: the node, then a line for each member, then what is wrong."""
    console = Console(highlight=False, soft_wrap=True)  # a line of a pipe has no width
    leader = answer["leader"]
    console.print(
        f"[bold]{escape(answer['id'])}[/] at {escape(answer['address'])}: {answer['state']} in term"
        f" {answer['term']},"
        f" {'no leader known' if leader is None else 'leader ' + escape(leader['id'])}"
    )
    console.print(
        f"log to {answer['last_index']}, committed to {answer['commit_index']},"
        f" applied to {answer['applied_index']}"
    )
    health = _health([answer, *(said for said in others.values() if not isinstance(said, str))])
    names = ("id", "address", "suffrage", "role", "log", "applied", "health")
    table = Table(*names, box=None, pad_edge=False)
    for server in answer["servers"]:
        said = answer if server["id"] == answer["id"] else others[server["id"]]
        figures = ["no answer", "", ""]
        if not isinstance(said, str):
            figures = [said["state"], str(said["last_index"]), str(said["applied_index"])]
        well = health.get(server["id"], "")
        cells = [server["id"], server["address"], server["suffrage"], *figures, well]
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for server_id, said in others.items():
        if isinstance(said, str):
            console.print(f"{escape(server_id)} does not answer: {escape(said)}")
    if answer.get("member") is False and not answer.get("join_error"):
        console.print(
            f"{escape(answer['id'])} is no member of a cluster now: started with --join it is one"
            " again"
        )
    if answer.get("join_error"):
        console.print(f"not joined yet: {escape(answer['join_error'])}")


def _health(answers: list[dict[str, Any]]) -> dict[str, str]:
    """How the leader sees each member; empty where it did not answer."""
    for answer in answers:
        if answer.get("state") == "leader" and isinstance(answer.get("health"), dict):
            return {server["id"]: _health_text(server) for server in answer["health"]["servers"]}
    return {}


def _health_text(server: dict[str, Any]) -> str:
    if server["healthy"]:
        return "healthy"
    if server["last_contact"] is None:
        return "not heard yet"
    if server["silent_for"] >= 1:
        return f"silent for {server['silent_for']:.0f} s"
    return f"{server['lag']} behind, heard {server['last_contact']:.1f} s ago"


async def _ask_members(
    url: str, answer: dict[str, Any], token: str | None, timeout: float
) -> dict[str, dict[str, Any] | str]:
    """What the other members say of themselves, or why they do not; by id."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    scheme = parts.scheme or ("http" if client_context() is None else "https")
    slots = asyncio.Semaphore(_MEMBERS_AT_ONCE)

    async def ask(server: dict[str, Any]) -> dict[str, Any] | str:
        # A prefix is the same for all, as the endpoint's path is.
        at = f"{scheme}://{server['address']}{parts.path}"
        try:
            async with slots, _client(at, token, min(timeout, _MEMBER_SECONDS)) as client:
                said = await client.status()
        except (ServiceError, CommandFailedError) as error:
            return str(error).removeprefix(f"{at}: ")
        if said["id"] != server["id"]:
            return f"{said['id']} is at {server['address']}"
        return said

    asked = [server for server in answer["servers"] if server["id"] != answer["id"]]
    said = await asyncio.gather(*map(ask, asked))
    return {server["id"]: one for server, one in zip(asked, said, strict=True)}


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


@with_tls
def transfer(
    url: Url,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="Who is to lead; a voter's id.")
    ] = None,
    token_file: TokenFile = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is done.")] = 10.0,
) -> None:
    """Let another voter lead: the one named, or the one that has most of the log."""
    answer = _ask(url, token_file, timeout, lambda client: client.transfer(to))
    out(f"{answer['id']} leads")


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
