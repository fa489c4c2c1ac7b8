"""Sending a snapshot: when a transfer that does not move is given up."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from dataclasses import replace
from typing import BinaryIO, cast

import pytest

from rafthttp.raft.errors import TransportError
from rafthttp.raft.runtime import send_snapshot, worker
from rafthttp.raft.runtime.snapshot_bytes import Progress
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.wire.records import InstallSnapshotResponse, RPCHeader
from rafthttp.testing.cluster import Cluster, fast_config, until


def test_a_peer_that_takes_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that moves, however slowly, nor one that has it all and still restores it."""
    monkeypatch.setattr(send_snapshot, "_STALLED_S", 0.02)
    response = InstallSnapshotResponse(RPCHeader(), 1, success=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        progress = Progress(7, 10)
        answer: asyncio.Future[InstallSnapshotResponse] = loop.create_future()

        async def sending() -> InstallSnapshotResponse:
            return await answer

        task = loop.create_task(sending())
        watching = loop.create_task(send_snapshot._while_moving(task, progress))
        for _ in range(10):
            progress.passed(1)
            await asyncio.wait({watching}, timeout=0.015)
            assert not watching.done()
        await asyncio.wait({watching}, timeout=0.1)
        assert not watching.done()
        answer.set_result(response)
        assert await watching == response

        answer = loop.create_future()
        never = loop.create_task(sending())
        stalled = Progress(7, 10)
        stalled.passed(9)
        with pytest.raises(TransportError, match="nothing was taken"):
            await send_snapshot._while_moving(never, stalled)
        never.cancel()

    asyncio.run(run())


class Hanging(io.RawIOBase):
    """A file on a disk that does not answer, for five seconds."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.go = threading.Event()

    def read(self, size: int = -1, /) -> bytes:
        del size
        self.reading.set()
        self.go.wait(5)
        return b""


def test_a_disk_that_hangs_while_it_is_read_delays_no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of the loop's own executor would be waited for."""
    monkeypatch.setattr(worker, "_CLOSE_TIMEOUT_S", 0.05)
    file = Hanging()

    async def run() -> None:
        config = replace(fast_config("any"), trailing_logs=0)
        async with Cluster(3, config=config) as cluster:
            leader = await cluster.leader()
            lagging = next(i for i in cluster.ids if i != leader.id)
            await cluster.stop(lagging)
            await leader.apply(b"a")
            meta = await leader.snapshot()

            def opened(snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
                assert snapshot_id == meta.id
                return meta, cast("BinaryIO", file)

            monkeypatch.setattr(cluster.snapshots[leader.id], "open", opened)
            await cluster.start(lagging)
            await until(file.reading.is_set)

    began = time.monotonic()
    asyncio.run(asyncio.wait_for(run(), 30))
    file.go.set()
    assert time.monotonic() - began < 4


def test_a_store_that_raises_what_it_should_not_is_reported_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An application's own: the transfer fails, which is logged at once, and is tried again."""

    async def run() -> None:
        async with Cluster(3, config=replace(fast_config("any"), trailing_logs=0)) as cluster:
            leader = await cluster.leader()
            lagging = next(i for i in cluster.ids if i != leader.id)
            await cluster.stop(lagging)
            await leader.apply(b"a")
            await leader.snapshot()
            store = cluster.snapshots[leader.id]
            whole, asked = store.open, list[str]()

            def opened(snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
                asked.append(snapshot_id)
                if len(asked) == 1:
                    raise LookupError("what a defect raises")
                return whole(snapshot_id)

            monkeypatch.setattr(store, "open", opened)
            await cluster.start(lagging)
            await cluster.converged()
            (told,) = [record for record in caplog.records if record.exc_info is not None]
            assert told.getMessage() == f"no snapshot for {lagging}"

    asyncio.run(asyncio.wait_for(run(), 30))
