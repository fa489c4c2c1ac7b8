"""From the upgrade to a stream: every server, both loops, real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.raft.errors import HandshakeError, PeerUnreachableError
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.http import (
    EchoReceiver,
    RawConnection,
    RecordingReceiver,
    ServerKind,
    raw_connection,
    until,
)

TESTDATA = Path(__file__).parent / "testdata"
GO_REQUEST = bytes.fromhex((TESTDATA / "http_upgrade.req.hex").read_text())
UPGRADE = b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"


def local(port: int) -> ServerAddress:
    return ServerAddress(f"127.0.0.1:{port}")


def layer_on(handler: Handler, port: int = 1) -> Layer:
    return Layer("/raft", local(port), handler, dial_tcp())


@asynccontextmanager
async def echoing(handler: Handler) -> AsyncGenerator[list[EchoReceiver]]:
    """Accept streams and echo on them."""
    accepted: list[EchoReceiver] = []

    async def accept() -> None:
        layer = layer_on(handler)
        while True:
            accepted.append(EchoReceiver(await layer.accept()))

    task = asyncio.create_task(accept())
    try:
        yield accepted
    finally:
        task.cancel()
        with pytest.raises((asyncio.CancelledError, PeerUnreachableError)):
            await task


def test_dial_and_accept_make_a_stream(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port, echoing(handler) as accepted:
            layer = layer_on(handler, port)
            streams = [await layer.dial(local(port), 5.0) for _ in range(3)]
            receivers = [RecordingReceiver(stream) for stream in streams]
            for number, stream in enumerate(streams):
                stream.write(b"hello %d" % number)
            for number, receiver in enumerate(receivers):
                await receiver.until_data(b"hello %d" % number)
            assert streams[0].peer == local(port)
            assert accepted[0]._stream.peer.startswith("127.0.0.1:")
            streams[0].close()
            await accepted[0].until_ended()
            accepted[1]._stream.close()
            await receivers[1].until_ended()
            streams[2].abort()
            await receivers[2].until_ended()

    kind.run(main)


def test_a_large_stream_arrives_whole_both_ways(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port, echoing(handler):
            stream = await layer_on(handler, port).dial(local(port), 5.0)
            receiver = RecordingReceiver(stream)
            sent = b"".join(b"%07d\n" % number for number in range(1 << 17))
            for start in range(0, len(sent), 100_000):
                stream.write(sent[start : start + 100_000])
            await receiver.until_data(sent)
            stream.abort()

    kind.run(main)


def test_a_go_dialer_is_answered_with_a_101_it_understands(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port, echoing(handler), raw_connection(port) as raw:
            raw.send(GO_REQUEST)
            head = await raw.head()
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raft\r\n")
            raw.send(b"rpc")
            assert await raw.reader.readexactly(3) == b"rpc"

    kind.run(main)


@pytest.mark.parametrize("request_bytes", [UPGRADE, GO_REQUEST])
@pytest.mark.parametrize("behind", [b"rpc", b"GET / HTTP/1.1\r\n\r\n" * 100, bytes(200_000)])
def test_bytes_behind_the_request_are_the_streams_first(
    kind: ServerKind, request_bytes: bytes, behind: bytes
) -> None:
    async def main() -> None:
        handler = Handler()
        layer = layer_on(handler)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(request_bytes + behind[: len(behind) // 2])
            stream = await layer.accept()
            raw.send(behind[len(behind) // 2 :])
            assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
            receiver = RecordingReceiver(stream)
            await receiver.until_data(behind)
            stream.close()
            assert await raw.rest() == b""

    kind.run(main)


def test_byte_by_byte_it_is_the_same(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = layer_on(handler)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            for position in range(len(UPGRADE)):
                raw.send(UPGRADE[position : position + 1])
                await raw.writer.drain()
                await asyncio.sleep(0)
            raw.send(b"behind")
            receiver = RecordingReceiver(await layer.accept())
            await receiver.until_data(b"behind")
            raw.writer.close()
            await receiver.until_ended()

    kind.run(main)


def test_no_101_before_somebody_accepts(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = layer_on(handler)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            reading = asyncio.create_task(raw.head())
            async with raw_connection(port) as other:  # the server answers others meanwhile
                other.send(b"GET /raft HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await other.response())[0] == 400
            assert not reading.done()
            stream = await layer.accept()
            assert (await reading).startswith(b"HTTP/1.1 101 ")
            stream.abort()

    kind.run(main)


def test_nobody_accepts_in_time(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(timeout=0.05)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE)
            status, headers, body = await raw.response()
            assert (status, body) == (503, b"nobody accepted the stream in time\n")
            assert headers["retry-after"] == "1"
            assert await raw.rest() == b""
            # and what gave up is not accepted later
            accepting = asyncio.create_task(layer_on(handler).accept())
            await asyncio.sleep(0)
            assert not accepting.done()
            accepting.cancel()

    kind.run(main)


def test_too_many_wait(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(upgrades_max=1)
        async with (
            kind.serve(handler) as port,
            raw_connection(port) as first,
            raw_connection(port) as second,
        ):
            first.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            second.send(UPGRADE)
            assert (await second.response())[0] == 503
            (await layer_on(handler).accept()).abort()
            assert (await first.head()).startswith(b"HTTP/1.1 101 ")

    kind.run(main)


def test_closing_refuses_what_waits_and_what_comes(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = layer_on(handler)
        async with (
            kind.serve(handler) as port,
            raw_connection(port) as waiting,
            raw_connection(port) as late,
        ):
            waiting.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            await layer.close()
            status, headers, body = await waiting.response()
            assert (status, body) == (503, b"the server is shutting down\n")
            assert headers["retry-after"] == "1"
            late.send(UPGRADE)
            assert (await late.response())[0] == 503
            with pytest.raises(PeerUnreachableError):
                await layer.accept()
            await layer.close()  # idempotent

    kind.run(main)


def test_a_client_that_left_is_not_accepted(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        layer = layer_on(handler)
        async with kind.serve(handler) as port:
            async with raw_connection(port) as raw:
                raw.send(UPGRADE)
                await until(lambda: handler._upgrades._items)
            async with raw_connection(port) as raw:
                raw.send(UPGRADE)
                await until(lambda: len(handler._upgrades._items) == 2)
                # The first may be noticed only when it is read; what matters is that one that lives
                # is got, and that the dead one ends.
                for _ in range(2):
                    receiver = RecordingReceiver(await layer.accept())
                    if raw.reader._buffer:  # type: ignore[attr-defined] # asyncio's own
                        break
                    reading = asyncio.create_task(raw.head())
                    done, _pending = await asyncio.wait([reading], timeout=0.2)
                    if done:
                        break
                    reading.cancel()
                    await receiver.until_ended()

    kind.run(main)


BAD_REQUESTS: list[tuple[bytes, int, bytes]] = [
    (b"GET /raft HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"missing upgrade header"),
    (
        b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raf\r\n\r\n",
        400,
        b"invalid upgrade header",
    ),
    (
        b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\nConnection: close\r\n\r\n",
        400,
        b"the connection header does not name the upgrade",
    ),
    (
        b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\nContent-Length: 1\r\n\r\nx",
        400,
        b"an upgrade request has no body",
    ),
    (b"PATCH /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, b"unknown action"),
    (b"PUT /raft?op=a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, b"unknown"),
    (b"nonsense\r\n\r\n", 400, b""),
    (b"GET /raft HTTP/1.1\r\nA\0: b\r\nHost: x\r\n\r\n", 400, b""),
]


def test_bad_requests_get_a_sentence(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port:
            for data, status, text in BAD_REQUESTS:
                async with raw_connection(port) as raw:
                    raw.send(data)
                    head = await raw.head()
                    assert int(head.split()[1]) == status, data
                    body = await raw.rest()
                    assert body.strip(), data
                    assert text in body, data
                    if status == 405:
                        assert b"allow: get, post, delete\r\n" in head.lower()
        assert not handler._upgrades._items

    kind.run(main)


@pytest.mark.parametrize("beginning", [b"", b"GET /raft HT", UPGRADE[:-1]])
def test_a_silent_or_slow_peer_meets_a_deadline(
    kind: ServerKind, beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rafthttp.http.uvicorn.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("rafthttp.testing.http.HANDSHAKE_SECONDS", 0.1)

    async def main() -> None:
        async with kind.serve(Handler()) as port, raw_connection(port) as raw:
            raw.send(beginning)
            loop = asyncio.get_running_loop()
            started = loop.time()
            assert await raw.rest() == b""
            assert loop.time() - started < 2.0

    kind.run(main)


def test_the_deadline_ends_with_the_101(kind: ServerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """S76: an idle stream lives on after the handshake's deadline."""
    monkeypatch.setattr("rafthttp.http.uvicorn.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("rafthttp.testing.http.HANDSHAKE_SECONDS", 0.1)

    async def main() -> None:
        handler = Handler(timeout=0.1)
        async with kind.serve(handler) as port, echoing(handler):
            stream = await layer_on(handler, port).dial(local(port), 0.5)
            receiver = RecordingReceiver(stream)
            async with raw_connection(port) as raw:  # a silent one, cut at the same deadline
                assert await raw.rest() == b""
            loop = asyncio.get_running_loop()
            later = loop.time() + 0.5  # also past the dialer's own deadline
            await until(lambda: loop.time() > later)
            stream.write(b"still here")
            await receiver.until_data(b"still here")
            stream.abort()

    kind.run(main)


def test_a_stream_after_other_requests_on_the_same_connection(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            kind.serve(handler) as port,
            echoing(handler),
            raw_connection(port) as raw,
        ):
            for _ in range(2):
                # The one answer that keeps its connection: a change that was made.
                raw.send(b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n\r\n")
                (await anext(handler.requests())).respond()
                assert (await raw.response())[0] == 200
            raw.send(UPGRADE + b"behind")
            assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
            assert await raw.reader.readexactly(6) == b"behind"

    kind.run(main)


def test_a_refused_upgrade_closes_the_connection_with_what_came_behind(kind: ServerKind) -> None:
    async def refuse(peer: PeerInfo) -> Principal | Refusal:
        return Refusal()

    async def main() -> None:
        handler = Handler(authorize=refuse)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE + b"DELETE /raft?id=n1 HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, _ = await raw.response()
            assert (status, headers["connection"]) == (401, "close")
            assert await raw.rest() == b""

    kind.run(main)


def test_the_log_names_the_socket_never_the_host_header(
    kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            kind.serve(handler) as port,
            echoing(handler),
            raw_connection(port) as raw,
        ):
            raw.send(UPGRADE.replace(b"Host: x", b"Host: evil.example"))
            await raw.head()

    with caplog.at_level(logging.DEBUG, "rafthttp"):
        kind.run(main)
    assert "accepted a stream from 127.0.0.1:" in caplog.text
    assert "evil" not in caplog.text


def test_dialling_says_why_it_failed(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        await handler.close()
        layer = layer_on(Handler())
        async with kind.serve(handler) as port:
            with pytest.raises(PeerUnreachableError, match="503: the server is") as caught:
                await layer.dial(local(port), 5.0)
            cause = caught.value.__cause__
            assert isinstance(cause, HandshakeError)
            assert cause.status == 503

    kind.run(main)


def test_cluster_ids_must_not_differ(kind: ServerKind) -> None:
    async def main() -> None:
        ours, theirs = Handler(), Handler(cluster_id="theirs")
        layer = layer_on(ours)
        async with kind.serve(theirs) as port, echoing(theirs):
            (await layer.dial(local(port), 5.0)).abort()  # we do not know ours yet
            layer.cluster_id = "ours"
            with pytest.raises(PeerUnreachableError, match="409"):
                await layer.dial(local(port), 5.0)
            theirs.cluster_id = None
            (await layer.dial(local(port), 5.0)).abort()  # they do not know theirs, or are Go
            theirs.cluster_id = "ours"
            (await layer.dial(local(port), 5.0)).abort()

    kind.run(main)


def test_the_dialer_checks_the_cluster_id_of_the_101(on_loop: ServerKind) -> None:
    async def main() -> None:
        answered: list[RawConnection] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raw = RawConnection(reader, writer)
            answered.append(raw)
            await raw.head()
            raw.send(b"HTTP/1.1 101 X\r\nUpgrade: raft\r\nRaft-Cluster-Id: theirs\r\n\r\n")
            await raw.rest()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port: int = server.sockets[0].getsockname()[1]
            layer = layer_on(Handler(cluster_id="ours"))
            with pytest.raises(PeerUnreachableError, match="belongs to the cluster theirs"):
                await layer.dial(local(port), 5.0)
            await until(lambda: answered[0].writer.is_closing())

    on_loop.run(main)
