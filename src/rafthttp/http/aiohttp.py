"""The endpoint in an aiohttp application, with the socket at hand.

Knows aiohttp 3.14 by its public names only. aiohttp has no word for "this connection is no longer
HTTP": the request's coroutine stays until the stream ends, so that aiohttp neither answers nor
closes, and its protocol is told of the end then. One parked task a stream is the price.

    setup(app, node)                                  # a whole `Node`, started and stopped too
    AiohttpEndpoint(handler).mount(app, "/raft")      # or a `Handler` alone

Raw or WebSocket, the bytes are the endpoint's own: `web.WebSocketResponse` would put a queue and a
task switch between a frame and its receiver, and has no way to pause reading.

aiohttp parses what arrives before the endpoint is called: bytes glued to an upgrade request are
lost. No dialer may send any before it has read the 101.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, cast

from aiohttp import web

from rafthttp.http.asgi import STOP_SECONDS
from rafthttp.http.handler import NOTHING_DONE, Handler
from rafthttp.http.handshake import RAFT_PROTOCOL
from rafthttp.http.messages import Headers, Request, Response, text_response
from rafthttp.http.stream import TransportStream, peer_certificate, socket_peer
from rafthttp.raft.errors import ConfigError, RequestRefusedError

HELD_SIZE_BYTES_MAX: Final = 64 << 10
"""Bytes held behind an upgrade request before reading pauses; no dialer may send any."""


_TAKEN: Final = (RAFT_PROTOCOL, "websocket")


class _Node(Protocol):
    """What `setup` needs of a `Node`."""

    path: str

    @property
    def handler(self) -> Handler | None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def setup(app: web.Application, node: _Node, path: str | None = None) -> None:
    """Start and stop a `Node` with an application, and put its endpoint on it.

    `path` is the rest of the node's path, for an application mounted below a prefix.

    Raises:
        ConfigError: `path` is not where the other members look for it.
    """
    path = node.path if path is None else path
    if not node.path.endswith(path) or not path.startswith("/"):
        raise ConfigError(f"cannot mount at {path!r}: the node's path is {node.path!r}")

    async def life(app: web.Application) -> AsyncIterator[None]:
        del app
        await node.start()
        try:
            yield
        finally:
            await node.stop()

    app.cleanup_ctx.append(life)
    AiohttpEndpoint(lambda: node.handler).mount(app, path)


class AiohttpEndpoint:
    """Serves a `Handler` in an aiohttp application.

    Args:
        handler: the endpoint, or what returns it; None while there is none, which is a 503.
    """

    def __init__(self, handler: Handler | Callable[[], Handler | None]) -> None:
        self._handler = (lambda: handler) if isinstance(handler, Handler) else handler
        self._streams: set[TransportStream] = set()
        self._calls: dict[asyncio.Task[Response | None], str] = {}
        self._stopping = False

    def mount(self, app: web.Application, path: str) -> None:
        """Put the endpoint on an application, as an exact route; its streams end with it."""
        app.router.add_route("*", path, self.handle)
        app.on_shutdown.append(self._on_shutdown)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; a stream's only returns when the stream has ended."""
        handler = self._handler()
        if handler is None or self._stopping:
            return _answer(text_response(503, "the server is not running", NOTHING_DONE))
        connection = _Connection(request, self._streams)
        connection.hold()
        call = asyncio.ensure_future(handler.handle(connection.request()))
        self._calls[call] = request.method
        response: Response | None = None
        try:
            response = await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # aiohttp's own doing, not `_on_shutdown`'s
                if connection.stream is not None:
                    connection.stream.abort()
                raise
            response = text_response(503, "the server is shutting down", close=True)
        finally:
            self._calls.pop(call, None)
            stream = connection.stream
            if stream is None:
                connection.give_back()
        if stream is None:
            assert response is not None, "without a stream there is an answer"
            return _answer(response)
        try:
            await connection.lost
        finally:
            stream.abort()  # at its end already, unless aiohttp gave up waiting
        return web.Response(status=101)  # for logs and middleware: the connection is gone

    async def _on_shutdown(self, app: web.Application) -> None:
        """Let none of ours hold up aiohttp, which waits for the requests under way next."""
        del app
        self._stopping = True
        for stream in list(self._streams):
            stream.close()
        forwarded = [call for call, method in self._calls.items() if method == "PUT"]
        for call, method in list(self._calls.items()):
            if method != "PUT":
                call.cancel()
        if forwarded:
            _, late = await asyncio.wait(forwarded, timeout=STOP_SECONDS)
            for call in late:
                call.cancel()
        for stream in list(self._streams):
            stream.abort()


class _Connection(asyncio.Protocol):
    """The connection below one request; its transport's protocol while an upgrade waits."""

    def __init__(self, request: web.Request, streams: set[TransportStream]) -> None:
        self._request = request
        self._streams = streams
        self._transport = request.transport
        self._theirs: asyncio.BaseProtocol | None = None
        self._held = bytearray()
        self.stream: TransportStream | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def request(self) -> Request:
        """The request, in the endpoint's words."""
        request, transport = self._request, self._transport
        url = request.rel_url
        return Request(
            method=request.method,
            scheme=request.scheme,
            path=url.raw_path,
            query=url.raw_query_string,
            http_version=f"{request.version.major}.{request.version.minor}",
            headers=Headers(request.raw_headers),
            client=None if transport is None else socket_peer(transport),
            certificate=None if transport is None else peer_certificate(transport),
            read_body=self._read_body,
            take=self._take,
        )

    # -- the takeover

    def hold(self) -> None:
        """Keep what comes behind an upgrade request from aiohttp's parser."""
        transport, request = self._transport, self._request
        wanted = request.headers.get("Upgrade", "").lower()
        if transport is None or request.method != "GET" or wanted not in _TAKEN:
            return
        if not transport.is_closing() and not request.body_exists:
            self._theirs = transport.get_protocol()
            transport.set_protocol(self)

    def give_back(self) -> None:
        """The answer was no stream: what was held is aiohttp's."""
        theirs, transport = self._theirs, self._transport
        if theirs is None or transport is None or self.lost.done():
            return
        self._theirs = None
        transport.set_protocol(theirs)
        if not transport.is_closing():
            transport.resume_reading()
            if self._held:
                cast("asyncio.Protocol", theirs).data_received(bytes(self._held))

    def _take(self, head: bytes) -> TransportStream:
        transport = self._transport
        if self._theirs is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the connection cannot be taken over any more")
        transport.write(head)
        self.stream = stream = TransportStream.adopt(transport, bytes(self._held))
        self._streams.add(stream)
        stream.add_lost_callback(lambda: self.connection_lost(None))
        return stream

    def data_received(self, data: bytes) -> None:
        """Hold it."""
        self._held += data
        if len(self._held) > HELD_SIZE_BYTES_MAX and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; aiohttp counts it until it is told."""
        if self.stream is not None:
            self._streams.discard(self.stream)
        if not self.lost.done():
            self.lost.set_result(None)
        theirs, self._theirs = self._theirs, None
        if theirs is not None:
            theirs.connection_lost(exc)

    async def _read_body(self, size_bytes_max: int, *, keep: bool = True) -> bytes:
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async for chunk in self._request.content.iter_any():
                size_bytes += len(chunk)
                if size_bytes > size_bytes_max:
                    text = f"the body is larger than {size_bytes_max} bytes"
                    raise RequestRefusedError(413, text)
                if keep:
                    chunks.append(chunk)
        except web.RequestPayloadError as error:
            raise ConnectionResetError(f"the body broke off: {error}") from error
        return b"".join(chunks)


def _answer(response: Response) -> web.Response:
    answer = web.Response(status=response.status, body=response.body)
    for name, value in response.headers:
        answer.headers.add(name, value)
    if response.close:
        answer.force_close()
        upgrade = "Upgrade" in answer.headers
        answer.headers["Connection"] = "close, upgrade" if upgrade else "close"
    return answer
