"""The raw bytes behind an inbound InstallSnapshot, between the stream and who installs them.

Bounded: the stream stops reading while more than a mark is unread. Once the RPC is answered, what
is left is drained, so that the stream stays in step (S42).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from rafthttp.raft.errors import PeerUnreachableError, TransportError

# Four reads of the socket: enough to keep it busy while a chunk is written to disk.
_UNREAD_BYTES_MAX: Final = 1 << 20


class SnapshotBody:
    """Implements `SnapshotReader`; one reader.

    Args:
        size: bytes that belong to it.
        on_room: told when it has room again after it was full.
    """

    def __init__(self, size: int, on_room: Callable[[], None]) -> None:
        self._left = size
        self._on_room = on_room
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: TransportError | None = None
        self._draining = False

    @property
    def complete(self) -> bool:
        """Whether all its bytes have come."""
        return not self._left

    @property
    def full(self) -> bool:
        """Whether the stream should wait before it adds more."""
        return self._unread >= _UNREAD_BYTES_MAX

    def add(self, chunk: bytes) -> None:
        """Bytes came from the stream."""
        self._left -= len(chunk)
        if not self._draining:
            self._chunks.append(chunk)
            self._unread += len(chunk)
        self._wake()

    def drain(self) -> None:
        """The RPC is answered: nobody will read on."""
        self._draining = True
        self._chunks.clear()
        self._unread = 0
        self._wake()

    def fail(self, error: TransportError) -> None:
        """The stream ended; told to the reader unless all bytes had come."""
        if self._left:
            self._error = error
        self._wake()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._draining:
                raise PeerUnreachableError("the snapshot is answered already")
            if not self._left:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        was_full = self.full
        chunk = self._chunks.popleft()
        self._unread -= len(chunk)
        if was_full and not self.full:
            self._on_room()
        return chunk

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
