"""Sending a snapshot: when a transfer that does not move is given up."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import threading
import time
from dataclasses import replace
from typing import BinaryIO, cast

import pytest

from rafthttp.raft.errors import TransportError
from rafthttp.raft.runtime import send_snapshot, worker
from rafthttp.raft.runtime.snapshot_bytes import Progress
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.types import Server
from rafthttp.raft.wire.records import (
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RPCHeader,
)
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


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(0, 10), (256 << 10, 10), ((512 << 10) - 1, 10), (1 << 20, 40), (256 << 20, 10240)],
)
def test_the_deadline_is_of_the_size(
    monkeypatch: pytest.MonkeyPatch, size: int, seconds: float
) -> None:
    """As in Go: the timeout of the transport for each whole 256 KiB, and once at least."""

    async def run() -> None:
        async with Cluster(3, config=replace(fast_config("any"), trailing_logs=0)) as cluster:
            leader = await cluster.leader()
            lagging = next(i for i in cluster.ids if i != leader.id)
            await cluster.stop(lagging)
            await leader.apply(b"a")
            meta = replace(await leader.snapshot(), size=size)
            asked: list[tuple[int, float]] = []

            async def install(
                server: Server, request: InstallSnapshotRequest, source: object, timeout: float
            ) -> InstallSnapshotResponse:
                assert server.id == lagging
                asked.append((request.size, timeout))
                return InstallSnapshotResponse(request.header, request.term, success=False)

            def opened(snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
                assert snapshot_id == meta.id
                return meta, io.BytesIO()

            store, sender = cluster.snapshots[leader.id], leader._driver.sender
            monkeypatch.setattr(store, "list", lambda: [meta])
            monkeypatch.setattr(store, "open", opened)
            monkeypatch.setattr(sender._transport, "install_snapshot", install)
            await cluster.start(lagging)
            await until(lambda: bool(asked))
            assert asked[0] == (size, seconds)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_it_is_read_one_piece_ahead_and_never_beyond_its_end() -> None:
    """Whatever size is asked for, and however little a read gives; the count is of what went."""
    state = bytes(range(256)) * 4

    class Short(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            return super().read(min(size, 100))

    async def run(file: BinaryIO) -> None:
        thread = worker.Worker("test")
        progress = Progress(7, len(state))
        source = send_snapshot._Source(file, thread, progress, len(state))
        got = b""
        for size in itertools.cycle((300, 7, 90, 1)):
            data = await source.read(min(size, len(state) - len(got)))
            assert 0 < len(data) <= size
            got += data
            assert progress.done == len(got)
            if len(got) == len(state):
                break
        assert got == state
        source.close()
        thread.finish()
        await thread.ended
        assert file.closed

    for file in (io.BytesIO(state + b"more"), Short(state + b"more")):
        asyncio.run(asyncio.wait_for(run(file), 30))


def test_a_piece_read_ahead_that_failed_and_was_not_wanted_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("the disk failed")
            return super().read(size)

    async def run() -> None:
        thread = worker.Worker("test")
        source = send_snapshot._Source(Failing(bytes(100)), thread, Progress(7, 100), 100)
        assert await source.read(50) == bytes(50)
        await thread.call(lambda: None)
        await asyncio.sleep(0)
        source.close()
        thread.finish()
        await thread.ended

    asyncio.run(asyncio.wait_for(run(), 30))
    gc.collect()
    assert not caplog.records
