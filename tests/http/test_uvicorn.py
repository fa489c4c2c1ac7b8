"""An endpoint beside an application's other routes, under uvicorn."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rafthttp.http.dial import dial_tcp, dial_tls
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.uvicorn import HELD_SIZE_BYTES_MAX, RaftH11Protocol, raft_protocol
from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.http import (
    EchoReceiver,
    RecordingReceiver,
    ServerKind,
    raw_connection,
    until,
    uvicorn_server,
)

UPGRADE = b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"


def local(port: int) -> ServerAddress:
    return ServerAddress(f"127.0.0.1:{port}")


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.url.path}")


async def size(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def early(request: Request) -> Response:
    return PlainTextResponse("never mind", status_code=413)


def application(handler: Handler, middleware: list[Middleware] | None = None) -> Starlette:
    return Starlette(
        routes=[
            Route("/hello", hello),
            Route("/size", size, methods=["POST"]),
            Route("/early", early, methods=["POST"]),
            Route("/raft", handler),
        ],
        middleware=middleware or [],
    )


@asynccontextmanager
async def served(kind: ServerKind, app: Any, **options: Any) -> AsyncGenerator[tuple[int, Any]]:
    assert kind.http is not None
    async with uvicorn_server(app, kind.http, **options) as (port, server):
        yield port, server


def test_the_class_to_use_is_found() -> None:
    assert raft_protocol() is RaftHttpToolsProtocol


def test_without_httptools_it_is_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], None] = lambda name: None  # noqa: E731 - a stand-in
    monkeypatch.setattr("importlib.util.find_spec", find)
    assert raft_protocol() is RaftH11Protocol


def test_streams_and_routes_share_a_port(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with served(uvicorn_kind, application(handler)) as (port, _):
            accepting = asyncio.create_task(layer.accept())
            stream = await layer.dial(local(port), 5.0)
            receiver = RecordingReceiver(stream)
            EchoReceiver(await accepting)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                for number in range(5):
                    assert (await client.get("/hello")).text == "hello /hello"
                    body = b"\r\n\r\n" * 50_000 + b"x" * number
                    answer = await client.post("/size", content=body)
                    assert answer.text == str(len(body))
                assert (await client.get("/nowhere")).status_code == 404
                assert (await client.get("/raft")).status_code == 400
            stream.write(b"alive")
            await receiver.until_data(b"alive")
            stream.abort()
            await layer.close()

    uvicorn_kind.run(main)


async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["X-Passed"] = "yes"
    return response


def test_middleware_sees_a_101_and_logs_no_error(
    uvicorn_kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        wrapped = [Middleware(BaseHTTPMiddleware, dispatch=passing), Middleware(GZipMiddleware)]
        async with served(uvicorn_kind, application(handler, wrapped)) as (port, server):
            accepting = asyncio.create_task(layer.accept())
            stream = await layer.dial(local(port), 5.0)
            receiver = RecordingReceiver(stream)
            EchoReceiver(await accepting)
            await until(lambda: not server.server_state.tasks)
            stream.write(b"untouched")
            await receiver.until_data(b"untouched")
            stream.abort()
            await layer.close()

    with caplog.at_level(logging.WARNING):
        uvicorn_kind.run(main)
    assert not caplog.records


def test_stopping_the_server_ends_its_streams(
    uvicorn_kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with served(uvicorn_kind, application(handler)) as (port, server):
            accepting = asyncio.create_task(layer.accept())
            dialled = RecordingReceiver(await layer.dial(local(port), 5.0))
            accepted = RecordingReceiver(await accepting)
            await until(lambda: len(server.server_state.connections) == 1)
            server.should_exit = True
            await dialled.until_ended()
            await accepted.until_ended()
            await until(lambda: not server.server_state.connections)
        await layer.close()

    with caplog.at_level(logging.WARNING):
        uvicorn_kind.run(main)
    assert not caplog.records


def test_a_stream_that_ends_is_forgotten(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with served(uvicorn_kind, application(handler)) as (port, server):
            for _ in range(3):
                accepting = asyncio.create_task(layer.accept())
                stream = await layer.dial(local(port), 5.0)
                receiver = RecordingReceiver(await accepting)
                stream.close()
                await receiver.until_ended()
            await until(lambda: not server.server_state.connections)
            await until(lambda: not server.server_state.tasks)
            await layer.close()

    uvicorn_kind.run(main)


def test_nothing_is_taken_over_once_the_server_stops(uvicorn_kind: ServerKind) -> None:
    """Its new stream would never be closed by uvicorn, which waits for it."""

    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with (
            served(uvicorn_kind, application(handler)) as (port, server),
            raw_connection(port) as raw,
        ):
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            for connection in list(server.server_state.connections):
                connection.shutdown()
            accepting = asyncio.create_task(layer.accept())
            status, _, _ = await raw.response()
            assert status in (400, 503)  # found gone when it was accepted, or cut off before
            assert not accepting.done()
            await layer.close()
            with pytest.raises(PeerUnreachableError):
                await accepting

    uvicorn_kind.run(main)


def test_an_upgrade_that_another_route_answers_is_an_ordinary_request(
    uvicorn_kind: ServerKind,
) -> None:
    async def main() -> None:
        async with (
            served(uvicorn_kind, application(Handler())) as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\n\r\n")
            raw.send(b"GET /hello?2 HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(2):
                assert (await raw.response())[2] == b"hello /hello"

    uvicorn_kind.run(main)


def test_pipelined_requests_are_answered_in_order(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            served(uvicorn_kind, application(handler)) as (port, _),
            raw_connection(port) as raw,
        ):
            one = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
            two = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n\r\n\r\nab"
            raw.send((one + two) * 3)
            for _ in range(3):
                assert (await raw.response())[2] == b"hello /hello"
                assert (await raw.response())[2] == b"6"

    uvicorn_kind.run(main)


def test_an_upgrade_pipelined_behind_another_request(uvicorn_kind: ServerKind) -> None:
    """It is refused, or accepted after the first was answered; never the two mixed."""

    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with (
            served(uvicorn_kind, application(handler)) as (port, _),
            raw_connection(port) as raw,
        ):
            accepting = asyncio.create_task(layer.accept())
            raw.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" + UPGRADE)
            assert (await raw.response())[2] == b"hello /hello"
            head = await raw.head()
            assert head[:13] in (b"HTTP/1.1 101 ", b"HTTP/1.1 400 ")
            if head.startswith(b"HTTP/1.1 101 "):
                receiver = RecordingReceiver(await accepting)
                raw.send(b"stream")
                await receiver.until_data(b"stream")
            await layer.close()
            if not accepting.done():
                with pytest.raises(PeerUnreachableError):
                    await accepting

    uvicorn_kind.run(main)


def test_bytes_behind_an_upgrade_that_waits_are_bounded(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
        async with (
            served(uvicorn_kind, application(handler)) as (port, server),
            raw_connection(port) as raw,
        ):
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            sent = bytes(32 << 20)
            raw.send(sent)
            (connection,) = server.server_state.connections
            await until(lambda: not connection.transport.is_reading())
            assert len(connection._held) < HELD_SIZE_BYTES_MAX + (2 << 20)
            receiver = RecordingReceiver(await layer.accept())
            await receiver.until_data(sent)
            await layer.close()

    uvicorn_kind.run(main)


def test_an_answer_before_the_body_keeps_the_connection_usable(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        async with (
            served(uvicorn_kind, application(Handler())) as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            assert (await raw.response())[0] == 413
            raw.send(b"cd")
            raw.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.response())[2] == b"hello /hello"

    uvicorn_kind.run(main)


def test_over_tls(uvicorn_kind: ServerKind, tmp_path: Path) -> None:
    authority: Any = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    options = {"ssl_keyfile": str(tmp_path / "key.pem"), "ssl_certfile": str(tmp_path / "cert.pem")}

    async def main() -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        handler = Handler()
        layer = Layer("/raft", "127.0.0.1:1", handler, dial_tls(context), scheme="https")
        async with served(uvicorn_kind, application(handler), **options) as (port, _):
            accepting = asyncio.create_task(layer.accept())
            stream = await layer.dial(local(port), 5.0)
            assert EchoReceiver(await accepting)._stream.peer.startswith("127.0.0.1:")
            receiver = RecordingReceiver(stream)
            stream.write(b"secret")
            await receiver.until_data(b"secret")
            stream.close()
            await receiver.until_ended()
            await layer.close()

    uvicorn_kind.run(main)


@pytest.mark.parametrize("implementation", ["auto", "websockets-sansio"])
def test_the_applications_own_websockets_go_on_working(
    uvicorn_kind: ServerKind, implementation: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await send({"type": "websocket.close"})

    async def main() -> None:
        async with (
            served(uvicorn_kind, app, ws=implementation) as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
            raw.send(b"\x81\x82\x00\x00\x00\x00hi")
            assert await raw.reader.readexactly(4) == b"\x81\x02hi"

    uvicorn_kind.run(main)


def test_a_websocket_that_offers_another_subprotocol_is_refused(uvicorn_kind: ServerKind) -> None:
    async def main() -> None:
        async with (
            served(uvicorn_kind, Handler(), ws="auto") as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(
                b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            status, _, body = await raw.response()
            assert status == 400
            assert body == b"this endpoint speaks the WebSocket subprotocol raft\n"

    uvicorn_kind.run(main)
