"""TLS below the endpoint: names, certificates that change, and refusals in a sentence."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from rafthttp.http.access import PeerInfo, Principal, Refusal, client_certificate
from rafthttp.http.dial import dial_tls
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.listener import Listener
from rafthttp.raft.errors import MembershipError, PeerUnreachableError
from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.testing.http import EchoReceiver, RecordingReceiver, ServerKind, raw_connection, until


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


def server_context(certificate: Any, client_authority: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        client_authority.configure_trust(context)
    return context


def client_context(authority: Any, certificate: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


class Edge:
    """A listener with TLS, and a layer that dials it."""

    def __init__(self, handler: Handler, layer: Layer, port: int) -> None:
        self.handler, self.layer = handler, layer
        self.address = ServerAddress(f"127.0.0.1:{port}")

    async def pair(self) -> tuple[Any, RecordingReceiver]:
        accepting = asyncio.create_task(self.layer.accept())
        try:
            stream = await self.layer.dial(self.address, 5.0)
        except BaseException:
            accepting.cancel()
            raise
        EchoReceiver(await accepting)
        return stream, RecordingReceiver(stream)

    async def refusal(self) -> str:
        with pytest.raises(PeerUnreachableError) as caught:
            await self.pair()
        return str(caught.value)


@asynccontextmanager
async def edge(
    server: ssl.SSLContext | None, client: ssl.SSLContext, name: str | None = None, **options: Any
) -> AsyncGenerator[Edge]:
    handler = Handler(**options)
    dial = dial_tls(client, server_hostname=name)
    layer = Layer("/raft", "127.0.0.1:1", handler, dial, scheme="https")
    async with Listener(handler, "127.0.0.1", 0, ssl=server) as listener:
        try:
            yield Edge(handler, layer, listener.port)
        finally:
            await layer.close()


def test_the_peers_certificate_is_known_and_the_protocol_is_http_1_1(
    on_loop: ServerKind, authority: Any
) -> None:
    seen: list[PeerInfo] = []

    async def authorize(peer: PeerInfo) -> Principal | Refusal:
        seen.append(peer)
        return await client_certificate(peer)

    async def main() -> None:
        server = server_context(authority.issue_cert("127.0.0.1"), authority)
        server.set_alpn_protocols(["h2", "http/1.1"])
        client = client_context(authority, authority.issue_cert("member", common_name="n7"))
        async with edge(server, client, authorize=authorize) as here:
            stream, receiver = await here.pair()
            tls: Any = stream.transport.get_extra_info("ssl_object")
            assert tls.selected_alpn_protocol() == "http/1.1"
            stream.write(b"secret")
            await receiver.until_data(b"secret")
        (peer,) = seen
        assert peer.certificate is not None
        assert await client_certificate(peer) == Principal("n7")

    on_loop.run(main)


def test_without_a_client_certificate_the_rule_refuses(authority: Any) -> None:
    async def main() -> None:
        server = server_context(authority.issue_cert("127.0.0.1"))
        async with edge(server, client_context(authority), authorize=client_certificate) as here:
            assert "403" in await here.refusal()

    asyncio.run(main())


def test_the_name_dialled_is_asked_for_and_verified(authority: Any) -> None:
    async def main() -> None:
        names: list[str | None] = []
        server = server_context(authority.issue_cert("node.example"))
        server.sni_callback = lambda _, name, __: names.append(name)
        async with edge(server, client_context(authority)) as here:
            assert "its certificate is not for 127.0.0.1" in await here.refusal()
        async with edge(server, client_context(authority), "node.example") as here:
            await here.pair()
        assert names[-1] == "node.example"

    asyncio.run(main())


def test_an_expired_certificate_in_one_sentence(authority: Any) -> None:
    async def main() -> None:
        past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        server = server_context(authority.issue_cert("127.0.0.1", not_after=past))
        async with edge(server, client_context(authority)) as here:
            text = await here.refusal()
            assert text == f"no TLS with {here.address}: its certificate has expired"

    asyncio.run(main())


def test_an_unknown_authority_and_a_server_without_tls(on_loop: ServerKind, authority: Any) -> None:
    async def main() -> None:
        server = server_context(trustme.CA().issue_cert("127.0.0.1"))
        async with edge(server, client_context(authority)) as here:
            assert "its certificate is not trusted" in await here.refusal()
        async with edge(None, client_context(authority)) as here:
            assert "it does not speak TLS there" in await here.refusal()

    on_loop.run(main)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of another authority"])
def test_a_refused_client_certificate_is_explained(
    on_loop: ServerKind, authority: Any, version: ssl.TLSVersion, shown: str
) -> None:
    """In TLS 1.3 the dialer's handshake is over when the server refuses."""

    async def main() -> None:
        server = server_context(authority.issue_cert("127.0.0.1"), authority)
        stranger = None if shown == "none" else trustme.CA().issue_cert("stranger")
        client = client_context(authority, stranger)
        client.maximum_version = version
        async with edge(server, client) as here:
            assert "client certificate" in await here.refusal()
            with pytest.raises(MembershipError, match="client certificate"):
                await here.layer.join(ServerID("n9"), here.address, 0.3)

    on_loop.run(main)


def test_new_connections_show_the_new_certificate_and_old_streams_live_on(
    on_loop: ServerKind, authority: Any
) -> None:
    shown: list[str] = []

    async def authorize(peer: PeerInfo) -> Principal | Refusal:
        assert peer.certificate is not None
        shown.append(str(peer.certificate["serialNumber"]))
        return await client_certificate(peer)

    def serial(stream: Any) -> str:
        return str(stream.certificate["serialNumber"])

    async def main() -> None:
        server = server_context(authority.issue_cert("127.0.0.1"), authority)
        client = client_context(authority, authority.issue_cert("member"))
        async with edge(server, client, authorize=authorize) as here:
            old, received = await here.pair()
            same, _ = await here.pair()
            assert serial(same) == serial(old)
            assert shown[0] == shown[1]
            authority.issue_cert("127.0.0.1").configure_cert(server)
            new, _ = await here.pair()
            assert serial(new) != serial(old)
            assert shown[2] == shown[0], "the dialer's own is as it was"
            authority.issue_cert("member").configure_cert(client)
            await here.pair()
            assert shown[3] != shown[0]
            old.write(b"still here")
            await received.until_data(b"still here")

    on_loop.run(main)


def test_a_client_that_never_ends_its_tls_handshake_is_closed(authority: Any) -> None:
    async def main() -> None:
        server = server_context(authority.issue_cert("127.0.0.1"))
        listener = Listener(Handler(), "127.0.0.1", 0, ssl=server, handshake_timeout=0.2)
        async with listener, raw_connection(listener.port) as raw:
            raw.send(b"\x16\x03\x01")
            assert await raw.rest() == b""
            await until(lambda: not listener._streams)

    asyncio.run(main())
