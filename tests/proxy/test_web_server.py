"""A web server that keeps its socket, behind a proxy: `auto` falls back, pings keep the stream."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import pytest

from rafthttp import allow_everybody
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.http import EchoReceiver, RecordingReceiver, uvicorn_server
from rafthttp.testing.ports import free_ports
from rafthttp.testing.proxies import Kind, Proxy, Upstream

pytestmark = pytest.mark.proxy

TEMPLATES = Path(__file__).parents[2] / "docs" / "how-to" / "proxies"


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_the_refusal_that_auto_needs_passes_and_pings_outlive_the_idle_timeout(
    kind: Kind, tmp_path: Path
) -> None:
    template = (TEMPLATES / ("nginx.conf" if kind == "nginx" else "haproxy.cfg")).read_text()
    address = ServerAddress(f"127.0.0.1:{free_ports(1)[0]}")

    async def main() -> None:
        handler = Handler(authorize=allow_everybody)
        async with uvicorn_server(handler, "h11", ws="websockets-sansio") as (port, _):
            upstream = Upstream("n1", address, f"127.0.0.1:{port}")
            with closing(
                Proxy(kind, tmp_path / "proxy", template, [upstream], {"IDLE": "1s"})
            ) as p:
                await asyncio.to_thread(p.start)
                layer = Layer(
                    "/raft", "127.0.0.1:1", Handler(), dial_tcp(), "auto", ping_seconds=0.3
                )
                accepting = asyncio.create_task(handler.accept())
                stream = await layer.dial(address, 5.0)
                echo, back = EchoReceiver(await accepting), RecordingReceiver(stream)
                begin = time.monotonic()
                while time.monotonic() < begin + 2.2:  # two idle timeouts, and nothing is sent
                    assert (echo.ended, back.ended) == (False, False), "cut"
                    await asyncio.sleep(0.05)
                stream.write(b"still here")
                await back.until_data(b"still here")
                stream.close()
                await back.until_ended()
                await echo.until_ended()
                await handler.close()

    asyncio.run(asyncio.wait_for(main(), 30.0))
