"""The disk lane: order, group commit, failure and a hanging disk, on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.runtime import disk
from rafthttp.raft.runtime.disk import InlineLane, ThreadLane
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID
from rafthttp.testing.cluster import until
from rafthttp.testing.storage import FaultyStore


def entry(index: int) -> LogWrite:
    return LogWrite({b"last": str(index).encode()}, None, (LogBatch(index, 1, [b"r%d" % index]),))


def nothing(seq: int, error: Exception) -> None:
    raise AssertionError(f"write {seq} failed: {error}")


def test_writes_are_durable_in_order_and_share_flushes(tmp_path: Path) -> None:
    async def run() -> None:
        store = FaultyStore(SqliteStore.open(tmp_path, ServerID("n1")))
        durable: list[int] = []
        lane = ThreadLane(store, store, durable.append, nothing)
        for seq in range(1, 201):
            assert lane.submit(seq, entry(seq)) is False
        await until(lambda: bool(durable) and durable[-1] == 200)
        assert durable == sorted(durable)
        assert store.flushes < 100, "writes that queued up behind a flush share the next"
        assert await lane.call(store.last_index) == 200
        await lane.close()

    asyncio.run(run())
    again = SqliteStore.open(tmp_path, ServerID("n1"))
    assert again.last_index() == 200
    assert again.get(b"last") == b"200"
    again.close()


def test_reads_come_behind_the_writes_before_them(tmp_path: Path) -> None:
    async def run() -> None:
        store = SqliteStore.open(tmp_path, ServerID("n1"))
        lane = ThreadLane(store, store, lambda seq: None, nothing)
        for seq in range(1, 51):
            lane.submit(seq, entry(seq))
        assert await lane.call(store.get_records, 50, 50, 1) == [b"r50"]
        await lane.close()
        await lane.close()

    asyncio.run(run())


def test_a_failed_write_is_reported_and_so_are_those_behind_it(tmp_path: Path) -> None:
    """S6: nothing is retried as if it had worked."""

    async def run() -> None:
        store = FaultyStore(SqliteStore.open(tmp_path, ServerID("n1")))
        store.fail_write(2, StorageError("EIO"))
        durable: list[int] = []
        failed: list[tuple[int, Exception]] = []
        lane = ThreadLane(store, store, durable.append, lambda s, e: failed.append((s, e)))
        lane.submit(1, entry(1))
        await until(lambda: durable == [1])
        lane.submit(2, entry(2))
        await until(lambda: len(failed) == 1)
        lane.submit(3, entry(3))
        await until(lambda: len(failed) == 2)
        assert [seq for seq, _ in failed] == [2, 3]
        assert durable == [1]
        await lane.close()

    asyncio.run(run())


def test_a_hanging_disk_does_not_stop_the_loop() -> None:
    """S74: the loop goes on, and hears of the write when it is done."""

    async def run() -> None:
        store = FaultyStore(MemoryStore())
        store.hang_writes()
        durable: list[int] = []
        lane = ThreadLane(store, store, durable.append, nothing)
        lane.submit(1, entry(1))
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
        assert turns == 100
        assert durable == []
        store.release_writes()
        await until(lambda: durable == [1])
        await lane.close()

    asyncio.run(run())


def test_closing_does_not_wait_for_a_hanging_disk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S74: the thread is left behind, and a second close waits no longer than the first."""
    monkeypatch.setattr(disk, "_CLOSE_TIMEOUT_S", 0.05)
    store = FaultyStore(MemoryStore())

    async def run() -> None:
        store.hang_writes()
        lane = ThreadLane(store, store, lambda seq: None, nothing)
        lane.submit(1, entry(1))
        async with asyncio.timeout(5):
            await lane.close()
            await lane.close()
        assert "the disk does not answer" in caplog.text
        assert store.last_index() == 0
        store.release_writes()
        monkeypatch.undo()
        await lane.close()
        assert store.last_index() == 1

    asyncio.run(run())


class Watched(SqliteStore):
    """Notes in which order things come to the store."""

    calls: ClassVar[list[str]] = []

    def write(self, writes: Sequence[LogWrite]) -> None:
        self.calls.append("write")
        super().write(writes)

    def maintain(self) -> None:
        self.calls.append("maintain")
        super().maintain()


def test_a_store_is_maintained_when_no_write_waits(tmp_path: Path) -> None:
    """Behind the acknowledgement, and not between two writes that queued up."""

    async def run() -> None:
        Watched.calls = []
        store = Watched.open(tmp_path, ServerID("n1"))
        assert isinstance(store, Watched)
        lane = ThreadLane(store, store, lambda seq: store.calls.append(f"{seq}"), nothing)
        large = LogWrite({}, None, (LogBatch(1, 1, [b"x" * (8 << 20)]),))
        lane.submit(1, large)
        # The loop has not run: these are in the queue before the thread is done with the first.
        for seq in range(2, 4):
            lane.submit(seq, large._replace(batches=(LogBatch(seq, 1, [b"x" * (8 << 20)]),)))
        await until(lambda: (tmp_path / "raft.db").stat().st_size > 24 << 20)  # a checkpoint
        await until(lambda: "3" in store.calls)
        assert [c for c in store.calls if not c.isdigit()] == ["write"] * 3 + ["maintain"]
        await lane.close()

    asyncio.run(run())


def test_maintenance_that_fails_is_heard_of_with_the_next_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(SqliteStore):
        def maintain(self) -> None:
            self._poison = "injected"
            raise StorageError("injected")

    async def run() -> None:
        store = Failing.open(tmp_path, ServerID("n1"))
        durable: list[int] = []
        failed: list[int] = []
        lane = ThreadLane(store, store, durable.append, lambda seq, error: failed.append(seq))
        lane.submit(1, entry(1))
        await until(lambda: "maintaining the store failed" in caplog.text)
        assert durable == [1]
        lane.submit(2, entry(2))
        await until(lambda: failed == [2])
        await lane.close()

    asyncio.run(run())


def test_two_stores_get_the_stable_pairs_first() -> None:
    """A term or vote may be ahead of the entries, never behind."""

    async def run() -> None:
        log, stable = FaultyStore(MemoryStore()), FaultyStore(MemoryStore())
        log.fail_write(1, StorageError("EIO"))
        failed: list[int] = []
        lane = InlineLane(log, stable, lambda seq, error: failed.append(seq))
        assert lane.submit(1, entry(1)) is False
        await until(lambda: failed == [1])
        assert stable.get(b"last") == b"1"
        assert log.last_index() == 0
        await lane.close()

    asyncio.run(run())


def test_memory_is_durable_at_once() -> None:
    async def run() -> None:
        store = MemoryStore()
        lane = InlineLane(store, store, nothing)
        assert lane.submit(1, entry(1)) is True
        assert await lane.call(store.last_index) == 1
        await lane.close()

    asyncio.run(run())
