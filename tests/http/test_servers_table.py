"""The table of docs/reference/servers.md: each cell is run."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from rafthttp.http.access import allow_loopback, client_certificate
from rafthttp.http.aiohttp import AiohttpEndpoint
from rafthttp.http.dial import dial_tcp, dial_tls
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.listener import Listener
from rafthttp.http.uvicorn import RaftH11Protocol
from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.aiohttp import aiohttp_server
from rafthttp.testing.http import EchoReceiver, RecordingReceiver, uvicorn_server
from rafthttp.testing.ports import free_ports

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "servers.md"
COLUMNS = ["raw, plain", "raw, TLS", "WebSocket, plain", "WebSocket, TLS", "client certificate"]
UVICORN: dict[str, tuple[Any, str]] = {
    "uvicorn, `raft_protocol()`, httptools": (RaftHttpToolsProtocol, "none"),
    "uvicorn, `raft_protocol()`, h11": (RaftH11Protocol, "none"),
    "uvicorn as it is": ("auto", "websockets-sansio"),
}
PROCESSES = ("hypercorn", "granian")
SERVERS = ("`Listener`, the own one", *UVICORN, "aiohttp", *PROCESSES)

# The application of the servers that run in a process of their own.
ECHO = """
import asyncio
from rafthttp.http.access import allow_loopback, client_certificate
from rafthttp.http.handler import Handler
from rafthttp.testing.http import EchoReceiver

handler = Handler(authorize=RULE)

async def echo():
    while True:
        EchoReceiver(await handler.accept())

async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        await handler(scope, receive, send)
        return
    await receive()
    task = asyncio.create_task(echo())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    task.cancel()
    await send({"type": "lifespan.shutdown.complete"})
"""


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["server", *COLUMNS], "the table has other columns than this test"
    return {row[0]: row[1:] for row in cells[2:]}


CELLS = [
    pytest.param(server, column, said, id=f"{server}-{column}".replace("`", ""))
    for server, row in rows().items()
    for column, said in zip(COLUMNS, row, strict=True)
]


@dataclass(frozen=True)
class Pki:
    directory: Path
    authority: Any

    @property
    def files(self) -> dict[str, str]:
        return {n: str(self.directory / f"{n}.pem") for n in ("cert", "key", "ca")}

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.files["ca"])
        context.load_cert_chain(self.files["cert"], self.files["key"])
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.files["ca"])
        context.load_cert_chain(self.files["cert"], self.files["key"])
        return context


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), trustme.CA())
    issued = made.authority.issue_cert("127.0.0.1", common_name="member")
    made.authority.cert_pem.write_to_path(made.files["ca"])
    issued.cert_chain_pems[0].write_to_path(made.files["cert"])
    # granian reads keys in PKCS #8 only.
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encoded = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    Path(made.files["key"]).write_bytes(encoded)
    return made


@asynccontextmanager
async def served(server: str, rule: str, pki: Pki | None, directory: Path) -> AsyncGenerator[int]:
    """An endpoint that echoes; yields its port."""
    if server in PROCESSES:
        async with in_a_process(server, rule, pki, directory) as port:
            yield port
        return
    rules = {"allow_loopback": allow_loopback, "client_certificate": client_certificate}
    handler = Handler(authorize=rules[rule])

    async def echo() -> None:
        while True:
            EchoReceiver(await handler.accept())

    echoing = asyncio.create_task(echo())
    try:
        async with in_this_process(server, handler, pki) as port:
            yield port
    finally:
        await handler.close()
        with pytest.raises(PeerUnreachableError):
            await echoing


@asynccontextmanager
async def in_this_process(server: str, handler: Handler, pki: Pki | None) -> AsyncGenerator[int]:
    context = None if pki is None else pki.server()
    if server in UVICORN:
        http, ws = UVICORN[server]
        options: dict[str, Any] = {"ws": ws}
        if pki is not None:
            files = pki.files
            options |= {"ssl_certfile": files["cert"], "ssl_keyfile": files["key"]}
            options |= {"ssl_ca_certs": files["ca"], "ssl_cert_reqs": ssl.CERT_REQUIRED}
        async with uvicorn_server(handler, http, **options) as (port, _):
            yield port
    elif server == "aiohttp":
        app = web.Application()
        AiohttpEndpoint(handler).mount(app, "/raft")
        async with aiohttp_server(app, ssl=context) as port:
            yield port
    else:
        async with Listener(handler, "127.0.0.1", 0, ssl=context) as listener:
            yield listener.port


@asynccontextmanager
async def in_a_process(
    server: str, rule: str, pki: Pki | None, directory: Path
) -> AsyncGenerator[int]:
    (port,) = free_ports(1)
    (directory / "echo_app.py").write_text(ECHO.replace("RULE", rule))
    commands = {
        "hypercorn": ["hypercorn", "--bind", f"127.0.0.1:{port}", "echo_app:app"],
        "granian": ["granian", "--interface", "asgi", "--port", str(port), "echo_app:app"],
    }
    command = [sys.executable, "-m", *commands[server]]
    if pki is not None and server == "hypercorn":
        command += ["--certfile", pki.files["cert"], "--keyfile", pki.files["key"]]
        command += ["--ca-certs", pki.files["ca"], "--verify-mode", "CERT_REQUIRED"]
    elif pki is not None:
        command += ["--ssl-certificate", pki.files["cert"], "--ssl-keyfile", pki.files["key"]]
        command += ["--ssl-ca", pki.files["ca"], "--ssl-client-verify"]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - this loop has nothing else to do yet
            command, cwd=directory, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(20.0):
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield port
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 5.0)
        finally:
            process.kill()
            process.wait()


async def exchange(port: int, carrier: str, pki: Pki | None) -> None:
    dial, scheme = (dial_tcp(), "http") if pki is None else (dial_tls(pki.client()), "https")
    layer = Layer("/raft", "127.0.0.1:1", Handler(), dial, carrier, scheme=scheme)
    try:
        stream = await layer.dial(ServerAddress(f"127.0.0.1:{port}"), 5.0)
        receiver = RecordingReceiver(stream)
        sent = bytes(range(256)) * 4096
        stream.write(sent)
        await receiver.until_data(sent)
        stream.abort()
        await receiver.until_ended()
    finally:
        await layer.close()


def test_the_table_names_every_server() -> None:
    assert tuple(rows()) == SERVERS


@pytest.mark.parametrize(("server", "column", "said"), CELLS)
def test_cell(server: str, column: str, said: str, pki: Pki, tmp_path: Path) -> None:
    async def main() -> None:
        if column == "client certificate":
            async with served(server, "client_certificate", pki, tmp_path) as port:
                if said == "yes":
                    await exchange(port, "auto", pki)
                    return
                assert said == "no"
                with pytest.raises(PeerUnreachableError, match="403"):
                    await exchange(port, "auto", pki)
            return
        carrier, _, tls = column.partition(", ")
        used = pki if tls == "TLS" else None
        async with served(server, "allow_loopback", used, tmp_path) as port:
            if said == "ok":
                await exchange(port, carrier.lower(), used)
                return
            assert said == "426"
            with pytest.raises(PeerUnreachableError, match="426"):
                await exchange(port, carrier.lower(), used)
            await exchange(port, "auto", used)

    asyncio.run(main())
