"""One end of streams over the endpoint, or of bare TCP connections: a process, on uvloop.

    python -m bench.peers.stream_end [DOOR]

With a DOOR it serves it, and answers each line on its standard input with its port and the CPU time
it has used; without one it is the client, and does what the line asks for: `load` (see `Load`) or
`dials`. A load begins with how large a request and its answer are; the server answers each request
with one write.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, cast

import uvicorn
import uvloop
from bench.peers.base import LineProcess

from rafthttp import Handler, Layer, Listener, dial_tcp, raft_protocol
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import ServerAddress

DOORS: Final = ("bare", "listener", "uvicorn", "uvicorn-websockets")
"""What serves: asyncio alone, our listener, uvicorn with `raft_protocol()`, uvicorn as it is."""

DIAL_SECONDS: Final = 5.0
BACKLOG: Final = 4096
"""Of the bare server: who only connects is done before it is accepted; a full one costs 1 s."""
LOAD_SECONDS_MAX: Final = 30.0
"""How much longer than asked for a load may take."""

_SIZES: Final = struct.Struct("<II")


def process(door: str = "") -> LineProcess:
    """A server, or the client."""
    command = [sys.executable, "-m", "bench.peers.stream_end"]
    return LineProcess([*command, door] if door else command)


class End(asyncio.Protocol):
    """One end: asyncio's protocol on a bare connection, or a stream's `StreamReceiver`.

    Attributes:
        write: the connection's or the stream's own.
        ended: done when it is gone.
    """

    def __init__(self) -> None:
        self.write: Callable[[bytes], object] = lambda data: None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def receive_from(self, stream: Stream) -> None:
        """Become the receiver of a stream."""
        self.write = stream.write
        stream.start(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there (asyncio)."""
        self.write = cast("asyncio.Transport", transport).write

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio)."""
        self.closed(exc)

    def closed(self, error: Exception | None) -> None:
        """The stream is gone (`StreamReceiver`)."""
        del error
        if not self.ended.done():
            self.ended.set_result(None)


class Answers(End):
    """The server's end: sizes first, then an answer to each request."""

    def __init__(self) -> None:
        super().__init__()
        self._head = b""
        self._size_bytes = 0
        self._answer = b""
        self._pending_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Requests, or parts of them."""
        if not self._size_bytes:
            self._head += data
            if len(self._head) < _SIZES.size:
                return
            self._size_bytes, answer_bytes = _SIZES.unpack_from(self._head)
            self._answer = bytes(answer_bytes)
            data = self._head[_SIZES.size :]
        self._pending_bytes += len(data)
        while self._pending_bytes >= self._size_bytes:
            self._pending_bytes -= self._size_bytes
            self.write(self._answer)


class Load(End):
    """The client's end: requests of `size_bytes`, answers of `answer_bytes`, for `seconds`.

    Keeps `in_flight` of them under way; with 0, as many as the connection takes: whenever it does
    not ask for a pause.

    Attributes:
        sent: how many requests.
        answered: how many of them.
    """

    def __init__(self, size_bytes: int, answer_bytes: int, in_flight: int, seconds: float) -> None:
        super().__init__()
        self._head = _SIZES.pack(size_bytes, answer_bytes)
        self._data = bytes(size_bytes)
        self._answer_bytes = answer_bytes
        self._in_flight = in_flight
        self._seconds = seconds
        self._deadline = 0.0
        self._pending_bytes = 0
        self._paused = False
        self.sent = 0
        self.answered = 0

    def begin(self) -> None:
        """Send the first ones."""
        self.write(self._head)
        self._deadline = time.perf_counter() + self._seconds
        if not self._in_flight:
            self._stream_on()
        for _ in range(self._in_flight):
            self._send()

    def data_received(self, data: bytes) -> None:
        """Answers; each is followed by a request."""
        self._pending_bytes += len(data)
        while self._pending_bytes >= self._answer_bytes:
            self._pending_bytes -= self._answer_bytes
            self.answered += 1
            if time.perf_counter() < self._deadline:
                if self._in_flight:
                    self._send()
            elif self.answered == self.sent:
                self.closed(None)

    def pause_writing(self) -> None:
        """The connection's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The connection's buffer has drained."""
        self._paused = False
        if not self._in_flight:
            self._stream_on()

    def _send(self) -> None:
        self.sent += 1
        self.write(self._data)

    def _stream_on(self) -> None:
        while not self._paused and time.perf_counter() < self._deadline:
            self._send()


@cache
def layer(carrier: str) -> Layer:
    """A dialling one."""
    return Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp(), carrier)


async def connect(carrier: str, port: int, end: End) -> Callable[[], None]:
    """Connect `end`, bare or over the endpoint; returns what closes the connection."""
    if carrier == "bare":
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: end, "127.0.0.1", port)
        return transport.close
    stream = await layer(carrier).dial(ServerAddress(f"127.0.0.1:{port}"), DIAL_SECONDS)
    end.receive_from(stream)
    return stream.close


async def load(asked: dict[str, Any]) -> dict[str, Any]:
    """One connection, dialled first, then loaded."""
    end = Load(asked["size_bytes"], asked["answer_bytes"], asked["in_flight"], asked["seconds"])
    close = await connect(asked["carrier"], asked["port"], end)
    cpu, begin = time.process_time(), time.perf_counter()
    end.begin()
    await asyncio.wait_for(end.ended, asked["seconds"] + LOAD_SECONDS_MAX)
    took = time.perf_counter() - begin
    if end.answered != end.sent:
        raise RuntimeError("the connection was lost")
    close()
    return {"answered": end.answered, "seconds": took, "cpu_seconds": time.process_time() - cpu}


async def dials(asked: dict[str, Any]) -> dict[str, Any]:
    """Dial, one at a time; each is closed, which is not part of its time."""
    took = array("d")
    begin = time.perf_counter()
    for _ in range(asked["count"]):
        end = End()
        start = time.perf_counter()
        close = await connect(asked["carrier"], asked["port"], end)
        took.append(time.perf_counter() - start)
        close()
        await asyncio.wait_for(end.ended, DIAL_SECONDS)
    ordered = sorted(took)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "per_second": len(ordered) / (time.perf_counter() - begin),
    }


@asynccontextmanager
async def served(door: str) -> AsyncGenerator[int]:
    """Serve a door; yields its port."""
    loop = asyncio.get_running_loop()
    if door == "bare":
        async with await loop.create_server(Answers, "127.0.0.1", 0, backlog=BACKLOG) as server:
            yield server.sockets[0].getsockname()[1]
        return
    handler = Handler()
    accepting = asyncio.create_task(accept_all(handler))
    try:
        if door == "listener":
            async with Listener(handler, "127.0.0.1", 0) as listener:
                yield listener.port
        else:
            async with uvicorn_served(handler, ours=door == "uvicorn") as port:
                yield port
    finally:
        accepting.cancel()
        await handler.close()


async def accept_all(handler: Handler) -> None:
    """Answer on every stream that comes, until cancelled."""
    while True:
        Answers().receive_from(await handler.accept())


@asynccontextmanager
async def uvicorn_served(handler: Handler, *, ours: bool) -> AsyncGenerator[int]:
    """uvicorn with our protocol class, or as it is."""
    options: dict[str, Any] = {"http": raft_protocol(), "ws": "none"} if ours else {}
    config = uvicorn.Config(handler, lifespan="off", log_level="error", **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def answer_lines(answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Answer each line of standard input with a line, until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await answer(json.loads(line))), flush=True)


async def main(door: str | None) -> None:
    """Run until standard input ends."""
    if door is None:

        async def ask(asked: dict[str, Any]) -> dict[str, Any]:
            return await (load if asked["call"] == "load" else dials)(asked)

        await answer_lines(ask)
        return

    async with served(door) as port:

        async def tell(_: dict[str, Any]) -> dict[str, Any]:
            return {"port": port, "cpu_seconds": time.process_time()}

        await answer_lines(tell)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
