"""The bytes of an inbound snapshot, apart from any stream."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.transport.snapshot_body import SnapshotBody


def test_chunks_then_the_end() -> None:
    async def main() -> None:
        body = SnapshotBody(5, lambda: None)
        read = asyncio.ensure_future(_read(body))
        await asyncio.sleep(0)
        body.add(b"abc")
        await asyncio.sleep(0)
        was_complete = body.complete
        assert not was_complete
        body.add(b"de")
        assert body.complete
        # The stream may end once all is here.
        body.fail(PeerUnreachableError("ended"))
        assert await read == b"abcde"
        assert await _read(SnapshotBody(0, lambda: None)) == b""

    asyncio.run(main())


async def _read(body: SnapshotBody) -> bytes:
    return b"".join([chunk async for chunk in body])


def test_it_fills_and_says_when_there_is_room() -> None:
    async def main() -> None:
        room: list[bool] = []
        body = SnapshotBody(8 << 20, lambda: room.append(body.full))
        reader = aiter(body)
        for _ in range(4):
            body.add(bytes(512 << 10))
        assert body.full
        for _ in range(2):
            await anext(reader)
        assert room == []
        await anext(reader)
        assert room == [False]
        await anext(reader)
        assert room == [False]

    asyncio.run(main())


def test_what_came_before_a_failure_is_still_read() -> None:
    async def main() -> None:
        body = SnapshotBody(10, lambda: None)
        body.add(b"abc")
        body.fail(PeerUnreachableError("ended early"))
        reader = aiter(body)
        assert await anext(reader) == b"abc"
        with pytest.raises(PeerUnreachableError, match="ended early"):
            await anext(reader)

    asyncio.run(main())


def test_draining_ends_a_reader_and_keeps_nothing() -> None:
    async def main() -> None:
        body = SnapshotBody(8 << 20, lambda: None)
        waiting = asyncio.ensure_future(anext(aiter(body)))
        await asyncio.sleep(0)
        body.drain()
        with pytest.raises(PeerUnreachableError, match="answered"):
            await waiting
        for _ in range(16):
            body.add(bytes(512 << 10))
            assert not body.full
        assert body.complete

    asyncio.run(main())
