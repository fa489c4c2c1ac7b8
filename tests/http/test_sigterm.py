"""SIGTERM while clients are at every step of a handshake: each server ends, and logs no traceback.

A bound of 5 s, with streams open, half a request head, and upgrades that wait to be authorised or
accepted. What hypercorn logs of its own is told apart by an application without this package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.web_servers import COMMANDS, served, stop_during_handshakes, without

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "servers.md"
# Of the command lines that are run, what says where and whom to serve, and no more.
USUAL = ("--bind", "--port", "--interface", "--ws")
# asyncio/streams.py of CPython before 3.13 lacks `if task.cancelled()` above this line.
CAUSE = "in callback\n    exc = task.exception()\n"

# One stream is accepted, and nobody accepts the next.
ENDPOINT = """
import asyncio, sys
from rafthttp.http.access import allow_loopback
from rafthttp.http.handler import Handler
from rafthttp.testing.http import EchoReceiver

async def authorize(peer):
    name = peer.headers.get("X-Client")
    print("request", name, flush=True)
    if name.startswith("unauthorised"):
        await asyncio.Event().wait()
    return await allow_loopback(peer)

handler = Handler(authorize=authorize)

async def echo():
    EchoReceiver(await handler.accept())
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        await handler(scope, receive, send)
        return
    await receive()
    echoing = asyncio.create_task(echo())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await handler.close()
    await echoing
    await send({"type": "lifespan.shutdown.complete"})
"""
UVICORN_RAW = """
if __name__ == "__main__":
    import uvicorn
    from rafthttp.http.uvicorn import raft_protocol
    uvicorn.run(app, port=int(sys.argv[1]), http=raft_protocol(), ws="none")
"""
AIOHTTP = """
from aiohttp import web
from rafthttp.http.aiohttp import AiohttpEndpoint

async def life(app):
    echoing = asyncio.create_task(echo())
    yield
    await handler.close()
    await echoing

app = web.Application()
app.cleanup_ctx.append(life)
AiohttpEndpoint(handler).mount(app, "/raft")
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
RAW_SERVERS = {"uvicorn, raft_protocol()": ASGI + UVICORN_RAW, "aiohttp": AIOHTTP}


@pytest.mark.parametrize("server", list(RAW_SERVERS))
def test_with_raw_and_websocket_handshakes(server: str, tmp_path: Path) -> None:
    code = ENDPOINT + RAW_SERVERS[server]
    with served(lambda port: ["-m", "served", str(port)], code, tmp_path) as process:
        told = stop_during_handshakes(process, ("raw", "websocket"))
    assert "Traceback" not in told, told
    assert "ERROR" not in told, told


@pytest.mark.parametrize("server", list(COMMANDS))
def test_with_websocket_handshakes(
    server: str, tmp_path: Path, hypercorns_own: Callable[[str], set[str]]
) -> None:
    command = COMMANDS[server]
    with served(
        lambda port: ["-m", *command(port, "served:app")], ENDPOINT + ASGI, tmp_path
    ) as process:
        told = stop_during_handshakes(process, ("websocket",))
    if server.startswith("hypercorn"):
        own = hypercorns_own(server)
        assert all(CAUSE in text for text in own), own
        if sys.version_info >= (3, 13):
            assert not own, "nothing is to be filtered: asyncio logs no cancelled connection there"
        told = without(own, told)
    assert "Traceback" not in told, told
    assert "ERROR" not in told, told


def test_the_page_names_the_options_that_make_it_so() -> None:
    page = PAGE.read_text("utf-8")
    conditions = page[page.index("**Stops.**") : page.index("uvicorn and aiohttp need no option")]
    for server, command in COMMANDS.items():
        for argument in command(1, "app"):
            if argument.startswith("--") and not argument.startswith(USUAL):
                assert f"`{argument.replace('=', ' ')}`" in conditions, server


def test_only_what_hypercorn_logs_of_its_own_is_taken_out() -> None:
    known = "Exception in callback f at 0x1a\nTraceback\n  g()\nasyncio.exceptions.CancelledError\n"
    other = known.replace("g()", "h()")
    assert without({known.replace("0x1a", "0x")}, f"a\n{known}{other}b\n") == f"a\n{other}b\n"
    assert without(set(), known) == known
