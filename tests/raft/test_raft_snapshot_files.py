"""Snapshots of the public server with everything on disk: sqlite and snapshot directories."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop

N1 = ServerID("n1")


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


async def apply_many(raft: Raft, count: int, name: str = "e") -> list[bytes]:
    commands = [f"{name}{number}".encode() for number in range(count)]
    await asyncio.gather(*(raft.apply(command) for command in commands))
    return commands


def on_disk(directory: Path, size: int) -> Cluster:
    """Snapshots are taken on demand only, and leave nothing of the log."""

    def store(server_id: ServerID) -> SqliteStore:
        return SqliteStore.open(directory / server_id, server_id)

    def snapshots(server_id: ServerID) -> FileSnapshotStore:
        return FileSnapshotStore(directory / server_id / "snapshots")

    config = replace(fast_config("any"), trailing_logs=0)
    return Cluster(size, config=config, make_store=store, make_snapshots=snapshots)


async def reopened(cluster: Cluster, server_id: ServerID) -> Raft:
    """Start a server again on its files."""
    del cluster.stores[server_id], cluster.snapshots[server_id]
    return await cluster.start(server_id)


def test_with_files_a_wiped_server_and_a_restart_of_all_find_everything(tmp_path: Path) -> None:
    """S48 and S49 on real files: every server is stopped at once, the log is cut to nothing."""

    @in_loop
    async def test() -> None:
        async with on_disk(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            commands = await apply_many(leader, 200)
            await cluster.converged()
            for raft in cluster.rafts.values():
                meta = await raft.snapshot()
                assert meta.size == sum(len(c) + 4 for c in commands)
            lost = next(i for i in cluster.ids if i != leader.id)
            await cluster.stop(lost)
            shutil.rmtree(tmp_path / lost)
            commands += await apply_many(leader, 50, "more")
            await reopened(cluster, lost)
            await cluster.converged()
            assert recorded(cluster, lost) == commands
            for server_id in cluster.ids:
                await cluster.stop(server_id)
            for server_id in cluster.ids:
                await reopened(cluster, server_id)
            leader = await cluster.leader()
            await leader.apply(b"after")
            await cluster.converged()
            assert all(recorded(cluster, i) == [*commands, b"after"] for i in cluster.ids)

    test()


def test_compaction_holds_the_disk_in_pieces(tmp_path: Path) -> None:
    """Writes go in between; nobody waits for the deletion of a whole log."""

    @in_loop
    async def test() -> None:
        async with on_disk(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            for _ in range(20):
                await apply_many(leader, 1000)
            store = cast("SqliteStore", cluster.stores[N1])
            pieces: list[Index] = []
            delete = store.delete_prefix

            def counted(last: Index) -> None:
                pieces.append(last)
                delete(last)

            store.delete_prefix = counted  # type: ignore[method-assign] # to see what is asked
            snapshot = asyncio.create_task(leader.snapshot())
            while not snapshot.done():
                await leader.apply(b"in between")
            meta = await snapshot
            assert store.first_index() == meta.index + 1
            assert len(pieces) > 3
            assert pieces[0] < 1000

    test()
