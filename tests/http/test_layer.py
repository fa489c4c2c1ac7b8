"""Dialling: deadlines, sockets that must not leak, TLS, IPv6."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.dial import Dial, dial_tcp, dial_tls
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.listener import Listener
from rafthttp.http.stream import TransportStream
from rafthttp.raft.errors import (
    ConfigError,
    ForwardError,
    HandshakeError,
    MembershipError,
    Outcome,
    PeerUnreachableError,
)
from rafthttp.raft.transport.protocols import StreamLayer
from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.testing.http import EchoReceiver, RawConnection, RecordingReceiver, ServerKind, until


def local(port: int) -> ServerAddress:
    return ServerAddress(f"127.0.0.1:{port}")


def a_layer(dial: Dial | None = None, scheme: str = "http") -> Layer:
    return Layer("/raft", "127.0.0.1:1", Handler(), dial or dial_tcp(), scheme=scheme)


class Watched:
    """A dial that remembers its streams, to see that they are closed."""

    def __init__(self, dial: Dial) -> None:
        self.streams: list[TransportStream] = []
        self._dial = dial

    async def __call__(self, address: ServerAddress, timeout: float) -> TransportStream:
        stream = await self._dial(address, timeout)
        self.streams.append(stream)
        return stream

    async def until_closed(self) -> None:
        await until(lambda: all(stream._lost for stream in self.streams))


@asynccontextmanager
async def answering(
    answer: Callable[[RawConnection], Awaitable[None]], context: ssl.SSLContext | None = None
) -> AsyncGenerator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = RawConnection(reader, writer)
        try:
            await answer(raw)
            await raw.rest()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def test_it_is_a_stream_layer() -> None:
    layer: StreamLayer = a_layer()
    assert layer.address == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "raft"}, "path"),
        ({"local_address": ":80"}, "local_address"),
        ({"carrier": "pigeon"}, "carrier"),
        ({"scheme": "ftp"}, "scheme"),
    ],
)
def test_arguments_against_their_grammar(arguments: dict[str, str], said: str) -> None:
    given = {"path": "/raft", "local_address": "127.0.0.1:1"} | arguments
    with pytest.raises(ConfigError, match=said):
        Layer(
            given["path"],
            given["local_address"],
            Handler(),
            dial_tcp(),
            carrier=given.get("carrier", "auto"),
            scheme=given.get("scheme", "http"),
        )


def test_bytes_glued_to_the_101_are_the_streams_first(on_loop: ServerKind) -> None:
    async def answer(raw: RawConnection) -> None:
        await raw.head()
        raw.send(b"HTTP/1.1 101 X\r\nUpgrade: raft\r\n\r\nglued")
        raw.send(b" and more")

    async def main() -> None:
        async with answering(answer) as port:
            stream = await a_layer().dial(local(port), 5.0)
            receiver = RecordingReceiver(stream)
            await receiver.until_data(b"glued and more")
            stream.abort()
            await receiver.until_ended()

    on_loop.run(main)


async def _silence(raw: RawConnection) -> None:
    await raw.head()


async def _half_a_head(raw: RawConnection) -> None:
    await raw.head()
    raw.send(b"HTTP/1.1 101 Switching Protocols\r\n")


async def _dripping(raw: RawConnection) -> None:
    await raw.head()
    while not raw.writer.is_closing():
        raw.send(b"HTTP/1.1 102 Processing\r\n\r\n"[:1])
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [_silence, _half_a_head, _dripping])
def test_the_deadline_covers_the_whole_handshake_and_closes_the_socket(
    on_loop: ServerKind, answer: Callable[[RawConnection], Awaitable[None]]
) -> None:
    async def main() -> None:
        watched = Watched(dial_tcp())
        loop = asyncio.get_running_loop()
        async with answering(answer) as port:
            started = loop.time()
            with pytest.raises(PeerUnreachableError):
                await a_layer(watched).dial(local(port), 0.1)
            assert loop.time() - started < 2.0
            await watched.until_closed()
            assert len(watched.streams) == 1

    on_loop.run(main)


def test_the_deadline_covers_the_headers_and_the_dial(on_loop: ServerKind) -> None:
    async def slow_headers() -> Mapping[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def slow_dial(address: ServerAddress, timeout: float) -> TransportStream:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        for layer in (
            Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp(), headers=slow_headers),
            a_layer(slow_dial),
        ):
            with pytest.raises(PeerUnreachableError, match="did not answer within"):
                await layer.dial(local(1), 0.05)

    on_loop.run(main)


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n", b""],
)
def test_a_failed_handshake_closes_the_socket(on_loop: ServerKind, response: bytes) -> None:
    async def answer(raw: RawConnection) -> None:
        await raw.head()
        raw.send(response)
        raw.writer.close()

    async def main() -> None:
        watched = Watched(dial_tcp())
        async with answering(answer) as port:
            with pytest.raises(PeerUnreachableError) as caught:
                await a_layer(watched).dial(local(port), 5.0)
            assert isinstance(caught.value.__cause__, HandshakeError)
            await watched.until_closed()

    on_loop.run(main)


def test_a_cancelled_dial_closes_the_socket(on_loop: ServerKind) -> None:
    async def main() -> None:
        watched = Watched(dial_tcp())
        async with answering(_silence) as port:
            dialling = asyncio.create_task(a_layer(watched).dial(local(port), 5.0))
            await until(lambda: watched.streams)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            await watched.until_closed()

    on_loop.run(main)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{free}", "nonsense", "127.0.0.1:99999", "a.invalid:80", "[::2]:1"]
)
def test_nobody_there(on_loop: ServerKind, free_port: int, address: str) -> None:
    async def main() -> None:
        with pytest.raises(PeerUnreachableError):
            await a_layer().dial(ServerAddress(address.format(free=free_port)), 0.5)

    on_loop.run(main)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_no_time_left(timeout: float, silent_port: int) -> None:
    with pytest.raises(PeerUnreachableError, match="no time left"):
        asyncio.run(a_layer().dial(local(silent_port), timeout))


def test_a_closed_layer_dials_nobody(silent_port: int) -> None:
    async def main() -> None:
        layer = a_layer()
        await layer.close()
        await layer.close()
        with pytest.raises(PeerUnreachableError, match="closed"):
            await layer.dial(local(silent_port), 5.0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "header", [("A", "s3cret\r\nX: b"), ("A", "s3cret\0"), ("A", "ä"), ("A:", "b"), ("", "b")]
)
def test_headers_cannot_smuggle_others(
    on_loop: ServerKind, silent_port: int, header: tuple[str, str]
) -> None:
    async def headers() -> Mapping[str, str]:
        return dict([header])

    async def main() -> None:
        watched = Watched(dial_tcp())
        layer = Layer("/raft", "127.0.0.1:1", Handler(), watched, headers=headers)
        with pytest.raises(PeerUnreachableError, match="cannot be sent") as dialled:
            await layer.dial(local(silent_port), 5.0)
        with pytest.raises(ForwardError, match="cannot be sent") as forwarded:
            await layer.forward(local(silent_port), "op", b"", 5.0)
        assert forwarded.value.outcome is Outcome.DEFINITE
        with pytest.raises(MembershipError, match="cannot be sent") as joined:
            await layer.join(ServerID("n1"), local(silent_port), 0.05)
        assert not watched.streams
        for caught in (dialled, forwarded, joined):
            assert "s3cret" not in str(caught.value)

    on_loop.run(main)


def test_headers_that_cannot_be_made(on_loop: ServerKind, silent_port: int) -> None:
    async def headers() -> Mapping[str, str]:
        raise FileNotFoundError("token.txt")

    async def main() -> None:
        layer = Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp(), headers=headers)
        with pytest.raises(PeerUnreachableError, match=r"FileNotFoundError: token.txt"):
            await layer.dial(local(silent_port), 5.0)
        with pytest.raises(ForwardError, match=r"token.txt") as caught:
            await layer.forward(local(silent_port), "op", b"", 5.0)
        assert caught.value.outcome is Outcome.DEFINITE
        with pytest.raises(MembershipError, match=r"token.txt"):
            await layer.leave(ServerID("n1"), local(silent_port), 0.05)

    on_loop.run(main)


def test_a_dial_of_ones_own_may_raise_what_sockets_raise(on_loop: ServerKind) -> None:
    async def dial(address: ServerAddress, timeout: float) -> TransportStream:
        raise ConnectionRefusedError("no route through the proxy")

    async def main() -> None:
        layer = a_layer(dial)
        with pytest.raises(PeerUnreachableError, match="no route"):
            await layer.dial(local(1), 5.0)
        with pytest.raises(ForwardError, match="no route") as caught:
            await layer.forward(local(1), "op", b"", 5.0)
        assert caught.value.outcome is Outcome.DEFINITE
        with pytest.raises(MembershipError, match="no route"):
            await layer.join(ServerID("n1"), local(1), 0.05)

    on_loop.run(main)


def test_ipv6(on_loop: ServerKind) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")

    async def main() -> None:
        handler = Handler()
        async with Listener(handler, "::1", 0) as listener:
            accepting = asyncio.create_task(handler.accept())
            stream = await a_layer().dial(ServerAddress(f"[::1]:{listener.port}"), 5.0)
            assert stream.peer == f"[::1]:{listener.port}"
            assert (await accepting).peer.startswith("[::1]:")
            stream.abort()

    on_loop.run(main)


# -- TLS


class Pki:
    """An authority, a server, and a client it knows."""

    def __init__(self) -> None:
        self.authority: Any = trustme.CA()  # its stubs know pyOpenSSL, which is not installed
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1", "localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        self.authority.configure_trust(self.client)

    def demand_client_certificates(self) -> None:
        self.authority.configure_trust(self.server)
        self.server.verify_mode = ssl.CERT_REQUIRED


def test_tls_both_ways_with_certificates(on_loop: ServerKind) -> None:
    pki = Pki()
    pki.demand_client_certificates()
    pki.authority.issue_cert("member.example").configure_cert(pki.client)
    asked: list[PeerInfo] = []

    async def note(peer: PeerInfo) -> Principal | Refusal:
        asked.append(peer)
        return Principal("member")

    async def main() -> None:
        handler = Handler(authorize=note)
        async with Listener(handler, "127.0.0.1", 0, ssl=pki.server) as listener:
            accepting = asyncio.create_task(handler.accept())
            layer = a_layer(dial_tls(pki.client), "https")
            stream = await layer.dial(local(listener.port), 5.0)
            assert isinstance(stream, TransportStream)
            assert stream.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None
            receiver, _ = RecordingReceiver(stream), EchoReceiver(await accepting)
            sent = bytes(range(256)) * 20_000
            stream.write(sent)
            await receiver.until_data(sent)
            certificate = asked[0].certificate
            assert certificate is not None
            assert certificate["subjectAltName"] == (("DNS", "member.example"),)
            stream.close()
            await receiver.until_ended()

    on_loop.run(main)


def test_only_http_1_1_is_offered(on_loop: ServerKind) -> None:
    pki = Pki()
    pki.server.set_alpn_protocols(["h2", "http/1.1"])

    async def main() -> None:
        handler = Handler()
        async with Listener(handler, "127.0.0.1", 0, ssl=pki.server) as listener:
            accepting = asyncio.create_task(handler.accept())
            stream = await a_layer(dial_tls(pki.client)).dial(local(listener.port), 5.0)
            assert isinstance(stream, TransportStream)
            chosen = stream.transport.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == "http/1.1"
            (await accepting).abort()
            await until(lambda: stream._lost)

    on_loop.run(main)


def test_a_refused_client_certificate_is_hinted_at(on_loop: ServerKind) -> None:
    """TLS 1.3 tells the client only when it reads, as an alert or a mere end."""
    pki = Pki()
    pki.demand_client_certificates()

    async def main() -> None:
        watched = Watched(dial_tls(pki.client))
        async with Listener(Handler(), "127.0.0.1", 0, ssl=pki.server) as listener:
            with pytest.raises(PeerUnreachableError, match=r"(?i)certificate"):
                await a_layer(watched).dial(local(listener.port), 5.0)
            await watched.until_closed()

    on_loop.run(main)


def test_a_server_nobody_vouches_for_is_refused(on_loop: ServerKind) -> None:
    pki = Pki()

    async def main() -> None:
        async with Listener(Handler(), "127.0.0.1", 0, ssl=pki.server) as listener:
            layer = a_layer(dial_tls(ssl.create_default_context()))
            with pytest.raises(PeerUnreachableError, match=r"(?i)certificate"):
                await layer.dial(local(listener.port), 5.0)
            named = dial_tls(pki.client, server_hostname="other.example")
            with pytest.raises(PeerUnreachableError, match=r"(?i)certificate"):
                await a_layer(named).dial(local(listener.port), 5.0)

    on_loop.run(main)


def test_the_deadline_covers_the_tls_handshake(on_loop: ServerKind, silent_port: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(PeerUnreachableError):
            await a_layer(dial_tls(ssl.create_default_context())).dial(local(silent_port), 0.1)
        assert loop.time() - started < 2.0

    on_loop.run(main)


def test_a_plain_server_is_no_tls_server(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with Listener(Handler(), "127.0.0.1", 0) as listener:
            layer = a_layer(dial_tls(ssl.create_default_context()))
            with pytest.raises(PeerUnreachableError, match="does not speak TLS"):
                await layer.dial(local(listener.port), 5.0)

    on_loop.run(main)


def test_a_server_context_cannot_dial() -> None:
    with pytest.raises(ConfigError, match="client context"):
        dial_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
