"""Snapshots and compaction of the public server: taken, installed, found again at a restart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO, cast

import pytest

from rafthttp.raft.errors import (
    NothingNewToSnapshotError,
    Outcome,
    ShutdownError,
    SnapshotError,
)
from rafthttp.raft.fsm import FSMSnapshot
from rafthttp.raft.raft import Raft
from rafthttp.raft.types import Log, ServerID, State
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until

N1, N2, N3, N4 = (ServerID(f"n{number}") for number in range(1, 5))


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


def cluster_of(size: int, *, trailing: int = 0, **settings: Any) -> Cluster:
    """Without a schedule: snapshots are taken on demand only, unless asked for."""
    config = replace(fast_config("any"), trailing_logs=trailing)
    return Cluster(size, config=config, **settings)


async def apply_many(raft: Raft, count: int, name: str = "e") -> list[bytes]:
    commands = [f"{name}{number}".encode() for number in range(count)]
    await asyncio.gather(*(raft.apply(command) for command in commands))
    return commands


async def no_threads() -> None:
    """Wait until no snapshot's thread is left: they end a moment after they say so."""
    names = ("rafthttp-persist", "rafthttp-install", "rafthttp-send", "rafthttp-restore")
    await until(lambda: not [t for t in threading.enumerate() if t.name in names])


class Gate(Recorder):
    """A recorder whose `persist` and `restore` wait, when told to, on their threads."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()
        self.error: Exception | None = None
        self.released = 0
        self.restored = 0

    def snapshot(self) -> FSMSnapshot:
        return _GateSnapshot(self, super().snapshot())

    def restore(self, source: BinaryIO) -> None:
        self.wait()
        super().restore(source)
        self.restored += 1

    def wait(self) -> None:
        self.waiting.set()
        assert self.open.wait(30)
        self.waiting.clear()
        if self.error is not None:
            raise self.error


class _GateSnapshot:
    def __init__(self, fsm: Gate, inner: FSMSnapshot) -> None:
        self._fsm = fsm
        self._inner = inner

    def persist(self, sink: BinaryIO) -> None:
        sink.write(b"")
        self._fsm.wait()
        self._inner.persist(sink)

    def release(self) -> None:
        self._fsm.released += 1


def gate(cluster: Cluster, server_id: ServerID) -> Gate:
    return cast("Gate", cluster.fsms[server_id])


# -- taking one


@in_loop
async def test_a_snapshot_on_demand_compacts_and_says_where_it_ends() -> None:
    async with cluster_of(1, trailing=3) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 20)
        meta = await leader.snapshot()
        assert meta.index == leader.applied_index
        assert meta.term == leader.current_term
        assert meta.configuration == leader.get_configuration().configuration
        assert meta.configuration_index == 1
        store = cluster.stores[N1]
        assert (store.first_index(), store.last_index()) == (meta.index - 2, meta.index)
        assert leader.stats()["last_snapshot_index"] == meta.index
        assert leader.stats()["last_snapshot_term"] == meta.term
        with pytest.raises(NothingNewToSnapshotError) as caught:
            await leader.snapshot()
        assert caught.value.outcome is Outcome.DEFINITE
        await leader.apply(b"more")
        assert (await leader.snapshot()).index == meta.index + 1


@in_loop
async def test_snapshots_are_taken_when_so_many_entries_were_applied() -> None:
    config = replace(
        fast_config("any"), snapshot_interval=0.01, snapshot_threshold=50, trailing_logs=10
    )
    async with Cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 30)
        assert leader.stats()["last_snapshot_index"] == 0
        await apply_many(leader, 30)
        await cluster.converged()

        def compacted() -> bool:
            taken = [cast("int", r.stats()["last_snapshot_index"]) for r in cluster.rafts.values()]
            return min(taken) >= 50 and min(s.first_index() for s in cluster.stores.values()) > 40

        await until(compacted)


@in_loop
async def test_trailing_logs_of_zero_leave_nothing_and_a_restart_works() -> None:
    """S48."""
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        commands = await apply_many(leader, 30)
        await cluster.converged()
        for server_id in cluster.ids:
            await cluster.rafts[server_id].snapshot()
            store = cluster.stores[server_id]
            assert store.first_index() == store.last_index() + 1
        for server_id in cluster.ids:
            await cluster.stop(server_id)
        for server_id in cluster.ids:
            await cluster.start(server_id)
            assert recorded(cluster, server_id) == commands
        leader = await cluster.leader()
        await leader.apply(b"after")
        await cluster.converged()
        assert all(recorded(cluster, i) == [*commands, b"after"] for i in cluster.ids)


class Durable(Recorder):
    """Keeps its state itself, across its server's restarts; what it has is not applied again."""

    restores = 0

    def apply(self, log: Log) -> int:
        if not self.logs or log.index > self.logs[-1].index:
            super().apply(log)
        return len(self.logs)

    def restore(self, source: BinaryIO) -> None:
        self.restores += 1
        super().restore(source)


@in_loop
async def test_a_state_machine_that_keeps_its_state_is_not_restored_at_start() -> None:
    """Entries behind the snapshot are applied, also those it has; a leader's snapshot counts."""
    config = replace(fast_config("any"), trailing_logs=0, no_snapshot_restore_on_start=True)
    made: dict[int, Durable] = {}

    def kept() -> Durable:
        """One for each server: they start in order, and the first again and again."""
        return made.setdefault(0 if len(made) == 3 else len(made), Durable())

    async with Cluster(3, config=config, make_fsm=kept) as cluster:
        leader = await cluster.leader()
        commands = await apply_many(leader, 20)
        await cluster.converged()
        meta = await cluster.rafts[N1].snapshot()
        commands += await apply_many(await cluster.leader(), 20, "behind")
        await cluster.converged()
        durable = made[0]
        applied = [log.index for log in durable.logs]
        assert applied[19] <= meta.index < applied[20]
        await cluster.stop(N1)
        del durable.logs[30:]  # it had come that far
        raft = await cluster.start(N1)
        assert cluster.fsms[N1] is durable
        assert raft.applied_index == meta.index
        await cluster.converged()
        assert (durable.data, durable.restores) == (commands, 0)
        # Not at start: what a leader sends.
        await cluster.stop(N1)
        del cluster.stores[N1], cluster.snapshots[N1]
        for server_id in (N2, N3):
            await cluster.rafts[server_id].snapshot()
        await cluster.start(N1)
        await cluster.converged()
        assert (durable.data, durable.restores) == (commands, 1)


@in_loop
async def test_a_failing_snapshot_is_reported_and_the_server_goes_on() -> None:
    async with cluster_of(1, make_fsm=Gate) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 5)
        gate(cluster, N1).error = OSError(28, "No space left on device")
        with pytest.raises(SnapshotError, match="No space left"):
            await leader.snapshot()
        assert "No space left" in str(leader.stats()["snapshot_error"])
        assert gate(cluster, N1).released == 1
        assert not cluster.snapshots[N1].list()
        assert cluster.stores[N1].first_index() == 1
        gate(cluster, N1).error = None
        await leader.apply(b"goes on")
        await leader.snapshot()
        assert leader.stats()["snapshot_error"] is None


@in_loop
async def test_a_persist_that_hangs_costs_neither_leadership_nor_a_clean_end() -> None:
    async with cluster_of(3, make_fsm=Gate) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 5)
        term = leader.current_term
        fsm = gate(cluster, leader.id)
        fsm.open.clear()
        taking = asyncio.create_task(leader.snapshot())
        await until(fsm.waiting.is_set)
        loop = asyncio.get_running_loop()
        end = loop.time() + 3 * cluster.config(N1).election_timeout
        while loop.time() < end:
            await leader.apply(b"while it hangs")
        assert leader.current_term == term
        assert cast("int", leader.stats()["snapshot_persisting_bytes"]) == 0
        stopping = asyncio.create_task(cluster.stop(leader.id))
        await until(lambda: leader.state is State.SHUTDOWN)
        fsm.open.set()
        await stopping
        with pytest.raises(ShutdownError):
            await taking
        assert fsm.released == 1
        assert not cluster.snapshots[leader.id].list()
        await no_threads()


@in_loop
async def test_who_waits_for_a_snapshot_begins_none_once_the_server_is_shut_down() -> None:
    """The second asks for more than the first covers, so it would take one of its own."""
    async with cluster_of(1, make_fsm=Gate) as cluster:
        leader = await cluster.leader()
        fsm = gate(cluster, leader.id)
        await leader.apply(b"a")
        fsm.open.clear()
        first = asyncio.create_task(leader.snapshot())
        await until(fsm.waiting.is_set)
        await leader.apply(b"b")
        second = asyncio.create_task(leader.snapshot())
        await asyncio.sleep(0)
        stopping = asyncio.create_task(cluster.stop(leader.id))
        await until(lambda: leader.state is State.SHUTDOWN)
        fsm.open.set()
        await stopping
        for taking in (first, second):
            with pytest.raises(ShutdownError):
                await taking
        assert fsm.released == 1
        assert not cluster.snapshots[leader.id].list()
        await no_threads()


@in_loop
async def test_a_snapshot_holds_the_configuration_of_its_own_index() -> None:
    """S46: a change just before is included, under its own index; an uncommitted one never is."""
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 3)
        follower = next(i for i in cluster.ids if i != leader.id)
        changed = await leader.demote_voter(follower)
        meta = await leader.snapshot()
        assert meta.configuration_index == changed
        assert not meta.configuration.has_vote(follower)
        others = [i for i in cluster.ids if i != leader.id]
        for other in others:
            cluster.isolate(other)
        pending = asyncio.create_task(leader.add_voter(follower, cluster.address(follower)))
        await until(lambda: leader.get_configuration().index > changed)
        with pytest.raises(NothingNewToSnapshotError):
            await leader.snapshot()
        for other in others:
            cluster.rejoin(other)
        await pending
        for server_id in cluster.ids:
            await cluster.converged()
            raft = cluster.rafts[server_id]
            await raft.snapshot()
            await cluster.stop(server_id)
            again = await cluster.start(server_id)
            assert again.get_configuration().configuration.has_vote(follower)
            assert again.get_configuration().index == pending.result()


class Unsure(Recorder):
    """Cannot say what its state is."""

    def snapshot(self) -> FSMSnapshot:
        raise ValueError("not now")


@in_loop
async def test_a_state_machine_that_gives_no_snapshot_goes_on() -> None:
    async with cluster_of(1, make_fsm=Unsure) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"a")
        with pytest.raises(SnapshotError, match="not now") as caught:
            await leader.snapshot()
        assert caught.value.outcome is Outcome.DEFINITE
        await leader.apply(b"b")
        assert leader.stats()["snapshot_error"] == "ValueError: not now"


class Unhurried(Recorder):
    """Takes its time for each batch."""

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        time.sleep(0.02)  # what an application does; no test waits for it
        return super().apply_batch(logs)


@in_loop
async def test_a_snapshot_waits_for_the_newest_committed_configuration() -> None:
    """S46: while a restarted server replays, it knows only that one; not the one of its state."""
    async with cluster_of(1, make_fsm=Unhurried) as cluster:
        raft = await cluster.leader()
        for _ in range(6):
            await apply_many(raft, 1000)
        changed = await raft.add_nonvoter(N4, cluster.address(N4))
        await cluster.stop(N1)
        raft = await cluster.start(N1)
        await until(lambda: raft.commit_index >= changed)
        assert raft.applied_index < changed, "it replays"
        meta = await raft.snapshot()
        assert meta.configuration_index == changed <= meta.index
        assert meta.configuration.get(N4) is not None


# -- installing one


@in_loop
async def test_a_wiped_follower_comes_back_by_a_snapshot() -> None:
    """S47: the log of those that are left begins at the snapshot."""
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        commands = await apply_many(leader, 50)
        await cluster.converged()
        for raft in cluster.rafts.values():
            await raft.snapshot()
        lost = next(i for i in cluster.ids if i != leader.id)
        await cluster.stop(lost)
        del cluster.stores[lost], cluster.snapshots[lost]
        raft = await cluster.start(lost)
        await cluster.converged()
        assert recorded(cluster, lost) == commands
        assert raft.stats()["last_snapshot_index"] == leader.stats()["last_snapshot_index"]
        assert raft.get_configuration() == leader.get_configuration()
        commands += await apply_many(leader, 5, "after")
        await cluster.converged()
        assert recorded(cluster, lost) == commands
        await cluster.stop(lost)
        await cluster.start(lost)
        await cluster.converged()
        assert recorded(cluster, lost) == commands


@in_loop
async def test_a_lagging_follower_is_served_from_the_trailing_entries() -> None:
    """The log reaches back behind the snapshot: nobody needs it, not even after a restart."""
    async with cluster_of(3, trailing=100, make_fsm=Gate) as cluster:
        leader = await cluster.leader()
        await apply_many(leader, 10)
        await cluster.converged()
        late = next(i for i in cluster.ids if i != leader.id)
        cluster.isolate(late)
        await apply_many(leader, 50, "more")
        there = [r for i, r in cluster.rafts.items() if i != late]
        await until(lambda: min(r.applied_index for r in there) == leader.last_index)
        for server_id in cluster.ids:
            if server_id != late:
                await cluster.rafts[server_id].snapshot()
                await cluster.stop(server_id)
                await cluster.start(server_id)
        cluster.rejoin(late)
        await cluster.leader()
        await cluster.converged()
        assert gate(cluster, late).restored == 0
        assert len(recorded(cluster, late)) == 60


@in_loop
async def test_a_divergent_log_gives_way_to_the_snapshot() -> None:
    """S38."""
    async with cluster_of(3) as cluster:
        old = await cluster.leader()
        commands = await apply_many(old, 10)
        await cluster.converged()
        rest = [i for i in cluster.ids if i != old.id]
        cluster.isolate(old.id)
        lost = [asyncio.create_task(old.apply(b"never committed")) for _ in range(40)]
        new = await cluster.leader(among=rest)
        commands += await apply_many(new, 20, "other")
        await until(lambda: all(cluster.rafts[i].applied_index == new.last_index for i in rest))
        for server_id in rest:
            await cluster.rafts[server_id].snapshot()
        cluster.rejoin(old.id)
        await cluster.converged()
        assert recorded(cluster, old.id) == commands
        assert await asyncio.gather(*lost, return_exceptions=True)
        await new.apply(b"goes on")
        await cluster.converged()


@in_loop
async def test_two_snapshots_in_quick_succession_do_no_harm() -> None:
    """S43."""
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        late = next(i for i in cluster.ids if i != leader.id)
        commands: list[bytes] = []
        for turn in range(4):
            cluster.isolate(late)
            commands += await apply_many(leader, 10, f"{turn}.")
            await leader.snapshot()
            cluster.rejoin(late)
            commands += await apply_many(leader, 10, f"{turn}+")
            await leader.snapshot()
        await cluster.converged()
        assert recorded(cluster, late) == commands


@in_loop
async def test_a_nonvoter_added_out_of_reach_gets_the_snapshot_once_it_is_there() -> None:
    """S44."""
    async with cluster_of(3) as cluster:
        leader = await cluster.leader()
        commands = await apply_many(leader, 10)
        cluster.isolate(N4)
        await leader.add_nonvoter(N4, cluster.address(N4))
        commands += await apply_many(leader, 10, "more")
        await leader.snapshot()
        cluster.rejoin(N4)
        raft = await cluster.start(N4)
        await until(lambda: raft.applied_index == leader.applied_index)
        assert recorded(cluster, N4) == commands


@in_loop
async def test_heartbeats_and_elections_go_on_while_a_state_machine_restores() -> None:
    """A follower that restores answers its leader, and votes for the next one."""
    async with cluster_of(3, make_fsm=Gate) as cluster:
        leader = await cluster.leader()
        commands = await apply_many(leader, 10)
        await cluster.converged()
        await leader.snapshot()
        late = next(i for i in cluster.ids if i != leader.id)
        third = next(i for i in cluster.ids if i not in (leader.id, late))
        await cluster.rafts[third].snapshot()
        await cluster.stop(late)
        del cluster.stores[late], cluster.snapshots[late]
        raft = await cluster.start(late)
        fsm = gate(cluster, late)
        fsm.open.clear()
        await until(fsm.waiting.is_set)
        term = leader.current_term
        loop = asyncio.get_running_loop()
        end = loop.time() + 3 * cluster.config(N1).election_timeout
        while loop.time() < end:
            await leader.apply(b"x")
            commands.append(b"x")
        assert (leader.current_term, raft.current_term) == (term, term)
        assert raft.state is State.FOLLOWER
        await cluster.stop(leader.id)
        new = await cluster.leader(among=[third, late])
        assert new.id == third
        await until(fsm.waiting.is_set)
        fsm.open.set()
        await new.apply(b"y")
        commands.append(b"y")
        await until(lambda: raft.applied_index == new.applied_index)
        assert recorded(cluster, late) == commands
