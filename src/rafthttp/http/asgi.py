"""An endpoint's ASGI side: scopes and messages into `Request` and back.

Knows ASGI and no particular server. A server that can hand over its socket puts a `Connection` into
`scope["extensions"]` (see `uvicorn.py`); the others carry streams over WebSocket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import quote

from rafthttp.http.asgi_websocket import AsgiStream
from rafthttp.http.messages import (
    Headers,
    PeerCertificate,
    Request,
    Response,
    SocketAddress,
    text_response,
)
from rafthttp.http.stream import TransportStream
from rafthttp.raft.errors import RequestRefusedError
from rafthttp.raft.transport.protocols import Stream

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handle: TypeAlias = Callable[[Request], Awaitable[Response | None]]

_T = TypeVar("_T")

EXTENSION: Final = "rafthttp.connection"
"""Key in `scope["extensions"]` under which a server puts its `Connection`."""

STOP_SECONDS: Final = 1.0
"""How long a stop waits for forwarded calls; cut off, their outcome is unknown to who asked."""


class Connection(Protocol):
    """What a server tells of the socket below a request."""

    @property
    def client(self) -> SocketAddress | None:
        """The socket peer, which no middleware has rewritten."""
        ...

    @property
    def certificate(self) -> PeerCertificate | None:
        """The verified TLS client certificate."""
        ...

    def take(self, head: bytes) -> TransportStream:
        """Write `head` and hand over the connection; ConnectionError if it is gone."""
        ...

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call back when the server stops; it waits for what is unanswered."""
        ...


async def serve(handle: Handle, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one ASGI connection of the type `http` or `websocket`.

    Raises:
        RuntimeError: any other type (a server takes that as "no lifespan here").
    """
    if scope["type"] == "websocket":
        await _serve_websocket(handle, scope, receive, send)
        return
    if scope["type"] != "http":
        raise RuntimeError(f"an endpoint does not serve {scope['type']!r}")
    response = await _answer(handle, scope, receive)
    if response is None:
        # The server has let go of the connection and ignores this; middleware wants to see it.
        response = Response(101)
        headers = [(b"upgrade", b"raft"), (b"connection", b"upgrade")]
    else:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response.headers
        ]
        headers.append((b"content-length", str(len(response.body)).encode("ascii")))
        if response.close and scope["http_version"].startswith("1"):
            headers = [h for h in headers if h[0] != b"connection"]
            upgrade = any(name == b"upgrade" for name, _ in headers)
            headers.append((b"connection", b"close, upgrade" if upgrade else b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def serve_lifespan(
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    receive: Receive,
    send: Send,
) -> None:
    """Serve the scope `lifespan`: from the server's start to its stop.

    Raises:
        Exception: what `start` raises, once the server has been told why it must not go on.
    """
    await receive()
    try:
        await start()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        raise
    try:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    finally:
        await stop()
    await send({"type": "lifespan.shutdown.complete"})


async def _answer(handle: Handle, scope: Scope, receive: Receive) -> Response | None:
    """The answer, or in its place a refusal once a server that tells so stops."""
    request = _request(scope, receive)
    connection = _connection(scope)
    if connection is None:
        return await handle(request)
    loop = asyncio.get_running_loop()
    answering = asyncio.ensure_future(_awaited(handle(request)))
    # Of a call that was cut off the outcome is unknown; it gets time to end.
    seconds = STOP_SECONDS if request.method == "PUT" else 0.0
    connection.on_stop(lambda: loop.call_later(seconds, answering.cancel))
    try:
        await asyncio.wait({answering})
    finally:
        answering.cancel()
    if answering.cancelled():
        return text_response(503, "the server is shutting down", close=True)
    return answering.result()


async def _serve_websocket(handle: Handle, scope: Scope, receive: Receive, send: Send) -> None:
    if (await receive())["type"] != "websocket.connect":
        return  # gone already
    stream: AsgiStream | None = None

    def accept(cluster_id: str | None) -> Stream:
        nonlocal stream
        peer = "unknown" if request.client is None else _joined(request.client)
        stream = AsgiStream(peer, receive_next, send, cluster_id)
        return stream

    async def receive_next() -> MutableMapping[str, Any]:
        return await (unread.pop() if unread else receive())

    request = _request(scope, receive)
    request.accept_websocket = accept
    request.subprotocols = tuple(scope.get("subprotocols") or ())
    # Until the request is answered the next message can only be the end of the connection, which
    # uvicorn also tells when it stops; behind an accept it is the stream's first.
    waiting = asyncio.ensure_future(_awaited(receive()))
    unread = [waiting]
    answering = asyncio.ensure_future(_awaited(handle(request)))
    try:
        await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not _is_message(waiting):
            return
        response = await answering
        if response is not None:
            await refuse_websocket(scope, send, response)
        elif stream is not None:
            await stream.run()
    finally:
        answering.cancel()
        waiting.cancel()
        await asyncio.wait({answering, waiting})
        if not waiting.cancelled():
            waiting.exception()  # a server's own way to say that the connection is lost
        if stream is not None:
            stream.lost()


def _is_message(received: asyncio.Future[MutableMapping[str, Any]]) -> bool:
    return received.exception() is None and received.result()["type"] == "websocket.receive"


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


async def refuse_websocket(scope: Scope, send: Send, response: Response) -> None:
    """Refuse before the accept: with the response where the server can, else with its sentence.

    A server that cannot (no `websocket.http.response` extension) answers 403.
    """
    if "websocket.http.response" in (scope.get("extensions") or {}):
        headers = [(name.lower().encode(), value.encode()) for name, value in response.headers]
        headers.append((b"content-length", str(len(response.body)).encode("ascii")))
        start = {"status": response.status, "headers": headers}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": response.body})
        return
    # RFC 6455 §7.4: 1013 is "try again later", 1008 "policy violation"; a reason has 123 bytes.
    code = 1013 if response.status == 503 else 1008
    reason = response.body[:123].decode("utf-8", "ignore").strip()
    await send({"type": "websocket.close", "code": code, "reason": reason})


def _request(scope: Scope, receive: Receive) -> Request:
    scheme: str = scope.get("scheme") or "http"
    connection = _connection(scope)
    client: Any = scope.get("client")
    raw_path: bytes | None = scope.get("raw_path")
    path = quote(scope["path"]) if raw_path is None else raw_path.decode("latin-1")

    async def read_body(size_bytes_max: int, *, keep: bool = True) -> bytes:
        return await _read_body(receive, size_bytes_max, keep=keep)

    return Request(
        method=scope.get("method", "GET"),  # a WebSocket has none
        scheme={"ws": "http", "wss": "https"}.get(scheme, scheme),
        path=path.partition("?")[0],
        query=scope["query_string"].decode("latin-1"),
        http_version=scope.get("http_version", "1.1"),
        headers=Headers(cast("list[tuple[bytes, bytes]]", scope["headers"])),
        client=connection.client if connection is not None else _socket_address(client),
        certificate=None if connection is None else connection.certificate,
        read_body=read_body,
        take=None if connection is None else connection.take,
    )


def _connection(scope: Scope) -> Connection | None:
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return cast("Connection | None", extensions.get(EXTENSION))


def _joined(address: SocketAddress) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket_address(client: Any) -> SocketAddress | None:
    return None if client is None else (str(client[0]), int(client[1]))


async def _read_body(receive: Receive, size_bytes_max: int, *, keep: bool) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError("the client is gone")
        chunk: bytes = message.get("body", b"")
        size_bytes += len(chunk)
        if size_bytes > size_bytes_max:
            raise RequestRefusedError(413, f"the body is larger than {size_bytes_max} bytes")
        if keep:
            chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
