"""The endpoint in aiohttp applications."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO

import httpx
import pytest
from aiohttp import web

from rafthttp.http import aiohttp as adapter
from rafthttp.http.aiohttp import AiohttpEndpoint, setup
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import ForwardRequest, Handler
from rafthttp.http.layer import Layer
from rafthttp.http.messages import ForwardResponse
from rafthttp.node import Node
from rafthttp.raft.errors import ConfigError, PeerUnreachableError
from rafthttp.raft.fsm import FSM, FSMSnapshot
from rafthttp.raft.types import Log, ServerAddress, ServerID
from rafthttp.testing.aiohttp import aiohttp_server
from rafthttp.testing.http import EchoReceiver, RecordingReceiver, raw_connection, until

UPGRADE = b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.path}")


def application(handler: Handler) -> web.Application:
    app = web.Application()
    app.router.add_get("/hello", hello)
    AiohttpEndpoint(handler).mount(app, "/raft")
    return app


@asynccontextmanager
async def endpoint(**options: Any) -> AsyncGenerator[tuple[Handler, Layer, int]]:
    carrier = options.pop("carrier", "raw")
    handler = Handler(**options)
    layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp(), carrier)
    try:
        async with aiohttp_server(application(handler)) as port:
            yield handler, layer, port
    finally:
        await layer.close()


async def stream_pair(layer: Layer, port: int) -> tuple[Any, RecordingReceiver]:
    accepting = asyncio.create_task(layer.accept())
    stream = await layer.dial(ServerAddress(f"127.0.0.1:{port}"), 5.0)
    EchoReceiver(await accepting)
    return stream, RecordingReceiver(stream)


@pytest.mark.parametrize("carrier", ["raw", "websocket"])
def test_streams_and_routes_share_a_port(carrier: str) -> None:
    async def main() -> None:
        async with endpoint(carrier=carrier) as (_, layer, port):
            stream, receiver = await stream_pair(layer, port)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert (await client.get("/hello")).text == "hello /hello"
                assert (await client.get("/raft")).status_code == 400
                assert (await client.get("/raft/")).status_code == 404
            sent = bytes(range(256)) * 4000
            stream.write(sent)
            await receiver.until_data(sent)
            stream.close()
            await receiver.until_ended()

    asyncio.run(main())


def test_joins_and_forwards() -> None:
    async def forward(request: ForwardRequest) -> ForwardResponse:
        return ForwardResponse(200, request.op.encode() + request.body)

    async def main() -> None:
        async with endpoint(forward=forward, forward_size_bytes_max=8) as (handler, layer, port):
            member = ServerAddress(f"127.0.0.1:{port}")
            answer = await layer.forward(member, "apply", b"body", 5.0)
            assert (answer.status, answer.body) == (200, b"applybody")
            assert (await layer.forward(member, "apply", b"x" * 9, 5.0)).status == 413

            async def answer_one() -> str:
                async for change in handler.requests():
                    change.respond()
                    return str(change)
                raise AssertionError("closed")

            answering = asyncio.create_task(answer_one())
            await layer.join(ServerID("n9"), member, 5.0)
            assert "n9" in await answering

    asyncio.run(main())


def test_bytes_behind_a_waiting_upgrade_are_the_streams_first() -> None:
    async def main() -> None:
        async with endpoint() as (handler, _, port), raw_connection(port) as raw:
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            sent = bytes(1 << 20)
            raw.send(sent)
            await asyncio.sleep(0)
            receiver = RecordingReceiver(await handler.accept())
            assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
            await receiver.until_data(sent)

    asyncio.run(main())


def test_a_client_that_left_is_not_accepted() -> None:
    async def main() -> None:
        async with endpoint() as (handler, _, port):
            async with raw_connection(port) as raw:
                raw.send(UPGRADE)
                await until(lambda: handler._upgrades._items)
            accepting = asyncio.create_task(handler.accept())
            async with raw_connection(port) as raw:
                raw.send(UPGRADE)
                assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
                receiver = RecordingReceiver(await accepting)
                raw.send(b"second")
                await receiver.until_data(b"second")

    asyncio.run(main())


def test_where_aiohttp_cancels_a_client_that_left_waits_no_longer() -> None:
    async def main() -> None:
        handler = Handler(timeout=60.0)
        async with aiohttp_server(application(handler), handler_cancellation=True) as port:
            async with raw_connection(port) as raw:
                raw.send(UPGRADE)
                await until(lambda: handler._upgrades._items)
            await until(lambda: not handler._upgrades._items)
        await handler.close()

    asyncio.run(main())


def test_nobody_accepts_in_time() -> None:
    """What was held meanwhile goes back to aiohttp, which closes as it was told."""

    async def main() -> None:
        async with endpoint(timeout=0.3) as (handler, _, port), raw_connection(port) as raw:
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            raw.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, _ = await raw.response()
            assert (status, headers["retry-after"]) == (503, "1")
            assert headers["connection"] == "close"
            assert await raw.rest() == b""

    asyncio.run(main())


def test_a_stop_ends_streams_and_refuses_what_waits() -> None:
    async def main() -> None:
        async with (
            aiohttp_server_of(handler := Handler()) as (app, port),
            raw_connection(port) as raw,
        ):
            layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp())
            _, receiver = await stream_pair(layer, port)
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            await app.shutdown()
            assert (await raw.response())[0] == 503
            await receiver.until_ended()
            with pytest.raises(PeerUnreachableError, match="503"):
                await layer.dial(ServerAddress(f"127.0.0.1:{port}"), 5.0)
            await layer.close()

    asyncio.run(main())


def test_a_stop_cuts_off_a_forward_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "STOP_SECONDS", 0.05)

    async def main() -> None:
        entered = asyncio.Event()

        async def forward(request: ForwardRequest) -> ForwardResponse:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError("cut off before")

        handler = Handler(forward=forward)
        async with aiohttp_server_of(handler) as (app, port), raw_connection(port) as raw:
            raw.send(b"PUT /raft?op=apply HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await entered.wait()
            await app.shutdown()
            status, headers, _ = await raw.response()
            assert status == 503
            assert "raft-outcome" not in headers, "it may have been done"

    asyncio.run(main())


@asynccontextmanager
async def aiohttp_server_of(handler: Handler) -> AsyncGenerator[tuple[web.Application, int]]:
    app = application(handler)
    async with aiohttp_server(app) as port:
        yield app, port


class Counter(FSM):
    """A state machine for tests that take no snapshot."""

    def apply(self, log: Log) -> int:
        return log.index

    def snapshot(self) -> FSMSnapshot:
        raise NotImplementedError

    def restore(self, source: BinaryIO) -> None:
        raise NotImplementedError


def test_a_path_that_is_not_the_nodes() -> None:
    node = Node("n1", "127.0.0.1:1", fsm=Counter(), path="/app/raft")
    with pytest.raises(ConfigError, match="cannot mount"):
        setup(web.Application(), node, "/other")
    setup(web.Application(), node, "/raft")


SERVER = """
import sys
from aiohttp import web
from rafthttp import FSM, Node
from rafthttp.http.aiohttp import setup

class Machine(FSM):
    def apply(self, log): return log.index
    def snapshot(self): raise NotImplementedError
    def restore(self, chunks): raise NotImplementedError

port = int(sys.argv[1])
node = Node(sys.argv[2], f"127.0.0.1:{port}", fsm=Machine(), bootstrap=len(sys.argv) == 3,
            join=sys.argv[3:])

async def write(request):
    return web.Response(text=str(await node.apply(b"x")))

async def voters(request):
    servers = node.raft.get_configuration().configuration.servers
    return web.Response(text=str(sum(s.suffrage.name == "VOTER" for s in servers)))

app = web.Application()
app.router.add_post("/write", write)
app.router.add_get("/voters", voters)
setup(app, node)
web.run_app(app, host="127.0.0.1", port=port, print=None)
"""


@pytest.mark.process
def test_two_nodes_under_run_app_stop_on_sigterm_within_five_seconds() -> None:
    """With streams open both ways, and a handshake that nobody ends."""
    from rafthttp.testing.ports import free_ports
    from rafthttp.testing.processes import eventually

    ports = free_ports(2)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    joins: list[list[str]] = [[], urls[:1]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port), f"n{number}", *join], stderr=subprocess.PIPE
        )
        for number, (port, join) in enumerate(zip(ports, joins, strict=True))
    ]
    try:
        with httpx.Client(timeout=5.0, trust_env=False) as client:

            def whole() -> bool:
                with suppress(httpx.HTTPError):
                    return all(client.get(f"{url}/voters").text == "2" for url in urls)
                return False

            eventually(whole, "both are voters")
            assert [client.post(f"{url}/write").status_code for url in urls] == [200, 200]

        async def during_a_handshake() -> None:
            async with raw_connection(ports[1]) as half, raw_connection(ports[1]):
                half.send(UPGRADE[:40])
                begin = time.monotonic()
                for process in reversed(processes):
                    process.send_signal(signal.SIGTERM)
                codes = [await asyncio.to_thread(p.wait, 20.0) for p in processes]
                assert time.monotonic() - begin < 5.0
                assert codes == [0, 0]

        asyncio.run(during_a_handshake())
    finally:
        errors: list[str] = []
        for process in processes:
            process.kill()
            errors.append(process.communicate()[1].decode())
    assert not any("Traceback" in text for text in errors), "\n".join(errors)
