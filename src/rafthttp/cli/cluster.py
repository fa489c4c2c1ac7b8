"""`rafthttp cluster`: several `rafthttp serve` processes on this machine, watched and stopped.

Knows processes and the nodes' URLs; everything a node does is its own process's matter.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from rafthttp.cli.output import CommandFailedError, note, out

_HOST: Final = "127.0.0.1"
_NODES_MAX: Final = 9
# Three interpreters start on two cores in two seconds; a busy machine takes several times that.
_READY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
# From the signal to the last process killed; a node that is well stops in a tenth of it.
_STOP_SECONDS: Final = 1.5
_LOG_LINES: Final = 5
# Beside the nodes' directories: whose addresses their data are of.
_MADE_FOR: Final = "cluster.json"
_IN_USE: Final = os.strerror(errno.EADDRINUSE).lower()


@dataclass(slots=True)
class _Child:
    """One node's process."""

    node_id: str
    url: str
    log: Path
    process: asyncio.subprocess.Process

    def last_words(self) -> str:
        """What it logged last."""
        return "\n".join(f"  {self.node_id}: {line}" for line in self._log_lines()[-_LOG_LINES:])

    def last_line(self) -> str:
        """The line it ended with."""
        lines = self._log_lines() or ["it said nothing"]
        return lines[-1].removeprefix("rafthttp: ")

    def _log_lines(self) -> list[str]:
        try:
            return self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []

    def end(self) -> str:
        """How it ended, for people."""
        code = self.process.returncode or 0
        if code >= 0:
            return f"{self.node_id} ended with exit code {code}"
        return f"{self.node_id} was killed by {signal.Signals(-code).name}"


def cluster(
    nodes: Annotated[int, typer.Option(min=1, max=_NODES_MAX, help="How many nodes.")] = 3,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The first node's port; the others follow.")
    ] = 8101,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the data there. [default: gone at the end]"),
    ] = None,
) -> None:
    """Start a cluster on this machine, one process and one port a node, until Ctrl-C."""
    if port + nodes - 1 > 65535:
        raise CommandFailedError(f"there are no {nodes} ports from {port} on")
    if data_dir is not None:
        _check_made_for(data_dir, nodes, port)
    asyncio.run(_run(nodes, port, data_dir))


def _check_made_for(data_dir: Path, nodes: int, port: int) -> None:
    """The addresses are part of the data: elsewhere the nodes would seek each other in vain."""
    try:
        made: dict[str, Any] = json.loads((data_dir / _MADE_FOR).read_text("utf-8"))
        first, most = int(made["port"]), int(made["nodes"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing is there yet, or nothing that can be read: the nodes tell
    if port != first:
        raise CommandFailedError(
            f"the data in {data_dir} are of a cluster on the ports from {first} on:"
            f" give --port {first}, or another --data-dir"
        )
    if nodes < most:
        raise CommandFailedError(
            f"the data in {data_dir} are of a cluster of {most}: give --nodes {most}"
        )


def _note_made_for(data_dir: Path, nodes: int, port: int) -> None:
    try:
        (data_dir / _MADE_FOR).write_text(json.dumps({"port": port, "nodes": nodes}) + "\n")
    except OSError as error:
        raise CommandFailedError(f"cannot write to {data_dir}: {error.strerror}") from None


async def _run(nodes: int, port: int, data_dir: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        if data_dir is None:
            data_dir = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="rafthttp-", ignore_cleanup_errors=True)
                )
            )
        children = await stack.enter_async_context(_started(nodes, port, data_dir))
        stopped = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(_ready(children))
        watch: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                leader = ready.result()
                _note_made_for(data_dir, nodes, port)
                _introduce(children, leader)
                watch = asyncio.create_task(_watch(children))
                await asyncio.wait({watch, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                out("stopping")
            elif watch is not None:
                watch.result()
        finally:
            tasks: list[asyncio.Task[Any]] = [stopped, ready, *([watch] if watch else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _started(nodes: int, port: int, data_dir: Path) -> AsyncGenerator[list[_Child]]:
    children: list[_Child] = []
    try:
        for number in range(1, nodes + 1):
            child = await _start(number, port, data_dir)
            children.append(child)  # one by one: what is started is stopped
        yield children
    finally:
        await _stop(children)


async def _start(number: int, port: int, data_dir: Path) -> _Child:
    """The first node begins the cluster; each other one joins through the one before it."""
    node_id, address = f"n{number}", f"{_HOST}:{port + number - 1}"
    entry = ["--bootstrap"] if number == 1 else ["--join", f"http://{_HOST}:{port + number - 2}"]
    log = data_dir / f"{node_id}.log"
    try:
        await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
        output = await asyncio.to_thread(log.open, "ab")
    except OSError as error:
        raise CommandFailedError(f"cannot write to {data_dir}: {error.strerror}") from None
    with output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "rafthttp", "serve", "--id", node_id, "--listen", address),
            *("--data-dir", str(data_dir / node_id), "--stop-with-stdin"),
            *entry,
            stdin=asyncio.subprocess.PIPE,  # closes with this process, however it ends
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for this process; it stops the others
        )
    return _Child(node_id, f"http://{address}", log, process)


async def _stop(children: list[_Child]) -> None:
    running = [child.process for child in children if child.process.returncode is None]
    for process in running:
        with suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await asyncio.gather(*(process.wait() for process in running))
    except TimeoutError:
        for process in running:
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in running))


async def _watch(children: list[_Child]) -> None:
    """Report each process that ends; raise when none is left."""

    async def report(child: _Child) -> None:
        await child.process.wait()
        if child.process.returncode == 0:
            out(f"{child.node_id} has left the cluster and stopped")
        else:
            note(f"{child.end()}; its last words:\n{child.last_words()}")

    await asyncio.gather(*(report(child) for child in children))
    raise CommandFailedError("no node is left")


async def _ready(children: list[_Child]) -> str:
    """Wait until all are members of one cluster; returns who leads."""
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while True:
                    leaders = {await _leader_of(client, child, len(children)) for child in children}
                    leader = leaders.pop()
                    if leader is not None and not leaders:
                        return leader
                    _check_alive(children)
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            words = "\n".join(child.last_words() for child in children)
            note(words)
            raise CommandFailedError("the nodes did not form a cluster in time") from None


def _check_alive(children: list[_Child]) -> None:
    for child in children:
        if child.process.returncode is not None:
            line = child.last_line()
            hint = "; choose another with --port (make run PORT=...)" if _IN_USE in line else ""
            raise CommandFailedError(f"{child.end()}: {line}{hint}")


async def _leader_of(client: httpx.AsyncClient, child: _Child, voters: int) -> str | None:
    """Whom this node follows, once it sees all voters."""
    try:
        status: dict[str, Any] = (await client.get(f"{child.url}/status")).json()
        if status["pid"] != child.process.pid:
            return None  # somebody else has the port; the child is about to say so
        voting = [server for server in status["servers"] if server["suffrage"] == "voter"]
        leader = status["leader"]
        return str(leader["id"]) if leader is not None and len(voting) == voters else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def _introduce(children: list[_Child], leader: str) -> None:
    out(f"{leader} leads a cluster of {len(children)}.")
    out()
    for child in children:
        out(f"  {child.node_id}  {child.url}{'  leader' if child.node_id == leader else ''}")
    first, second, third = (children[i % len(children)].url for i in range(3))
    out()
    out("Any node answers:")
    out()
    out(f"  curl -X PUT --data-binary 'hello' {second}/kv/greeting")
    out(f"  curl {third}/kv/greeting")
    out(f"  curl '{first}/kv?prefix=gr'")
    out(f"  curl {second}/status")
    out()
    out("Ctrl-C stops them.")
