"""Streams inside one process: a pair of ends, and a network that connects layers.

For tests and for clusters in one process. Bytes are really bytes; only the sockets are missing.
Everything runs on one event loop, and delivery is a callback of its own, as with sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

from rafthttp.raft.errors import PeerUnreachableError, TransportError
from rafthttp.raft.transport.protocols import Stream, StreamReceiver
from rafthttp.raft.types import ServerAddress

# As a socket's: what one end may be ahead of the other before its writer is paused.
_HIGH_BYTES: Final = 256 << 10
_LOW_BYTES: Final = 64 << 10


class MemoryStream:
    """One end of a pair (`Stream`). Made by `memory_pair`."""

    def __init__(self, peer: str, piece_bytes: int | None) -> None:
        self._peer = peer
        self._piece_bytes = piece_bytes
        self._other: MemoryStream | None = None
        self._receiver: StreamReceiver | None = None
        # What the other end wrote and this one has not been given; None is its end.
        self._incoming: deque[bytes | None] = deque()
        self._incoming_bytes = 0
        self._reading = True
        self._delivery: asyncio.Handle | None = None
        self._writer_paused = False
        self._closing = False
        self._ended = False
        self._error: Exception | None = None

    def connect(self, other: MemoryStream) -> None:
        """Make `other` the far end."""
        self._other = other

    @property
    def peer(self) -> str:
        """Name of the far end (`Stream`)."""
        return self._peer

    @property
    def is_closed(self) -> bool:
        """Whether this end has ended."""
        return self._ended

    def start(self, receiver: StreamReceiver) -> None:
        """Begin delivery (`Stream`)."""
        assert self._receiver is None, "started once"
        self._receiver = receiver
        if self._ended:
            asyncio.get_running_loop().call_soon(receiver.closed, self._error)
        self._schedule()

    def write(self, data: bytes) -> None:
        """Send bytes (`Stream`)."""
        other = self._other
        if self._closing or other is None or other._ended or not data:
            return
        other._incoming.append(data)
        other._incoming_bytes += len(data)
        if other._incoming_bytes > _HIGH_BYTES and not self._writer_paused:
            self._writer_paused = True
            if self._receiver is not None:
                self._receiver.pause_writing()
        other._schedule()

    def pause_reading(self) -> None:
        """Stop delivery (`Stream`)."""
        self._reading = False

    def resume_reading(self) -> None:
        """Go on with delivery (`Stream`)."""
        self._reading = True
        self._schedule()

    def close(self) -> None:
        """Close after what was written has been delivered (`Stream`)."""
        if self._closing:
            return
        self._closing = True
        if self._other is not None and not self._other._ended:
            self._other._incoming.append(None)
            self._other._schedule()
        asyncio.get_running_loop().call_soon(self._end, None)

    def abort(self, error: Exception | None = None) -> None:
        """Close now; the far end sees `error` or the end (`Stream`)."""
        self._closing = True
        loop = asyncio.get_running_loop()
        loop.call_soon(self._end, error)
        if self._other is not None and not self._other._ended:
            self._other._closing = True
            loop.call_soon(self._other._end, error)

    def _schedule(self) -> None:
        if (
            self._delivery is None
            and self._receiver is not None
            and self._reading
            and self._incoming
            and not self._ended
        ):
            self._delivery = asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        if self._ended or not self._reading or self._receiver is None or not self._incoming:
            return
        data = self._incoming.popleft()
        if data is None:
            self._closing = True
            self._end(None)
            if self._other is not None:
                self._other._end(None)
            return
        if self._piece_bytes is not None and len(data) > self._piece_bytes:
            self._incoming.appendleft(data[self._piece_bytes :])
            data = data[: self._piece_bytes]
        self._incoming_bytes -= len(data)
        other = self._other
        if other is not None and other._writer_paused and self._incoming_bytes < _LOW_BYTES:
            other._writer_paused = False
            if other._receiver is not None and not other._ended:
                other._receiver.resume_writing()
        self._receiver.data_received(data)
        self._schedule()

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._incoming.clear()
        if self._receiver is not None:
            self._receiver.closed(error)


def memory_pair(
    one: str = "one", two: str = "two", piece_bytes: int | None = None
) -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends, seen by each other under these names.

    Args:
        one: name of the first end.
        two: name of the second end.
        piece_bytes: deliver in pieces of at most this size (1: byte by byte).
    """
    first, second = MemoryStream(two, piece_bytes), MemoryStream(one, piece_bytes)
    first.connect(second)
    second.connect(first)
    return first, second


class InmemNetwork:
    """Connects the layers of one process by address, and can be cut for tests.

    Args:
        piece_bytes: deliver in pieces of at most this size.
    """

    def __init__(self, piece_bytes: int | None = None) -> None:
        self._piece_bytes = piece_bytes
        self._layers: dict[ServerAddress, MemoryStreamLayer] = {}
        self._links: list[tuple[ServerAddress, ServerAddress, MemoryStream]] = []
        self._down: set[ServerAddress] = set()
        self._groups: dict[ServerAddress, int] = {}

    def disconnect(self, address: ServerAddress) -> None:
        """Cut all streams of `address`, and refuse new ones."""
        self._down.add(address)
        self._cut()

    def connect(self, address: ServerAddress) -> None:
        """Undo `disconnect`."""
        self._down.discard(address)

    def partition(self, *groups: Iterable[ServerAddress]) -> None:
        """Let only servers of one group reach each other; those in none are a group together."""
        self._groups = {
            address: number for number, group in enumerate(groups, 1) for address in group
        }
        self._cut()

    def heal(self) -> None:
        """Undo every `disconnect` and `partition`."""
        self._down.clear()
        self._groups.clear()

    def reachable(self, one: ServerAddress, two: ServerAddress) -> bool:
        """Whether a stream between the two may live."""
        return not self._down & {one, two} and self._groups.get(one, 0) == self._groups.get(two, 0)

    def register(self, layer: MemoryStreamLayer) -> None:
        """A layer listens; its address must be free."""
        if layer.address in self._layers:
            raise TransportError(f"{layer.address} is taken in this network")
        self._layers[layer.address] = layer

    def unregister(self, layer: MemoryStreamLayer) -> None:
        """A layer listens no more."""
        if self._layers.get(layer.address) is layer:
            del self._layers[layer.address]

    def open(self, source: ServerAddress, target: ServerAddress) -> Stream:
        """A new stream from `source` to `target`.

        Raises:
            PeerUnreachableError: nobody listens there, or the network is cut in between.
        """
        layer = self._layers.get(target)
        if layer is None or not self.reachable(source, target):
            raise PeerUnreachableError(f"cannot dial {target}: nobody answers")
        near, far = memory_pair(source, target, self._piece_bytes)
        self._links = [link for link in self._links if not link[2].is_closed]
        self._links.append((source, target, near))
        layer.on_accepted(far)
        return near

    def _cut(self) -> None:
        broken = ConnectionResetError("the network was cut")
        for source, target, stream in self._links:
            if not self.reachable(source, target):
                stream.abort(broken)


class MemoryStreamLayer:
    """`StreamLayer` of one server in an `InmemNetwork`."""

    def __init__(self, network: InmemNetwork, address: ServerAddress) -> None:
        self._network = network
        self._address = address
        # Unbounded: only servers of this process put here. None marks the end.
        self._accepted: asyncio.Queue[Stream | None] = asyncio.Queue()
        self._closed = False
        network.register(self)

    @property
    def address(self) -> ServerAddress:
        """The address in the network (`StreamLayer`)."""
        return self._address

    async def accept(self) -> Stream:
        """The next inbound stream (`StreamLayer`)."""
        stream = None if self._closed else await self._accepted.get()
        if stream is None:
            raise TransportError("the stream layer is closed")
        return stream

    async def dial(self, address: ServerAddress, timeout: float) -> Stream:
        """A new stream to a peer (`StreamLayer`)."""
        del timeout  # nothing here waits
        await asyncio.sleep(0)
        if self._closed:
            raise PeerUnreachableError("the stream layer is closed")
        return self._network.open(self._address, address)

    async def close(self) -> None:
        """Stop accepting (`StreamLayer`)."""
        if self._closed:
            return
        self._closed = True
        self._network.unregister(self)
        while not self._accepted.empty():
            stream = self._accepted.get_nowait()
            if stream is not None:
                stream.abort()
        self._accepted.put_nowait(None)

    def on_accepted(self, stream: Stream) -> None:
        """A peer has dialed (called by the network)."""
        self._accepted.put_nowait(stream)
