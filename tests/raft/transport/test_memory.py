"""Streams and networks in memory, and `InmemTransport` on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import PeerUnreachableError, TransportError
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork, MemoryStreamLayer, memory_pair
from rafthttp.raft.types import ServerAddress

Until = Callable[..., Any]


class Ears:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.paused = False

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def closed(self, error: Exception | None) -> None:
        self.ends.append(error)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


@pytest.mark.parametrize("piece_bytes", [None, 1, 3])
def test_bytes_in_order_then_the_end(until: Until, piece_bytes: int | None) -> None:
    async def main() -> None:
        near, far = memory_pair("a", "b", piece_bytes)
        assert (near.peer, far.peer) == ("b", "a")
        ears = Ears(), Ears()
        near.start(ears[0])
        near.write(b"hello ")
        near.write(b"world")
        near.write(b"")
        near.close()
        near.close()
        near.write(b"ignored")
        # Nothing is delivered within a call.
        far.start(ears[1])
        assert ears[1].pieces == []
        await until(lambda: ears[1].ends)
        assert ears[1].data == b"hello world"
        assert max(map(len, ears[1].pieces)) == (piece_bytes or 6)
        assert ears[0].ends == ears[1].ends == [None]
        far.write(b"ignored")
        far.close()
        near.abort()

    asyncio.run(main())


def test_pausing(until: Until) -> None:
    async def main() -> None:
        near, far = memory_pair()
        ears = Ears(), Ears()
        near.start(ears[0])
        far.start(ears[1])
        far.pause_reading()
        paused: list[bool] = []
        for size in (100, 300 << 10):
            near.write(bytes(size))
            paused.append(ears[0].paused)
        assert paused == [False, True]
        for _ in range(5):
            await asyncio.sleep(0)
        assert ears[1].pieces == []
        far.resume_reading()
        await until(lambda: len(ears[1].data) == (300 << 10) + 100)
        assert not ears[0].paused
        near.close()
        await until(lambda: ears[1].ends)

    asyncio.run(main())


def test_abort_drops_what_is_on_its_way(until: Until) -> None:
    async def main() -> None:
        near, far = memory_pair()
        ears = Ears(), Ears()
        near.start(ears[0])
        far.start(ears[1])
        near.write(b"lost")
        broken = ConnectionResetError("cut")
        far.pause_reading()
        near.abort(broken)
        await until(lambda: ears[0].ends and ears[1].ends)
        assert ears[0].ends == ears[1].ends == [broken]
        assert ears[1].pieces == []
        late, _ = memory_pair()
        late.abort()
        await asyncio.sleep(0)
        third = Ears()
        late.start(third)
        await until(lambda: third.ends == [None])

    asyncio.run(main())


A, B, C = ServerAddress("a"), ServerAddress("b"), ServerAddress("c")


def test_a_network_of_layers() -> None:
    async def main() -> None:
        network = InmemNetwork()
        one, two = MemoryStreamLayer(network, A), MemoryStreamLayer(network, B)
        with pytest.raises(TransportError, match="taken"):
            MemoryStreamLayer(network, A)
        near = await one.dial(B, 1)
        assert (await two.accept()).peer == "a"
        assert near.peer == "b"
        with pytest.raises(PeerUnreachableError):
            await one.dial(C, 1)
        await two.close()
        await two.close()
        with pytest.raises(PeerUnreachableError):
            await one.dial(B, 1)
        with pytest.raises(PeerUnreachableError):
            await two.dial(A, 1)
        with pytest.raises(TransportError, match="closed"):
            await two.accept()
        again = MemoryStreamLayer(network, B)
        await one.dial(B, 1)
        await again.close()
        await one.close()

    asyncio.run(main())


def test_partitions_cut_streams_and_dials(until: Until) -> None:
    async def main() -> None:
        network = InmemNetwork()
        layers = {name: MemoryStreamLayer(network, name) for name in (A, B, C)}
        ears: dict[tuple[str, str], Ears] = {}

        async def link(source: ServerAddress, target: ServerAddress) -> None:
            stream = await layers[source].dial(target, 1)
            ears[source, target] = Ears()
            stream.start(ears[source, target])
            (await layers[target].accept()).start(Ears())

        await link(A, B)
        await link(B, C)
        network.partition([A], [B, C])
        await until(lambda: ears[A, B].ends)
        assert isinstance(ears[A, B].ends[0], ConnectionResetError)
        assert ears[B, C].ends == []
        with pytest.raises(PeerUnreachableError):
            await link(A, C)
        await link(C, B)
        network.partition([A])  # the others are a group together
        assert network.reachable(B, C)
        assert not network.reachable(C, A)
        network.heal()
        await link(A, B)
        network.disconnect(B)
        await until(lambda: all(ears[pair].ends for pair in ((A, B), (B, C), (C, B))))
        with pytest.raises(PeerUnreachableError):
            await link(A, B)
        await link(A, C)
        network.connect(B)
        await link(A, B)
        for layer in layers.values():
            await layer.close()

    asyncio.run(main())


def test_inmem_transport(until: Until) -> None:
    async def main() -> None:
        network = InmemNetwork()
        one, two = InmemTransport(network, A), InmemTransport(network, B)
        assert one.local_address == "a"
        assert await one.probe(B, 1)
        network.disconnect(B)
        assert not await one.probe(B, 1)
        network.heal()
        assert await one.probe(B, 1)
        await one.close()
        await two.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(main())
