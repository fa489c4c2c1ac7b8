"""A stream over real sockets, on both loops."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.http import stream as stream_module
from rafthttp.http.stream import TransportStream
from rafthttp.testing.http import (
    RecordingReceiver,
    ServerKind,
    connected_pair,
    until,
)


def test_bytes_go_both_ways_and_eof_ends_it(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        at_one, at_two = RecordingReceiver(one), RecordingReceiver(two)
        one.write(b"ping")
        await at_two.until_data(b"ping")
        two.write(b"pong")
        await at_one.until_data(b"pong")
        one.close()
        await at_two.until_ended()
        await at_one.until_ended()
        assert at_one.error is None
        assert at_two.error is None
        one.write(b"ignored")
        one.close()
        one.abort()

    on_loop.run(main)


def test_what_came_before_the_start_is_delivered_inside_it_and_first(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        one.write(b"early ")
        await until(lambda: two._backlog)
        one.write(b"late")
        receiver = RecordingReceiver(two)
        assert receiver.data.startswith(b"early ")
        await receiver.until_data(b"early late")
        one.abort()
        await receiver.until_ended()

    on_loop.run(main)


def test_reading_pauses_while_nobody_starts_it(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        size = stream_module.BACKLOG_SIZE_BYTES_MAX * 64
        sender = RecordingReceiver(one)
        one.write(bytes(size))
        await until(lambda: two._reading_paused)
        held = two._backlog_size_bytes
        assert held <= stream_module.BACKLOG_SIZE_BYTES_MAX + (1 << 20)
        assert sender.writing_paused
        receiver = RecordingReceiver(two)
        await receiver.until_data(bytes(size))
        await until(lambda: not sender.writing_paused)
        two.abort()
        await sender.until_ended()

    on_loop.run(main)


def test_a_paused_stream_delivers_nothing(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        receiver = RecordingReceiver(two)
        two.pause_reading()
        two.pause_reading()
        one.write(b"x")
        # The echo through a second connection shows that the loop has polled its sockets since.
        three, four = await connected_pair()
        marker = RecordingReceiver(four)
        three.write(b"marker")
        await marker.until_data(b"marker")
        assert receiver.data == b""
        two.resume_reading()
        two.resume_reading()
        await receiver.until_data(b"x")
        for stream in (one, three):
            stream.abort()
        await receiver.until_ended()
        await marker.until_ended()

    on_loop.run(main)


def test_a_stream_that_ended_before_its_start_still_tells_everything(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        one.write(b"last words")
        one.close()
        await until(lambda: two._lost)
        assert two.is_closing
        receiver = RecordingReceiver(two)
        assert receiver.data == b"last words"
        assert not receiver.ended  # never inside `start`
        await receiver.until_ended()

    on_loop.run(main)


def test_rewound_it_begins_anew_with_the_leftover(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        first = RecordingReceiver(two)
        one.write(b"handshake")
        await first.until_data(b"handshake")
        two.rewind(b"left")
        one.write(b"over")
        await until(lambda: two._backlog_size_bytes == 8)
        second = RecordingReceiver(two)
        assert second.data == b"leftover"
        assert first.data == b"handshake"
        one.abort()
        await second.until_ended()
        assert not first.ended

    on_loop.run(main)


def test_lost_while_rewound(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        first = RecordingReceiver(two)
        one.close()
        await first.until_ended()
        two.rewind(b"leftover")
        second = RecordingReceiver(two)
        assert second.data == b"leftover"
        await second.until_ended()

    on_loop.run(main)


def test_close_gives_up_on_a_peer_that_does_not_read(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "LINGER_SECONDS", 0.05)

    async def main() -> None:
        one, two = await connected_pair()
        two.pause_reading()
        sender = RecordingReceiver(one)
        one.write(bytes(64 << 20))
        one.close()
        await sender.until_ended()
        two.abort()

    on_loop.run(main)


def test_the_peer_is_the_socket_address(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        port = two.transport.get_extra_info("sockname")[1]
        assert one.peer == f"127.0.0.1:{port}"
        assert one.client == ("127.0.0.1", port)
        assert not one.is_tls
        assert one.certificate is None
        sock = one.transport.get_extra_info("socket")
        assert sock.getsockopt(6, 1)  # IPPROTO_TCP, TCP_NODELAY
        one.abort()
        two.abort()
        await until(lambda: one._lost and two._lost)

    on_loop.run(main)


def test_before_a_connection_it_is_closed_and_written_to_in_vain() -> None:
    async def main() -> None:
        stream = TransportStream()
        stream.write(b"x")
        stream.close()
        stream.abort()
        assert stream.peer == "unknown"

    asyncio.run(main())


def test_no_frame_of_ours_lies_between_the_loop_and_the_receiver(on_loop: ServerKind) -> None:
    async def main() -> None:
        one, two = await connected_pair()
        receiver = RecordingReceiver(two)
        delivering = two.transport.get_protocol()
        assert isinstance(delivering, asyncio.BaseProtocol)
        bound = getattr(delivering, "data_received")  # noqa: B009 - an instance attribute
        assert bound == receiver.data_received
        one.abort()
        await receiver.until_ended()

    on_loop.run(main)
