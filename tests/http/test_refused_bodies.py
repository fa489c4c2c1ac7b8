"""The body of a refused request is read, so that the refusal is, and not kept."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from aiohttp import web

from rafthttp.http import handler
from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.aiohttp import AiohttpEndpoint
from rafthttp.http.handler import Handler
from rafthttp.http.uvicorn import RaftH11Protocol
from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol
from rafthttp.testing.aiohttp import aiohttp_server
from rafthttp.testing.http import PATIENCE_SECONDS, ServerKind, raw_connection

BODY_BYTES = 12 << 20


async def refuse(peer: PeerInfo) -> Principal | Refusal:
    return Refusal("nobody may", 403)


async def send_and_measure(port: int, head: bytes) -> tuple[int, int]:
    """The status, and by how much memory grew at most."""
    piece = bytes(256 << 10)
    async with raw_connection(port) as raw:
        tracemalloc.start()
        try:
            raw.send(head)
            for _ in range(BODY_BYTES // len(piece)):
                raw.send(b"40000\r\n" + piece + b"\r\n" if b"chunked" in head else piece)
                await raw.writer.drain()
            raw.send(b"0\r\n\r\n" if b"chunked" in head else b"")
            status, _, _ = await raw.response()
            return status, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.fixture(params=[None, RaftHttpToolsProtocol, RaftH11Protocol])
def any_kind(request: pytest.FixtureRequest) -> ServerKind:
    """Each server; the event loop makes no difference here."""
    return ServerKind("any", request.param, asyncio.new_event_loop)


HEADS = {
    "length": b"Content-Length: %d\r\n" % BODY_BYTES,
    "chunked": b"Transfer-Encoding: chunked\r\n",
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "DRAIN_SECONDS", PATIENCE_SECONDS)


@pytest.mark.parametrize("length", HEADS)
def test_a_refused_body_is_not_kept(any_kind: ServerKind, length: str) -> None:
    async def main() -> None:
        async with any_kind.serve(Handler(authorize=refuse)) as port:
            head = b"POST /raft?id=a&address=a:1 HTTP/1.1\r\nHost: x\r\n" + HEADS[length] + b"\r\n"
            status, peak = await send_and_measure(port, head)
            assert status == 403
            assert peak < 4 << 20

    any_kind.run(main)


def test_nor_in_an_aiohttp_application() -> None:
    async def main() -> None:
        app = web.Application()
        AiohttpEndpoint(Handler(authorize=refuse)).mount(app, "/raft")
        async with aiohttp_server(app) as port:
            head = (
                b"POST /raft?id=a&address=a:1 HTTP/1.1\r\nHost: x\r\n" + HEADS["length"] + b"\r\n"
            )
            status, peak = await send_and_measure(port, head)
            assert status == 403
            assert peak < 4 << 20

    asyncio.run(main())
