"""Real servers and sockets for tests of an endpoint.

Knows the HTTP room, uvicorn and asyncio; no Raft. Waits poll a condition up to a deadline.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import uvicorn

from rafthttp.http.handler import Handler
from rafthttp.http.listener import Listener
from rafthttp.http.stream import TransportStream
from rafthttp.raft.transport.protocols import Stream

PATIENCE_SECONDS: Final = 10.0
"""How long a condition that must come true may take on a loaded machine."""

HANDSHAKE_SECONDS = 10.0
"""For `ServerKind`'s listener; a test may patch it."""

T = TypeVar("T")


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it does not within `PATIENCE_SECONDS`.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - any condition, not one that has an event
            await asyncio.sleep(0.001)


class RecordingReceiver:
    """Receives a stream: keeps what comes, says when it ended.

    Attributes:
        data: everything so far.
        chunks: the same, as it was delivered.
        ended: whether `closed` was called.
        error: what it was called with.
    """

    def __init__(self, stream: Stream | None = None) -> None:
        self.data = b""
        self.chunks: list[bytes] = []
        self.ended = False
        self.error: Exception | None = None
        self.writing_paused = False
        if stream is not None:
            stream.start(self)

    def data_received(self, data: bytes) -> None:
        """See `StreamReceiver`."""
        assert data, "a receiver never gets an empty chunk"
        assert not self.ended, "nothing comes after `closed`"
        self.chunks.append(data)
        self.data += data

    def closed(self, error: Exception | None) -> None:
        """See `StreamReceiver`."""
        assert not self.ended, "`closed` is called once"
        self.ended = True
        self.error = error

    def pause_writing(self) -> None:
        """See `StreamReceiver`."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """See `StreamReceiver`."""
        self.writing_paused = False

    async def until_data(self, data: bytes) -> None:
        """Wait until exactly this has come."""
        await until(lambda: len(self.data) >= len(data))
        assert self.data == data

    async def until_ended(self) -> None:
        """Wait for `closed`."""
        await until(lambda: self.ended)


class EchoReceiver(RecordingReceiver):
    """Sends back what comes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        super().__init__(stream)

    def data_received(self, data: bytes) -> None:
        """See `StreamReceiver`."""
        super().data_received(data)
        self._stream.write(data)


@dataclass(slots=True)
class RawConnection:
    """A plain TCP connection, to speak any bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)

    async def head(self) -> bytes:
        """Read up to the end of a response head."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response with a Content-Length: status, headers in lower case, body."""
        lines = (await self.head()).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        async with asyncio.timeout(PATIENCE_SECONDS):
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """Read until the peer closes; a reset counts."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self.reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def raw_connection(port: int, host: str = "127.0.0.1") -> AsyncGenerator[RawConnection]:
    """Connect."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def uvicorn_server(
    app: Any, http: type[asyncio.Protocol] | str, **options: Any
) -> AsyncGenerator[tuple[int, uvicorn.Server]]:
    """Serve an ASGI application with uvicorn on a free port of 127.0.0.1; stops it at the end."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        settings: dict[str, Any] = {"log_level": "warning", "lifespan": "off", "ws": "none"}
        config = uvicorn.Config(app, http=http, **(settings | options))
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve([listening]))
        try:
            await until(lambda: server.started or serving.done())
            yield port, server
        finally:
            server.should_exit = True
            await serving


@dataclass(frozen=True, slots=True)
class ServerKind:
    """One way to serve a `Handler`, on one kind of event loop.

    Attributes:
        name: for test ids.
        http: uvicorn's protocol class; None for our own listener.
        loop_factory: makes the event loop.
    """

    name: str
    http: type[asyncio.Protocol] | None
    loop_factory: Callable[[], asyncio.AbstractEventLoop]

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on this kind of loop."""
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            return runner.run(main())

    @asynccontextmanager
    async def serve(self, handler: Handler) -> AsyncGenerator[int]:
        """Serve the handler at `/raft`; yields the port. Closes the handler first at the end."""
        if self.http is None:
            listener = Listener(handler, "127.0.0.1", 0, handshake_timeout=HANDSHAKE_SECONDS)
            async with listener:
                try:
                    yield listener.port
                finally:
                    await handler.close()
            return
        async with uvicorn_server(handler, self.http) as (port, _):
            try:
                yield port
            finally:
                await handler.close()


async def accept_echo(accept: Callable[[], Awaitable[Stream]], count: int) -> None:
    """Accept that many streams, and echo on each."""
    for _ in range(count):
        EchoReceiver(await accept())


async def connected_pair() -> tuple[TransportStream, TransportStream]:
    """Two ends of one TCP connection, neither started."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[TransportStream] = loop.create_future()
    server = await loop.create_server(lambda: TransportStream(accepted.set_result), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    _, dialled = await loop.create_connection(TransportStream, "127.0.0.1", port)
    stream = await accepted
    server.close()
    return dialled, stream
