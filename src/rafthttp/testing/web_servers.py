"""Web servers as processes, stopped by SIGTERM while clients are at every step of a handshake.

Knows the servers' command lines; a served application prints `request NAME` for each request, by
its header `X-Client`, and accepts one stream only, that of `accepted-…`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import eventually

# On asyncio's own loop, from Python 3.12 on, hypercorn waits without a bound for every connection
# before its grace begins (its issue 308).
_HYPERCORN_LOOP: Final = ("--worker-class=uvloop",) if sys.version_info >= (3, 12) else ()


def _hypercorn(*options: str) -> Callable[[int, str], list[str]]:
    return lambda port, app: ["hypercorn", *options, f"--bind=127.0.0.1:{port}", app]


COMMANDS: Final[Mapping[str, Callable[[int, str], list[str]]]] = {
    "uvicorn": lambda port, app: ["uvicorn", f"--port={port}", "--ws=websockets-sansio", app],
    # A busy machine needs some of the 5 s for the rest.
    "hypercorn": _hypercorn(*_HYPERCORN_LOOP, "--graceful-timeout=2"),
    "hypercorn, its own grace": _hypercorn(*_HYPERCORN_LOOP),
    "hypercorn, uvloop": _hypercorn("--worker-class=uvloop", "--graceful-timeout=2"),
    # When it stops it waits for half a request head too, by default for 30 s.
    "granian": lambda port, app: [
        *("granian", "--interface=asgi", f"--port={port}"),
        *("--http1-header-read-timeout=3000", app),
    ],
}
"""The ASGI servers, from a port and an application to the arguments behind `python -m`."""

# Not one name of this package but the subprotocol's.
_BARE: Final = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    name = dict(scope["headers"])[b"x-client"].decode()
    print("request", name, flush=True)
    if scope["type"] == "websocket" and name.startswith("accepted"):
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "raft"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await asyncio.Event().wait()
"""

_LOGGED: Final = re.compile(r"Exception in callback .*?\nasyncio\.\S+\.CancelledError\n", re.DOTALL)
_MEMORY_ADDRESS: Final = re.compile(r"\b0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Served:
    """A running web server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def connect(self) -> socket.socket:
        """A connection, once the server listens."""

        def attempt() -> socket.socket | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return socket.create_connection(("127.0.0.1", self.port), 5.0)
            except ConnectionError:
                return None

        return eventually(attempt, "the server listens")


@contextmanager
def served(command: Callable[[int], list[str]], code: str, directory: Path) -> Generator[Served]:
    """Serve `code` as the module `served`; gone afterwards in any case.

    Args:
        command: from a port to what follows the interpreter.
        code: a module's source.
        directory: for the module and the log; made if need be.
    """
    (port,) = free_ports(1)
    directory.mkdir(exist_ok=True)
    (directory / "served.py").write_text(code)
    log = directory / "log"
    paths = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *command(port)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,  # the group of its workers
        )
    try:
        yield Served(process, port, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_during_handshakes(server: Served, carriers: tuple[str, ...]) -> str:
    """SIGTERM with a stream open and a client at each step of a handshake; returns the log.

    Args:
        server: it still listens.
        carriers: by which it accepts streams; the last one is used for the open one.

    Raises:
        AssertionError: it did not end within 5 s, or not by itself.
    """
    names = [f"{step}-{c}" for step in ("unauthorised", "unaccepted") for c in carriers]
    if "raw" not in carriers:
        names.append("unauthorised-raw")  # to be told 426 when somebody has said yes
    with ExitStack() as stack:

        def send(data: bytes) -> socket.socket:
            opened = stack.enter_context(server.connect())
            opened.sendall(data)
            return opened

        stream = send(_upgrade(f"accepted-{carriers[-1]}"))
        assert stream.recv(4096).startswith(b"HTTP/1.1 101 "), "no stream"
        send(b"")
        send(_upgrade("half")[:40])
        for name in names:
            send(_upgrade(name))
            eventually(lambda n=name: f"request {n}\n" in server.log.read_text(), name)  # type: ignore[misc]  # mypy infers no lambda with defaults
        server.process.send_signal(signal.SIGTERM)
        # uvicorn raises the signal again when it is done.
        assert server.process.wait(5.0) in (0, -signal.SIGTERM), server.log.read_text()
    return server.log.read_text()


def _upgrade(name: str) -> bytes:
    head = f"GET /raft HTTP/1.1\r\nHost: x\r\nX-Client: {name}\r\nConnection: Upgrade\r\n"
    if name.endswith("raw"):
        return f"{head}Upgrade: raft\r\n\r\n".encode()
    return (
        f"{head}Upgrade: websocket\r\nSec-WebSocket-Protocol: raft\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def hypercorn_tracebacks(directory: Path, name: str = "hypercorn") -> set[str]:
    """What hypercorn itself logs when it is stopped, around an application that knows no Raft.

    After its grace it cancels what is open, without a word to the application before; the
    streams of asyncio in CPython before 3.13 may then log each cancelled connection, because
    their callback does not ask `if task.cancelled()`.

    Args:
        directory: for the application and its log.
        name: of its command in `COMMANDS`.
    """
    command = COMMANDS[name]
    with served(lambda port: ["-m", *command(port, "served:app")], _BARE, directory) as server:
        told = stop_during_handshakes(server, ("websocket",))
    return {_same(text) for text in _LOGGED.findall(told)}


def without(known: set[str], log: str) -> str:
    """A log without the tracebacks that are known, letter by letter but for memory addresses."""
    return _LOGGED.sub(lambda found: "" if _same(found.group()) in known else found.group(), log)


def _same(traceback: str) -> str:
    return _MEMORY_ADDRESS.sub("0x", traceback)
