"""A server of our own for one endpoint, on asyncio, plain or TLS.

Knows sockets and HTTP/1.1, and serves the endpoint's path only. The one server that bounds
everything before the 101: how many connections, how large a head, how long until it is whole.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import h11

from rafthttp.http.grammar import parse_path
from rafthttp.http.handler import Handler
from rafthttp.http.handshake import ServerConnection
from rafthttp.http.messages import Headers, Request, Response, text_response
from rafthttp.http.stream import TransportStream
from rafthttp.raft.errors import ConfigError, RequestRefusedError

log: Final = logging.getLogger("rafthttp.http")

CONNECTIONS_MAX: Final = 1024
"""Connections at a time, streams among them. 50 members with a dozen streams a pair need 600."""

_BACKLOG: Final = CONNECTIONS_MAX  # asyncio's own 100 loses a burst of dials to retransmissions
IDLE_SECONDS: Final = 75.0
"""How long a connection may wait between two requests; above the idle time of our own pool."""


class Listener:
    """Serves a `Handler` on a port of its own. Use it with `async with`, or `start` and `close`.

    Args:
        handler: the endpoint.
        host: to bind to.
        port: to bind to; 0 takes a free one, see `port` after `start`.
        path: of the endpoint; every other path is 404.
        ssl: a server context; with `verify_mode` CERT_REQUIRED it asks for client certificates.
        handshake_timeout: seconds for TLS and for a complete request head.
        connections_max: more are answered 503.

    Raises:
        ConfigError: an argument is against its grammar.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        *,
        path: str = "/raft",
        ssl: ssl_module.SSLContext | None = None,
        handshake_timeout: float = 10.0,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        if not handshake_timeout > 0:
            raise ConfigError(f"handshake_timeout is {handshake_timeout}; it must be more than 0")
        self._handler = handler
        self._host = host
        self._port = port
        self._path = parse_path(path)
        self._ssl = ssl
        self._handshake_timeout = handshake_timeout
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._streams: set[TransportStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_lost: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    @property
    def port(self) -> int:
        """The port that is bound; the first, where several addresses are."""
        if self._server is not None and self._server.sockets:
            port: int = self._server.sockets[0].getsockname()[1]
            return port
        return self._port

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            OSError: the port is taken, or the host is not ours.
        """
        timeout = None if self._ssl is None else self._handshake_timeout
        self._server = await asyncio.get_running_loop().create_server(
            lambda: TransportStream(self._connected),
            self._host,
            self._port,
            ssl=self._ssl,
            ssl_handshake_timeout=timeout,
            backlog=_BACKLOG,
        )

    async def close(self) -> None:
        """Stop listening and close every connection, streams too. Idempotent."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for stream in list(self._streams):
            stream.abort()
        if self._streams:  # `connection_lost` follows within a turn or two
            self._all_lost = asyncio.get_running_loop().create_future()
            await self._all_lost
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def _connected(self, stream: TransportStream) -> None:
        if len(self._streams) >= self._connections_max:
            busy = text_response(503, "too many connections", (("Retry-After", "1"),), close=True)
            stream.write(ServerConnection().respond(busy))
            stream.close()
            return
        self._streams.add(stream)
        stream.add_lost_callback(lambda: self._lost(stream))
        connection = _Connection(stream, self._handler, self._path, self._handshake_timeout)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self, stream: TransportStream) -> None:
        self._streams.discard(stream)
        if not self._streams and self._all_lost is not None and not self._all_lost.done():
            self._all_lost.set_result(None)


class _Connection:
    """One connection, until it is closed or has become a stream."""

    def __init__(
        self, stream: TransportStream, handler: Handler, path: str, handshake_timeout: float
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._path = path
        self._handshake_timeout = handshake_timeout
        self._http = ServerConnection()
        self._chunks: list[bytes] = []
        self._ended = False
        self._wakeup: asyncio.Future[None] | None = None
        self._taken = False
        self._body_read = False
        self._served = False

    # -- StreamReceiver

    def data_received(self, data: bytes) -> None:
        """Hold the bytes until the task asks; more than a chunk waits in the kernel."""
        self._chunks.append(data)
        self._stream.pause_reading()
        self._wake()

    def closed(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._ended = True
        self._wake()

    def pause_writing(self) -> None:
        """Answers are small, and one at a time."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    # -- the task

    async def run(self) -> None:
        """Serve requests until the connection ends or becomes a stream."""
        self._stream.start(self)
        try:
            while await self._serve_one():
                pass
        except TimeoutError:
            log.debug("%s sent no request in time", self._stream.peer)
        except ConnectionError:
            pass
        except Exception:
            log.exception("a connection from %s failed", self._stream.peer)
        finally:
            if not self._taken:
                self._stream.close()

    async def _serve_one(self) -> bool:
        try:
            head = await self._read_head()
            response = await self._answer(head)
        except RequestRefusedError as error:
            response = text_response(error.status, str(error), error.headers, close=True)
        if response is None:
            return False
        if not self._body_read:
            response = replace(response, close=True)
        self._stream.write(self._http.respond(response))
        return not response.close and self._http.start_next()

    async def _read_head(self) -> h11.Request:
        if self._served and not self._http.leftover:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._more()
        self._served = True
        # The whole head, for a new connection its first byte too.
        async with asyncio.timeout(self._handshake_timeout):
            event = await self._next_event()
        if not isinstance(event, h11.Request):
            raise ConnectionResetError("the client is gone")
        return event

    async def _answer(self, head: h11.Request) -> Response | None:
        path, _, query = head.target.decode("ascii").partition("?")
        self._body_read = False
        if path != self._path:
            return text_response(404, "not found", close=True)
        headers = Headers(list(head.headers))
        if headers.get("Content-Length") in (None, "0") and "Transfer-Encoding" not in headers:
            await self._read_body(0)
        return await self._handler.handle(
            Request(
                method=head.method.decode("ascii"),
                scheme="https" if self._stream.is_tls else "http",
                path=path,
                query=query,
                http_version=head.http_version.decode("ascii"),
                headers=headers,
                client=self._stream.client,
                certificate=self._stream.certificate,
                read_body=self._read_body,
                take=self._take,
            )
        )

    async def _read_body(self, size_bytes_max: int, *, keep: bool = True) -> bytes:
        if self._body_read:
            return b""
        chunks: list[bytes] = []
        size_bytes = 0
        self._stream.write(self._http.continue_if_expected())
        while True:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                self._body_read = True
                return b"".join(chunks)
            if not isinstance(event, h11.Data):
                raise ConnectionResetError("the client is gone")
            size_bytes += len(event.data)
            if size_bytes > size_bytes_max:
                raise RequestRefusedError(413, f"the body is larger than {size_bytes_max} bytes")
            if keep:
                chunks.append(bytes(event.data))

    def _take(self, head: bytes) -> TransportStream:
        stream = self._stream
        if self._ended or stream.is_closing:
            raise ConnectionResetError("the client is gone")
        self._taken = True
        stream.write(head)
        stream.rewind(self._http.leftover + b"".join(self._chunks))
        return stream

    async def _next_event(
        self,
    ) -> h11.Request | h11.Data | h11.EndOfMessage | h11.ConnectionClosed:
        while True:
            event = self._http.next_event()
            if event is not None:
                return event
            await self._more()

    async def _more(self) -> None:
        """Feed the parser what arrived; wait for it if need be."""
        while not self._chunks and not self._ended:
            self._stream.resume_reading()
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        if not self._chunks:
            self._http.receive(b"")
            return
        self._http.receive(b"".join(self._chunks))
        self._chunks.clear()
