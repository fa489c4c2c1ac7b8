"""Plain TCP streams: addresses, options of the socket, dials that fail, ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import PeerUnreachableError, TransportError
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.transport.tcp import TCPStream, TCPStreamLayer, format_address
from rafthttp.raft.types import ServerAddress

Until = Callable[..., Any]


class Ears:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[Exception | None] = []
        self.paused = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def closed(self, error: Exception | None) -> None:
        self.ends.append(error)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


async def _pair(layer: TCPStreamLayer) -> tuple[Stream, Stream]:
    near = await layer.dial(layer.address, 5)
    return near, await layer.accept()


def _socket(stream: Stream) -> socket.socket:
    assert isinstance(stream, TCPStream)
    assert stream._transport is not None
    sock: socket.socket = stream._transport.get_extra_info("socket")
    return sock


def test_both_ends_send_without_delay_and_know_each_other(until: Until) -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        near, far = await _pair(layer)
        for stream in near, far:
            assert _socket(stream).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert near.peer == layer.address
        assert far.peer == format_address(_socket(near).getsockname())
        ears = Ears(), Ears()
        # Sent before the other end has begun to listen.
        near.write(b"early")
        near.start(ears[0])
        far.start(ears[1])
        await until(lambda: ears[1].data == b"early")
        far.write(b"answer")
        await until(lambda: ears[0].data == b"answer")
        near.write(b"last words")
        near.close()
        near.close()
        near.write(b"ignored")
        await until(lambda: ears[1].ends and ears[0].ends)
        assert ears[1].data == b"earlylast words"
        assert ears[0].ends == ears[1].ends == [None]
        for stream in near, far:
            stream.pause_reading()
            stream.resume_reading()
            stream.abort()
            stream.close()
            stream.write(b"ignored")
        await layer.close()

    asyncio.run(main())


def test_backpressure(until: Until) -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        near, far = await _pair(layer)
        ears = Ears(), Ears()
        near.start(ears[0])
        far.start(ears[1])
        far.pause_reading()
        far.pause_reading()
        sent = 0
        was_paused = False
        while not was_paused:
            near.write(bytes(1 << 20))
            sent += 1 << 20
            await asyncio.sleep(0)
            was_paused = ears[0].paused
        far.resume_reading()
        far.resume_reading()
        await until(lambda: len(ears[1].data) == sent)
        assert not ears[0].paused
        near.abort()
        await until(lambda: ears[0].ends and ears[1].ends)
        await layer.close()

    asyncio.run(main())


def test_a_stream_that_ended_before_it_was_started(until: Until) -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        near, far = await _pair(layer)
        near.abort()
        await until(lambda: _socket(near).fileno() == -1)
        ears = Ears()
        near.start(ears)
        await until(lambda: len(ears.ends) == 1)
        other = Ears()
        far.start(other)
        await until(lambda: len(other.ends) == 1)
        await layer.close()

    asyncio.run(main())


def test_listen_and_advertise() -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1", 0, ServerAddress("db1.example:7000"))
        assert layer.address == "db1.example:7000"
        await layer.close()
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with taken, pytest.raises(TransportError, match="cannot listen"):
            await TCPStreamLayer.listen("127.0.0.1", taken.getsockname()[1])

    asyncio.run(main())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:70000", "x:y", ""])
def test_dials_that_fail(address: str) -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        with pytest.raises(PeerUnreachableError, match="cannot dial"):
            await layer.dial(ServerAddress(address), 5)
        await layer.close()

    asyncio.run(main())


def test_close_ends_accept_and_refuses_what_nobody_took(until: Until) -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        waiting = asyncio.ensure_future(layer.accept())
        first = await layer.dial(layer.address, 5)
        accepted = await waiting
        near = await layer.dial(layer.address, 5)
        await until(lambda: layer._accepted.qsize() == 1)
        await layer.close()
        await layer.close()
        for _ in range(2):
            with pytest.raises(TransportError, match="closed"):
                await layer.accept()
        ears = Ears()
        near.start(ears)
        await until(lambda: ears.ends)
        ends = Ears(), Ears()
        first.start(ends[0])
        accepted.start(ends[1])
        accepted.close()
        await until(lambda: ends[0].ends and ends[1].ends)

    asyncio.run(main())


def test_close_ends_a_waiting_accept() -> None:
    async def main() -> None:
        layer = await TCPStreamLayer.listen("127.0.0.1")
        waiting = asyncio.ensure_future(layer.accept())
        await asyncio.sleep(0)
        await layer.close()
        with pytest.raises(TransportError, match="closed"):
            await waiting

    asyncio.run(main())


def test_addresses() -> None:
    assert format_address(("10.0.0.1", 80)) == "10.0.0.1:80"
    assert format_address(("::1", 80, 0, 0)) == "[::1]:80"
    assert format_address("/run/raft.sock") == "/run/raft.sock"
    assert format_address(None) == "unknown"
