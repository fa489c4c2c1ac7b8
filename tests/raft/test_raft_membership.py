"""Membership and observers of the public server, several in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import pytest

from rafthttp.raft.errors import (
    ConfigurationChangeError,
    DifferentLeaderError,
    Outcome,
    RaftError,
    TransportError,
)
from rafthttp.raft.observer import (
    FailedHeartbeatObservation,
    LeaderObservation,
    Observer,
    PeerObservation,
    RaftState,
    ResumedHeartbeatObservation,
)
from rafthttp.raft.raft import Raft
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import Leader, Server, ServerAddress, ServerID, State, Suffrage
from rafthttp.testing.cluster import Cluster, Recorder, in_loop, until


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


# -- membership


@in_loop
async def test_add_promote_and_remove_a_server() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await asyncio.gather(*(leader.apply(b"%d" % n) for n in range(20)))
        new = ServerID("n4")
        await cluster.start(new)
        await leader.add_nonvoter(new, cluster.address(new))
        await leader.wait_caught_up(new, timeout=5)
        index = await leader.add_voter(new, cluster.address(new))
        assert leader.get_configuration().index == index
        assert leader.get_configuration().configuration.has_vote(new)
        assert await leader.add_voter(new, cluster.address(new)) == index, "nothing to change"
        await cluster.converged()
        assert len(recorded(cluster, new)) == 20
        await leader.remove_server(new)
        assert leader.get_configuration().configuration.get(new) is None
        await cluster.stop(new)


@in_loop
async def test_changes_that_are_refused() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        at = leader.get_configuration().index
        with pytest.raises(ConfigurationChangeError, match="belongs to server"):
            await leader.add_voter(ServerID("n9"), cluster.address(cluster.ids[0]))
        with pytest.raises(ConfigurationChangeError, match="changed since"):
            await leader.add_nonvoter(ServerID("n9"), ServerAddress("n9:1"), prev_index=at + 100)
        assert leader.get_configuration().index == at
        follower = next(r for r in cluster.rafts.values() if r.id != leader.id)
        with pytest.raises(DifferentLeaderError):
            await follower.remove_server(leader.id)


@in_loop
async def test_concurrent_changes_queue_up() -> None:
    """One configuration is uncommitted at a time; the others wait for their turn."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        new = [ServerID(f"x{n}") for n in range(4)]
        await asyncio.gather(*(leader.add_nonvoter(i, cluster.address(i)) for i in new))
        configuration = leader.get_configuration().configuration
        assert {s.id for s in configuration} == {*cluster.ids, *new}
        assert [s.suffrage for s in configuration if s.id in new] == [Suffrage.NONVOTER] * 4


@in_loop
async def test_the_leader_removes_itself() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.remove_server(leader.id)
        others = [i for i in cluster.ids if i != leader.id]
        new = await cluster.leader(among=others)
        assert new.id != leader.id
        await new.apply(b"x")
        assert leader.state is not State.LEADER


@in_loop
async def test_identify_names_the_server_at_an_address() -> None:
    async with Cluster() as cluster:
        one, two = cluster.ids[:2]
        term = cluster.rafts[two].current_term
        assert await cluster.rafts[one].identify(cluster.address(two), timeout=1) == two
        assert cluster.rafts[two].current_term == max(term, cluster.rafts[two].current_term)
        with pytest.raises(TransportError):
            await cluster.rafts[one].identify(ServerAddress("nobody:1"), timeout=0.2)


# -- observers


@in_loop
async def test_observers_are_told_of_roles_leaders_and_members() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        observer = Observer(PeerObservation, RaftState, LeaderObservation)
        leader.register_observer(observer)
        new = Server(ServerID("n9"), ServerAddress("n9:1"), Suffrage.NONVOTER)
        await leader.add_nonvoter(new.id, new.address)
        await leader.remove_server(new.id)
        await leader.shutdown()
        seen = [observation async for observation in observer]
        assert seen[:2] == [PeerObservation(new, removed=False), PeerObservation(new, removed=True)]
        assert seen[-1] == RaftState(State.SHUTDOWN, leader.current_term)
        late = Observer()
        leader.register_observer(late)
        assert [observation async for observation in late] == []


@in_loop
async def test_observers_are_told_of_a_change_of_leaders() -> None:
    async with Cluster() as cluster:
        old = await cluster.leader()
        observers = {
            raft: Observer(LeaderObservation, RaftState) for raft in cluster.rafts.values()
        }
        for raft, observer in observers.items():
            raft.register_observer(observer)
        cluster.isolate(old.id)
        others = [i for i in cluster.ids if i != old.id]
        await until(lambda: agreed(cluster.rafts[i] for i in others) is not None)
        await until(lambda: old.leader_with_id() is None)
        cluster.rejoin(old.id)
        await until(lambda: agreed(observers) is not None)
        new = agreed(observers)
        assert new is not None
        for raft, observer in observers.items():
            raft.deregister_observer(observer)
            seen = [observation async for observation in observer]
            leaders = [o.leader for o in seen if isinstance(o, LeaderObservation)]
            assert leaders[-1] == named(new)
            if raft is old:
                assert leaders[0] is None, "it leads no more, and knows of nobody else"
            if raft is new:
                assert leaders[-2] is None, "no candidate knows of a leader"
            assert all(one != other for one, other in pairwise(leaders)), "changes only"
            states = [o for o in seen if isinstance(o, RaftState)]
            assert (RaftState(State.LEADER, new.current_term) in states) == (raft is new)
            if raft is new:
                assert states[-1] == RaftState(State.LEADER, new.current_term)


def agreed(rafts: Iterable[Raft]) -> Raft | None:
    """Whom all of them know as the leader, once it is."""
    rafts = list(rafts)
    leaders = {raft.leader_with_id() for raft in rafts}
    return next((r for r in rafts if r.state is State.LEADER and leaders == {named(r)}), None)


def named(raft: Raft) -> Leader:
    return Leader(raft.id, Cluster.address(raft.id))


@in_loop
async def test_a_failed_heartbeat_is_told_once_and_so_is_its_return() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        lost = next(i for i in cluster.ids if i != leader.id)
        observer = Observer(FailedHeartbeatObservation, ResumedHeartbeatObservation)
        leader.register_observer(observer)
        cluster.isolate(lost)
        assert await anext(observer) == FailedHeartbeatObservation(lost)
        dials = 0
        opened = cluster.network.open

        def count(source: ServerAddress, target: ServerAddress) -> Stream:
            nonlocal dials
            dials += target == cluster.address(lost)
            return opened(source, target)

        cluster.network.open = count  # type: ignore[method-assign]  # the seam of this test
        await until(lambda: dials >= 5)  # each fails, and none is told
        cluster.rejoin(lost)
        assert await anext(observer) == ResumedHeartbeatObservation(lost)
        leader.deregister_observer(observer)
        assert [observation async for observation in observer] == []


@in_loop
async def test_an_address_change_is_followed() -> None:
    """S57: replication goes to the new address at once."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        moved = next(i for i in cluster.ids if i != leader.id)
        await cluster.stop(moved)
        fsm = cluster.fsms[moved] = Recorder()
        store = cluster.stores[moved]
        address = ServerAddress("elsewhere:1")
        transport = InmemTransport(cluster.network, address)
        raft = await Raft.start(cluster.config(moved), fsm, store, store, None, transport)
        cluster.rafts[moved] = raft
        await leader.add_voter(moved, address)
        await leader.apply(b"x")
        await cluster.converged()
        server = leader.get_configuration().configuration.get(moved)
        assert server is not None
        assert server.address == address


@in_loop
async def test_a_demoted_voter_gets_the_log_and_does_not_count() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        demoted, other = (i for i in cluster.ids if i != leader.id)
        await leader.demote_voter(demoted)
        configuration = leader.get_configuration().configuration
        assert [s.suffrage for s in configuration if s.id == demoted] == [Suffrage.NONVOTER]
        await leader.apply(b"x")
        await cluster.converged()
        assert recorded(cluster, demoted) == [b"x"]
        cluster.isolate(other)
        with pytest.raises(RaftError) as caught:
            await leader.apply(b"two voters are left, and one is away")
        assert caught.value.outcome is Outcome.UNKNOWN
