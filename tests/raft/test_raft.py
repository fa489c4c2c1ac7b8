"""The public server, several in one process: real driver, real wire bytes, memory streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from rafthttp.raft.bootstrap import bootstrap_cluster, has_existing_state
from rafthttp.raft.config import Config
from rafthttp.raft.errors import (
    CantBootstrapError,
    ConfigError,
    DifferentLeaderError,
    EntryTooLargeError,
    LeadershipLostError,
    NotLeaderError,
    Outcome,
    OverloadedError,
    RaftError,
    ShutdownError,
    StorageFailedError,
    TimedOutError,
)
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import (
    Configuration,
    Log,
    Server,
    ServerAddress,
    ServerID,
    State,
)
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until
from rafthttp.testing.storage import FaultyStore


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


# -- commands


@in_loop
async def test_apply_reaches_every_state_machine() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        answers = await asyncio.gather(*(leader.apply(b"%d" % n) for n in range(100)))
        assert answers == list(range(1, 101))
        await cluster.converged()
        assert all(recorded(cluster, i) == recorded(cluster, leader.id) for i in cluster.ids)
        assert len(recorded(cluster, leader.id)) == 100


@in_loop
async def test_apply_log_carries_extensions_time_and_index() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        applied = await leader.apply_log(b"data", b"more")
        assert applied.index == leader.last_index
        await cluster.converged()
        logs = [cast("Recorder", cluster.fsms[i]).logs[-1] for i in cluster.ids]
        assert logs[0].extensions == b"more"
        assert logs[0].appended_at_ns is not None
        assert logs[0] == logs[1] == logs[2]


@in_loop
async def test_a_follower_refuses_and_names_the_leader() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        follower = next(r for r in cluster.rafts.values() if r.id != leader.id)
        with pytest.raises(DifferentLeaderError) as caught:
            await follower.apply(b"x")
        assert caught.value.outcome is Outcome.DEFINITE
        assert caught.value.leader == (leader.id, leader.address)


class Picky(Recorder):
    def apply(self, log: Log) -> int:
        if log.data == b"bad":
            raise KeyError("bad")
        return super().apply(log)


@in_loop
async def test_an_exception_of_the_state_machine_is_its_clients_answer() -> None:
    async with Cluster(make_fsm=Picky) as cluster:
        leader = await cluster.leader()
        results = await asyncio.gather(
            leader.apply(b"1"), leader.apply(b"bad"), leader.apply(b"2"), return_exceptions=True
        )
        assert results[0] == 1
        assert isinstance(results[1], KeyError)
        assert results[2] == 2
        await cluster.converged()


@in_loop
async def test_bounds_are_definite() -> None:
    config = replace(fast_config("any"), entry_size_bytes_max=10, pending_applies_max=5)
    async with Cluster(config=config) as cluster:
        leader = await cluster.leader()
        await leader.barrier()  # its no-op no longer counts
        with pytest.raises(EntryTooLargeError):
            await leader.apply(b"x" * 11)
        results = await asyncio.gather(
            *(leader.apply(b"x") for _ in range(8)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, OverloadedError)]
        assert len(refused) == 3
        assert all(r.outcome is Outcome.DEFINITE for r in refused)


@in_loop
async def test_timeout_is_unknown_once_proposed_and_must_be_positive() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        for other in cluster.ids:
            if other != leader.id:
                cluster.isolate(other)
        with pytest.raises(TimedOutError) as caught:
            await leader.apply(b"x", timeout=0.05)
        assert caught.value.outcome is Outcome.UNKNOWN
        with pytest.raises(ConfigError, match="above 0"):
            await leader.apply(b"x", timeout=0)


@in_loop
async def test_a_timeout_that_is_not_positive_proposes_nothing() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        before = await leader.barrier()
        for call in (
            leader.apply(b"x", timeout=0),
            leader.apply_log(b"x", timeout=-1),
            leader.barrier(timeout=0),
        ):
            with pytest.raises(ConfigError, match="above 0"):
                await call
        assert (await leader.apply_log(b"y")).index == before + 1


@in_loop
async def test_a_change_that_is_late_once_it_is_proposed_is_unknown() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        with pytest.raises(TimedOutError) as caught:
            await leader.remove_server(cluster.ids[0], timeout=1e-9)
        assert caught.value.outcome is Outcome.UNKNOWN


@in_loop
async def test_timeout_is_definite_while_queued() -> None:
    """A turn proposes 4 MiB at most; what waits for the next is in no log yet."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        large = bytes(3 << 20)
        results = await asyncio.gather(
            *(leader.apply(large) for _ in range(6)),
            leader.apply(b"late", timeout=1e-9),
            return_exceptions=True,
        )
        late = results.pop()
        assert isinstance(late, TimedOutError)
        assert late.outcome is Outcome.DEFINITE
        assert results == list(range(1, 7))
        assert b"late" not in recorded(cluster, leader.id)


@in_loop
async def test_a_leader_without_a_quorum_steps_down_and_pending_is_unknown() -> None:
    """S35, check-quorum: an isolated leader ends its clients' doubt as what it is."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        cluster.isolate(leader.id)
        with pytest.raises(LeadershipLostError) as caught:
            await leader.apply(b"lost?")
        assert caught.value.outcome is Outcome.UNKNOWN
        assert leader.state is not State.LEADER
        others = [i for i in cluster.ids if i != leader.id]
        new = await cluster.leader(among=others)
        await new.apply(b"kept")
        cluster.rejoin(leader.id)
        await cluster.converged()
        assert recorded(cluster, leader.id)[-1] == b"kept"


@in_loop
async def test_barrier_waits_for_what_came_before() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        applies = [asyncio.ensure_future(leader.apply(b"x")) for _ in range(50)]
        await asyncio.sleep(0)
        await leader.barrier()
        assert len(recorded(cluster, leader.id)) == 50
        await asyncio.gather(*applies)


# -- reads


@in_loop
async def test_read_index_on_leader_and_refusal_on_a_follower() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.apply(b"x")
        assert await leader.read_index() == leader.commit_index
        await leader.verify_leader()
        follower = next(r for r in cluster.rafts.values() if r.id != leader.id)
        with pytest.raises(DifferentLeaderError):
            await follower.read_index()


@in_loop
async def test_an_isolated_leader_serves_no_read() -> None:
    """S70, S71: a read that spans the loss of leadership fails."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        cluster.isolate(leader.id)
        with pytest.raises(NotLeaderError):
            await leader.read_index()


# -- leadership


@in_loop
async def test_leader_changes_tells_the_newest() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        watcher = next(r for r in cluster.rafts.values() if r.id != leader.id)
        seen: list[ServerID | None] = []

        async def watch() -> None:
            async for one in watcher.leader_changes():
                seen.append(one.id if one else None)  # noqa: PERF401 - looked at meanwhile

        task = asyncio.ensure_future(watch())
        await until(lambda: seen == [leader.id])
        await cluster.stop(leader.id)
        rest = [i for i in cluster.ids if i != leader.id]
        new = await cluster.leader(among=rest)
        await until(lambda: seen[-1] == new.id)
        await watcher.shutdown()
        await task  # ends by itself


# -- disk


@in_loop
async def test_a_failed_disk_ends_the_part_of_its_server() -> None:
    """S6: pending is unknown, later calls are definite, the others go on."""
    async with Cluster(make_store=lambda i: FaultyStore(MemoryStore())) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"before")
        store = cast("FaultyStore", cluster.stores[leader.id])
        store.fail_write()
        cluster.isolate(leader.id)  # otherwise the others may commit it before the write fails
        with pytest.raises(RaftError) as caught:
            await leader.apply(b"x")
        assert caught.value.outcome is Outcome.UNKNOWN
        others = [i for i in cluster.ids if i != leader.id]
        new = await cluster.leader(among=others)
        await new.apply(b"after")
        assert leader.state is State.FOLLOWER
        assert leader.failure is not None
        with pytest.raises(StorageFailedError) as refused:
            await leader.apply(b"y")
        assert refused.value.outcome is Outcome.DEFINITE


@in_loop
async def test_a_hanging_disk_costs_leadership_within_twice_the_election_timeout() -> None:
    """S74."""
    config = fast_config("any")
    async with Cluster(make_store=lambda i: FaultyStore(MemoryStore()), config=config) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        store = cast("FaultyStore", cluster.stores[leader.id])
        store.hang_writes()
        started = asyncio.get_running_loop().time()
        pending = asyncio.ensure_future(leader.apply(b"x"))
        try:
            await until(lambda: leader.state is not State.LEADER)
            waited = asyncio.get_running_loop().time() - started
            assert waited < 2 * config.election_timeout + 0.1
            # The two others held it durably before that: it was committed without this disk.
            assert await pending == 1
            others = [i for i in cluster.ids if i != leader.id]
            new = await cluster.leader(among=others)
            await new.apply(b"after")
        finally:
            store.release_writes()
        await cluster.converged()
        assert recorded(cluster, leader.id)[-1] == b"after"


@in_loop
async def test_a_replay_that_waits_for_a_hanging_disk_keeps_no_client_waiting() -> None:
    """S74: committed by the others, but what comes before it is still to be read from disk."""
    async with Cluster(make_store=lambda i: FaultyStore(MemoryStore())) as cluster:
        leader = await cluster.leader()
        store = cast("FaultyStore", cluster.stores[leader.id])
        store.hang_writes()
        try:
            (result,) = await asyncio.wait_for(
                asyncio.gather(leader.apply(b"x"), return_exceptions=True), 5
            )
            assert result == 1 or isinstance(result, LeadershipLostError)
        finally:
            store.release_writes()
        await cluster.converged()


@in_loop
async def test_what_hanging_disks_keep_from_a_quorum_ends_as_unknown() -> None:
    """S74, S35: the leader steps down in time, and says what it does not know."""
    config = fast_config("any")
    async with Cluster(make_store=lambda i: FaultyStore(MemoryStore()), config=config) as cluster:
        leader = await cluster.leader()
        await leader.barrier()
        follower = next(i for i in cluster.ids if i != leader.id)
        stores = [cast("FaultyStore", cluster.stores[i]) for i in (leader.id, follower)]
        for store in stores:
            store.hang_writes()
        try:
            with pytest.raises(LeadershipLostError) as caught:
                await leader.apply(b"x", timeout=2 * config.election_timeout + 0.1)
            assert caught.value.outcome is Outcome.UNKNOWN
        finally:
            for store in stores:
                store.release_writes()
        new = await cluster.leader()
        await new.apply(b"after")
        await cluster.converged()


def test_restart_of_all_finds_everything_again(tmp_path: Path) -> None:
    """S3, S26, S72: sqlite on a real disk; replay comes before the reads."""
    ids = 3
    written = [b"%d" % n for n in range(500)]

    async def first() -> None:
        async with Cluster(ids, make_store=lambda i: SqliteStore.open(tmp_path / i, i)) as cluster:
            leader = await cluster.leader()
            await asyncio.gather(*(leader.apply(data) for data in written))

    async def second() -> None:
        cluster = Cluster(ids, make_store=lambda i: SqliteStore.open(tmp_path / i, i))
        for server_id in cluster.ids:
            await cluster.start(server_id)
        leader = await cluster.leader()
        await leader.read_index()
        assert recorded(cluster, leader.id) == written
        assert await leader.apply(b"more") == 501
        await cluster.converged()
        await asyncio.gather(*(raft.shutdown() for raft in cluster.rafts.values()))

    asyncio.run(first())
    asyncio.run(second())


def test_a_lagging_follower_is_fed_from_disk(tmp_path: Path) -> None:
    """What the cache no longer holds comes from the store, in order with what it does."""

    async def run() -> None:
        # Go's own timeouts: thirty megabytes on a busy disk may hold up a heartbeat.
        async with Cluster(
            make_store=lambda i: SqliteStore.open(tmp_path / i, i), config=Config(ServerID("any"))
        ) as cluster:
            leader = await cluster.leader()
            late = next(i for i in cluster.ids if i != leader.id)
            await cluster.stop(late)
            big = [b"%06d" % n + b"x" * 100_000 for n in range(300)]
            await asyncio.gather(*(leader.apply(data) for data in big))
            cluster.stores[late] = SqliteStore.open(tmp_path / late, late)
            await cluster.start(late)
            for n in range(50):
                await leader.apply(b"s%d" % n)
            await cluster.converged(timeout=30)
            assert recorded(cluster, late) == recorded(cluster, leader.id)
            assert len(recorded(cluster, late)) == 350

    asyncio.run(run())


# -- beginning and end


@in_loop
async def test_bootstrap_happens_once() -> None:
    """S61."""
    store = MemoryStore()
    config = fast_config("n1")
    configuration = Configuration((Server(ServerID("n1"), ServerAddress("n1:1")),))
    assert not has_existing_state(store, store, None)
    await bootstrap_cluster(config, store, store, None, configuration)
    assert has_existing_state(store, store, None)
    with pytest.raises(CantBootstrapError):
        await bootstrap_cluster(config, store, store, None, configuration)
    with pytest.raises(ConfigError, match="not in the configuration"):
        await bootstrap_cluster(
            fast_config("n2"), MemoryStore(), MemoryStore(), None, configuration
        )


@in_loop
async def test_a_single_voter_elects_itself_at_once() -> None:
    """S26."""
    async with Cluster(1) as cluster:
        leader = await cluster.leader(timeout=0.1)
        assert await leader.apply(b"x") == 1


@in_loop
async def test_a_server_outside_any_configuration_stays_quiet() -> None:
    """S25: it has no vote to campaign with, and waits to be added.

    A voter with the same timeouts that reaches nobody campaigns several times meanwhile.
    """
    async with Cluster() as cluster:
        await (await cluster.leader()).barrier()
        voter, *others = cluster.ids
        for other in others:
            await cluster.stop(other)
        dialled: Counter[ServerAddress] = Counter()
        opened = cluster.network.open

        def count(source: ServerAddress, target: ServerAddress) -> Stream:
            dialled[source] += 1
            return opened(source, target)

        cluster.network.open = count  # type: ignore[method-assign]  # the seam of this test
        store = MemoryStore()
        address = ServerAddress("n9:1")
        transport = InmemTransport(cluster.network, address)
        raft = await Raft.start(fast_config("n9"), Recorder(), store, store, None, transport)
        await until(lambda: cluster.rafts[voter].state is State.CANDIDATE)
        dialled.clear()
        await until(lambda: dialled[cluster.address(voter)] >= 3 * len(others))
        assert raft.state is State.FOLLOWER
        assert raft.current_term == 0
        assert dialled[address] == 0
        await raft.shutdown()


@in_loop
async def test_shutdown_ends_every_call_and_is_idempotent() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.barrier()  # its no-op is committed, so that the change is proposed at once
        for other in cluster.ids:
            if other != leader.id:
                cluster.isolate(other)
        proposed = leader.last_index + 2
        apply = asyncio.ensure_future(leader.apply(b"x"))
        read = asyncio.ensure_future(leader.read_index())
        change = asyncio.ensure_future(leader.add_nonvoter(ServerID("n9"), ServerAddress("n9:1")))
        await until(lambda: leader.last_index >= proposed)
        await leader.shutdown()
        await leader.shutdown()
        assert leader.state is State.SHUTDOWN
        results = await asyncio.gather(apply, read, change, return_exceptions=True)
        assert all(isinstance(r, ShutdownError | LeadershipLostError) for r in results), results
        assert isinstance(results[0], RaftError)
        assert results[0].outcome is Outcome.UNKNOWN
        with pytest.raises(ShutdownError):
            await leader.apply(b"y")


@in_loop
async def test_a_broken_state_machine_stops_the_server_loudly() -> None:
    """A replica that cannot apply must not go on as if it had."""

    class Broken(Recorder):
        def apply_batch(self, logs: Any) -> Any:
            del logs
            raise RuntimeError("out of memory")

    async with Cluster(1, make_fsm=Broken) as cluster:
        leader = await cluster.leader()
        with pytest.raises(RaftError) as caught:
            await leader.apply(b"x")
        assert caught.value.outcome is Outcome.UNKNOWN
        assert leader.state is State.SHUTDOWN
        assert isinstance(leader.failure, RuntimeError)


# -- mistakes of the application


@in_loop
async def test_a_command_that_is_not_bytes_harms_nobody() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        wrong: Any = "text"
        results = await asyncio.gather(
            leader.apply(b"1"), leader.apply(wrong), leader.apply(b"2"), return_exceptions=True
        )
        assert isinstance(results[1], TypeError)
        assert str(results[1]) == "a command must be bytes, not str"
        with pytest.raises(TypeError):
            await leader.apply_log(b"x", wrong)
        assert await leader.apply(b"3") == 3
        assert recorded(cluster, leader.id) == [b"1", b"2", b"3"]


@in_loop
async def test_a_state_machine_must_be_an_instance() -> None:
    store = MemoryStore()
    for wrong, text in ((Recorder, "class Recorder"), (None, "fsm is None")):
        fsm: Any = wrong
        transport = InmemTransport(InmemNetwork(), ServerAddress("n1:1"))
        with pytest.raises(ConfigError, match=text):
            await Raft.start(fast_config("n1"), fsm, store, store, None, transport)


@in_loop
async def test_reads_after_shutdown_say_so() -> None:
    async with Cluster(1) as cluster:
        raft = await cluster.leader()
        await raft.shutdown()
        with pytest.raises(ShutdownError):
            await raft.read_index()
