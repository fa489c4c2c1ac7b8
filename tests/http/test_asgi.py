"""The endpoint under any ASGI server: what needs no socket works, and what does says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from rafthttp.http import handler as handler_module
from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.handler import ForwardRequest, Handler
from rafthttp.http.messages import ForwardResponse
from rafthttp.raft.errors import ConfigError, DifferentLeaderError
from rafthttp.raft.types import Leader, ServerAddress, ServerID


@asynccontextmanager
async def client(
    handler: Handler, base_url: str = "http://node", host: str = "127.0.0.1"
) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=handler, client=(host, 4711))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as made:
        yield made


def test_a_raw_upgrade_where_the_socket_is_not_to_be_had_is_426() -> None:
    async def main() -> None:
        async with client(Handler()) as http:
            answer = await http.get("/raft", headers={"Upgrade": "raft", "Connection": "Upgrade"})
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"
        assert "upgrade" in answer.headers["connection"]
        assert "cannot hand over its socket" in answer.text

    asyncio.run(main())


def test_everything_else_works() -> None:
    async def echo(request: ForwardRequest) -> ForwardResponse:
        return ForwardResponse(200, request.body)

    async def main() -> None:
        handler = Handler(forward=echo)

        async def serve() -> None:
            async for request in handler.requests():
                if request.kind == "leave":
                    leader = Leader(ServerID("n1"), ServerAddress("10.0.0.1:80"))
                    request.fail(DifferentLeaderError("no", leader=leader))
                request.respond()

        serving = asyncio.create_task(serve())
        async with client(handler, "https://node") as http:
            assert (await http.get("/raft")).status_code == 400
            joined = await http.post("/raft", params={"id": "n9", "address": "127.0.0.1:9"})
            assert (joined.status_code, joined.content) == (200, b"")
            left = await http.delete("/a%20b/raft?id=n9&x=%26")
            assert left.status_code == 308
            assert left.headers["location"] == "https://10.0.0.1:80/a%20b/raft?id=n9&x=%26"
            assert (await http.put("/raft?op=x", content=b"body")).content == b"body"
            assert (await http.patch("/raft")).status_code == 405
            assert (await http.head("/raft")).status_code == 405
        async with client(handler, host="10.9.9.9") as http:
            assert (await http.delete("/raft?id=n9")).status_code == 401
        await handler.close()
        await serving

    asyncio.run(main())


def test_a_server_that_tells_no_client_is_not_loopback() -> None:
    async def main() -> None:
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "2",
            "method": "DELETE",
            "path": "/r ft",
            "query_string": b"id=n9",
            "headers": [],
        }
        await Handler()(scope, receive, send)
        assert sent[0]["status"] == 401
        # HTTP/2 knows no Connection header (RFC 9113 §8.2.2).
        assert not [name for name, _ in sent[0]["headers"] if name == b"connection"]

    asyncio.run(main())


def test_other_scopes() -> None:
    async def main() -> None:
        async def receive() -> MutableMapping[str, Any]:
            raise AssertionError("nothing to receive")

        async def send(message: MutableMapping[str, Any]) -> None:
            raise AssertionError("nothing to say")

        with pytest.raises(RuntimeError, match="lifespan"):
            await Handler()({"type": "lifespan"}, receive, send)

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_an_error(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Handler(timeout)


def test_a_cluster_id_against_the_grammar_is_an_error() -> None:
    handler = Handler(cluster_id="c1")
    with pytest.raises(ConfigError, match="cluster id"):
        handler.cluster_id = "a\r\nb"
    assert handler.cluster_id == "c1"


def test_a_websocket_whose_client_leaves_does_not_go_on_waiting() -> None:
    """Nor does one that a stopping uvicorn cuts: both are told as a disconnect."""

    async def main() -> None:
        entered, left = asyncio.Event(), asyncio.Event()
        cancelled = False

        async def authorize(peer: PeerInfo) -> Principal | Refusal:
            nonlocal cancelled
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
            raise AssertionError("nobody ends it")

        messages = [{"type": "websocket.connect"}]

        async def receive() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "websocket.disconnect", "code": 1006}

        async def send(message: MutableMapping[str, Any]) -> None:
            raise AssertionError(f"nobody reads {message}")

        scope = {
            "type": "websocket",
            "path": "/raft",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "subprotocols": ["raft"],
        }
        serving = asyncio.ensure_future(Handler(authorize=authorize)(scope, receive, send))
        await entered.wait()
        left.set()
        async with asyncio.timeout(5.0):
            await serving
        assert cancelled

    asyncio.run(main())


def test_an_upgrade_that_can_only_be_refused_holds_up_no_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server waits for its answer and cannot tell that it stops."""
    monkeypatch.setattr(handler_module, "UNTOLD_SECONDS_MAX", 0.05)

    async def hang(peer: PeerInfo) -> Principal | Refusal:
        await asyncio.Event().wait()
        raise AssertionError("nobody ends it")

    async def main() -> None:
        async with client(Handler(authorize=hang)) as http, asyncio.timeout(5.0):
            answer = await http.get("/raft", headers={"Upgrade": "raft", "Connection": "Upgrade"})
        assert answer.status_code == 503
        assert "authorisation took too long" in answer.text

    asyncio.run(main())
