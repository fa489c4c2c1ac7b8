"""Snapshots every few entries, no trailing logs, servers that come and go: nothing is lost."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from rafthttp.raft.errors import RaftError
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import ServerID, State
from rafthttp.testing.cluster import Cluster, Recorder, fast_config


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


async def write(cluster: Cluster, acknowledged: list[bytes], until: float) -> None:
    """Commands one after another to whoever leads; each at most once."""
    loop = asyncio.get_running_loop()
    number = 0
    while loop.time() < until:
        leaders = [r for r in cluster.rafts.values() if r.state is State.LEADER]
        if not leaders:
            await asyncio.sleep(0.005)
            continue
        number += 1
        command = b"%d" % number
        try:
            await leaders[-1].apply(command, timeout=0.5)
        except RaftError:
            continue
        acknowledged.append(command)


async def trouble(cluster: Cluster, rng: random.Random, until: float, *, on_disk: bool) -> None:
    """One server at a time is cut off, or restarted."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        server_id = rng.choice(cluster.ids)
        if rng.random() < 0.5:
            cluster.isolate(server_id)
            await asyncio.sleep(rng.uniform(0, 0.3))
            cluster.rejoin(server_id)
        else:
            await cluster.stop(server_id)
            await asyncio.sleep(rng.uniform(0, 0.4))
            if on_disk:
                del cluster.stores[server_id], cluster.snapshots[server_id]
            await cluster.start(server_id)
        await asyncio.sleep(rng.uniform(0.2, 1.0))


@pytest.mark.parametrize(
    ("seed", "seconds", "on_disk"),
    [
        (1, 4, False),
        pytest.param(2, 60, False, marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
        pytest.param(3, 60, True, marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
def test_servers_that_come_and_go_agree(
    tmp_path: Path, seed: int, seconds: float, on_disk: bool
) -> None:
    """S38, S43, S47, S48: every acknowledged command once, in one order, on all of them."""
    rng = random.Random(seed)
    config = replace(
        fast_config("any"), trailing_logs=0, snapshot_threshold=5, snapshot_interval=0.01
    )

    def store(server_id: ServerID) -> SqliteStore:
        return SqliteStore.open(tmp_path / server_id, server_id)

    def snapshots(server_id: ServerID) -> FileSnapshotStore:
        return FileSnapshotStore(tmp_path / server_id / "snapshots")

    async def run() -> None:
        cluster = Cluster(3, config=config)
        if on_disk:
            cluster = Cluster(3, config=config, make_store=store, make_snapshots=snapshots)
        acknowledged: list[bytes] = []
        async with cluster:
            until = asyncio.get_running_loop().time() + seconds
            await asyncio.gather(
                write(cluster, acknowledged, until), trouble(cluster, rng, until, on_disk=on_disk)
            )
            await cluster.leader()
            await cluster.converged()
            states = [recorded(cluster, i) for i in cluster.ids]
            assert states[0] == states[1] == states[2]
            assert len(set(states[0])) == len(states[0]), "each once"
            told = set(acknowledged)
            kept = [command for command in states[0] if command in told]
            assert kept == acknowledged
            assert all(r.failure is None for r in cluster.rafts.values())
            assert len(acknowledged) > 20
            print(f"{len(acknowledged)} commands, snapshots up to", leader_index(cluster))

    asyncio.run(run())


def leader_index(cluster: Cluster) -> list[object]:
    return [raft.stats()["last_snapshot_index"] for raft in cluster.rafts.values()]
