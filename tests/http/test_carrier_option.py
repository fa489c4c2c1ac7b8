"""`carrier` as an application and the command line give it."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import WebSocketRoute

from rafthttp import ConfigError, Log, Node, cli
from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.handler import Handler
from rafthttp.raft.fsm import FSM, BytesSnapshot
from rafthttp.testing.http import raw_connection, uvicorn_server

HEAD = (
    b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: raft\r\n\r\n"
)


class Nothing(FSM):
    def apply(self, log: Log) -> object:
        return len(log.data)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: object) -> None:
        del source


def test_a_node_takes_only_carriers_there_are() -> None:
    with pytest.raises(ConfigError, match="one of auto, raw, websocket"):
        Node("n1", "127.0.0.1:1", fsm=Nothing(), carrier="smoke")


def test_serve_takes_only_carriers_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["serve", "--id", "n1", "--listen", "127.0.0.1:1", "--in-memory", "--bootstrap"]
    assert cli.run([*options, "--carrier", "smoke"]) == 1
    assert "--carrier is 'smoke'" in capsys.readouterr().err


def test_a_node_that_does_not_run_refuses_websockets() -> None:
    async def main() -> None:
        app = Starlette()
        Node("n1", "127.0.0.1:1", fsm=Nothing()).mount(app)
        async with (
            uvicorn_server(app, "auto", ws="websockets-sansio") as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(HEAD)
            status, headers, body = await raw.response()
            assert (status, body) == (503, b"the node is not running\n")
            assert headers["retry-after"] == "1"

    asyncio.run(main())


def test_middleware_that_sees_no_websocket_leaves_none_unguarded() -> None:
    """The guard is asked for requests only; the endpoint itself asks for every WebSocket."""

    async def main() -> None:
        seen: list[str] = []

        async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
            seen.append(request.method)
            del call_next
            return PlainTextResponse("guarded", status_code=418)

        async def authorize(peer: PeerInfo) -> Principal | Refusal:
            del peer
            return Refusal("not you")

        app = Starlette(
            routes=[WebSocketRoute("/raft", Handler(authorize=authorize))],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        )
        async with (
            uvicorn_server(app, "auto", ws="websockets-sansio") as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(HEAD)
            status, _, body = await raw.response()
            assert (status, body) == (401, b"not you\n")
            assert seen == []

    asyncio.run(main())
