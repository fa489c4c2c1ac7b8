"""`Raft.restore`: a user's snapshot in place of the whole state, on every server."""

from __future__ import annotations

import asyncio
import io
import threading
from dataclasses import replace
from typing import BinaryIO, cast

import pytest

from rafthttp.raft.errors import (
    AbortedByRestoreError,
    LeadershipLostError,
    NotLeaderError,
    Outcome,
    RaftError,
    ShutdownError,
    SnapshotError,
    TimedOutError,
)
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.types import Configuration, Index, ServerID, State
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until


def state_of(*commands: bytes) -> bytes:
    return b"".join(len(c).to_bytes(4, "big") + c for c in commands)


def meta_of(data: bytes, index: Index = 7) -> SnapshotMeta:
    """As another cluster took it: of its configuration nothing is taken over."""
    return SnapshotMeta("from elsewhere", index, 99, Configuration(), 1, len(data))


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


def cluster_of(size: int) -> Cluster:
    return Cluster(size, config=replace(fast_config("any"), trailing_logs=1000))


class Held(io.BytesIO):
    """A source that is read once it is let go."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.go = threading.Event()
        self.asked = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked.set()
        assert self.go.wait(30)
        return super().read(size)


async def outcome_of(raft: Raft, source: BinaryIO, size: int) -> RaftError | None:
    meta = replace(meta_of(b""), size=size)
    try:
        await raft.restore(meta, source)
    except RaftError as error:
        return error
    return None


@in_loop
async def test_every_server_gets_the_state_and_goes_on_from_it() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        for number in range(20):
            await leader.apply(b"%d" % number)
        await cluster.converged()
        before, configuration = leader.last_index, leader.get_configuration()
        data = state_of(b"x", b"y")
        await leader.restore(meta_of(data), io.BytesIO(data))
        assert leader.applied_index == before + 2, "a hole for the snapshot, then a no-op"
        assert leader.stats()["last_snapshot_index"] == before + 1
        await cluster.converged()
        assert all(recorded(cluster, i) == [b"x", b"y"] for i in cluster.ids)
        await leader.apply(b"z")
        await cluster.converged()
        for server_id in cluster.ids:
            assert cluster.rafts[server_id].get_configuration() == configuration
            await cluster.stop(server_id)
        for server_id in cluster.ids:
            await cluster.start(server_id)
        await cluster.leader()
        await cluster.converged()
        assert all(recorded(cluster, i) == [b"x", b"y", b"z"] for i in cluster.ids)


@in_loop
async def test_the_index_is_above_the_snapshots_own() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        data = state_of(b"x")
        await leader.restore(meta_of(data, index=1000), io.BytesIO(data))
        assert leader.last_index == 1002
        await cluster.converged()
        assert all(recorded(cluster, i) == [b"x"] for i in cluster.ids)


@in_loop
async def test_a_server_that_was_away_gets_the_restored_state() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"a")
        away = next(i for i in cluster.ids if i != leader.id)
        cluster.isolate(away)
        data = state_of(b"x")
        await leader.restore(meta_of(data), io.BytesIO(data))
        cluster.rejoin(away)
        await cluster.converged()
        assert recorded(cluster, away) == [b"x"]


@in_loop
async def test_only_a_leader_restores() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        follower = next(r for r in cluster.rafts.values() if r is not leader)
        with pytest.raises(NotLeaderError) as caught:
            await follower.restore(meta_of(b""), io.BytesIO())
        assert caught.value.outcome is Outcome.DEFINITE


@in_loop
async def test_commands_pending_meanwhile_are_aborted_and_new_ones_refused() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        source = Held(state_of(b"x"))
        restoring = asyncio.create_task(outcome_of(leader, source, 5))
        await until(source.asked.is_set)
        with pytest.raises(AbortedByRestoreError) as caught:
            await leader.apply(b"refused")
        assert caught.value.outcome is Outcome.DEFINITE
        with pytest.raises(SnapshotError, match="another restore"):
            await leader.restore(meta_of(b""), io.BytesIO())
        source.go.set()
        assert await restoring is None
        await cluster.converged()
        assert recorded(cluster, leader.id) == [b"x"]

    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        others = [i for i in cluster.ids if i != leader.id]
        for other in others:
            cluster.isolate(other)
        pending = asyncio.create_task(leader.apply(b"pending"))
        await until(lambda: leader.last_index > leader.commit_index)
        restoring = asyncio.create_task(outcome_of(leader, io.BytesIO(state_of(b"x")), 5))
        with pytest.raises((AbortedByRestoreError, LeadershipLostError)) as lost:
            await pending
        assert lost.value.outcome is Outcome.UNKNOWN
        for other in others:
            cluster.rejoin(other)
        await restoring
        await cluster.leader()


@in_loop
async def test_what_is_short_or_long_of_its_size_changes_nothing() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"a")
        for size in (4, 6):
            error = await outcome_of(leader, io.BytesIO(state_of(b"x")), size)
            assert isinstance(error, SnapshotError)
            assert error.outcome is Outcome.DEFINITE
        await leader.apply(b"b")
        assert recorded(cluster, leader.id) == [b"a", b"b"]
        assert leader.stats()["last_snapshot_index"] == 0


@in_loop
async def test_a_restore_given_up_while_it_copies_changes_nothing() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        source = Held(state_of(b"x"))
        with pytest.raises(TimedOutError) as caught:
            await leader.restore(meta_of(state_of(b"x")), source, timeout=0.05)
        assert caught.value.outcome is Outcome.DEFINITE
        await leader.apply(b"a")
        source.go.set()
        assert recorded(cluster, leader.id) == [b"a"]


@in_loop
async def test_leadership_lost_while_it_copies_ends_it_definitely() -> None:
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"a")
        source = Held(state_of(b"x"))
        restoring = asyncio.create_task(outcome_of(leader, source, 5))
        await until(source.asked.is_set)
        cluster.isolate(leader.id)
        await until(lambda: leader.state is not State.LEADER)
        source.go.set()
        error = await restoring
        assert isinstance(error, LeadershipLostError)
        assert error.outcome is Outcome.DEFINITE
        cluster.rejoin(leader.id)
        new = await cluster.leader()
        await new.apply(b"b")
        await cluster.converged()
        assert all(recorded(cluster, i) == [b"a", b"b"] for i in cluster.ids)


@in_loop
async def test_a_shutdown_while_it_copies_ends_it() -> None:
    async with cluster_of(1) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        source = Held(state_of(b"x"))
        restoring = asyncio.create_task(outcome_of(leader, source, 5))
        await until(source.asked.is_set)
        stopping = asyncio.create_task(leader.shutdown())
        await until(lambda: leader.state is State.SHUTDOWN)
        source.go.set()
        await stopping
        assert isinstance(await restoring, ShutdownError)
