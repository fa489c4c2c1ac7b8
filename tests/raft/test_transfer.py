"""Leadership transfers of real servers in one process; the core's rules are told in dialogues."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NoReturn, cast

import pytest

from rafthttp.raft.errors import (
    DifferentLeaderError,
    LeadershipTransferError,
    Outcome,
    PeerUnreachableError,
    RaftError,
    TimedOutError,
)
from rafthttp.raft.raft import Raft
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.types import ServerAddress, ServerID, State
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until


def follower_of(cluster: Cluster, leader: Raft) -> Raft:
    return next(raft for raft in cluster.rafts.values() if raft.id != leader.id)


@in_loop
async def test_another_voter_leads() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.apply(b"before")
        named = await leader.leadership_transfer()
        assert named.id != leader.id
        assert leader.state is State.FOLLOWER
        assert leader.leader_with_id() == named
        assert await cluster.rafts[named.id].apply(b"after") == 2


@in_loop
async def test_the_named_voter_leads() -> None:
    async with Cluster() as cluster:
        for _ in range(3):
            leader = await cluster.leader()
            target = follower_of(cluster, leader)
            named = await leader.leadership_transfer_to_server(target.id, target.address)
            assert named == (target.id, target.address)
            assert (await cluster.leader()).id == target.id


@in_loop
async def test_pending_commands_survive() -> None:
    """What was pending is committed or unknown, what comes meanwhile is definitely refused."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        before = [asyncio.ensure_future(leader.apply(b"b%d" % n)) for n in range(50)]
        await asyncio.sleep(0)
        transfer = asyncio.ensure_future(leader.leadership_transfer())
        await asyncio.sleep(0)
        with pytest.raises(LeadershipTransferError) as refused:
            await leader.apply(b"meanwhile")
        assert refused.value.outcome is Outcome.DEFINITE
        with pytest.raises(LeadershipTransferError, match="under way"):
            await leader.add_nonvoter(ServerID("n9"), ServerAddress("n9:1"))
        with pytest.raises(LeadershipTransferError, match="under way"):
            await leader.leadership_transfer()
        named = await transfer
        ends = await asyncio.gather(*before, return_exceptions=True)
        await cluster.rafts[named.id].barrier()
        logs = cast("Recorder", cluster.fsms[named.id]).data
        assert b"meanwhile" not in logs
        for n, end in enumerate(ends):
            if isinstance(end, RaftError):
                assert end.outcome is Outcome.UNKNOWN or b"b%d" % n not in logs
            else:
                assert b"b%d" % n in logs


@in_loop
async def test_who_cannot_lead_is_refused() -> None:
    """S68 too: only the leader transfers."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        other = follower_of(cluster, leader)
        await leader.add_nonvoter(ServerID("n4"), ServerAddress("n4:1"))
        to = leader.leadership_transfer_to_server
        for server_id, address, text in (
            (leader.id, leader.address, "itself"),
            (ServerID("n4"), ServerAddress("n4:1"), "does not vote"),
            (ServerID("n9"), ServerAddress("n9:1"), "no member"),
            (other.id, ServerAddress("elsewhere:1"), "is at"),
        ):
            with pytest.raises(LeadershipTransferError, match=text):
                await to(server_id, address)
        await leader.remove_server(other.id)
        with pytest.raises(LeadershipTransferError, match="no member"):
            await to(other.id, other.address)
        last = next(r for r in cluster.rafts.values() if r.id not in (other.id, leader.id))
        await until(lambda: last.leader_with_id() is not None)
        with pytest.raises(DifferentLeaderError):
            await last.leadership_transfer()
        await leader.apply(b"still leads")


@in_loop
async def test_a_single_voter_has_nobody_to_transfer_to() -> None:
    async with Cluster(1) as cluster:
        leader = await cluster.leader()
        with pytest.raises(LeadershipTransferError, match="no other voter"):
            await leader.leadership_transfer()
        await leader.apply(b"still leads")


@in_loop
async def test_an_unreachable_target_ends_within_the_election_timeout() -> None:
    """S67: definite, and commands are accepted again."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        target = follower_of(cluster, leader)
        cluster.isolate(target.id)
        await leader.apply(b"the target lacks this")
        begin = asyncio.get_running_loop().time()
        with pytest.raises(LeadershipTransferError, match="leads on") as ended:
            await leader.leadership_transfer_to_server(target.id, target.address)
        assert asyncio.get_running_loop().time() - begin < 2 * 0.2
        assert ended.value.outcome is Outcome.DEFINITE
        assert await leader.apply(b"accepted again") == 2


def test_a_dial_that_fails_ends_the_transfer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutNow never left: no reason to wait for the whole election timeout."""

    def nobody(_network: InmemNetwork, _source: ServerAddress, target: ServerAddress) -> NoReturn:
        raise PeerUnreachableError(f"cannot dial {target}")

    async def test() -> None:
        config = replace(fast_config("any"), election_timeout=20.0)
        async with Cluster(config=config) as cluster:
            leader = await cluster.leader()
            await cluster.converged()
            target = follower_of(cluster, leader)
            monkeypatch.setattr(InmemNetwork, "open", nobody)  # the streams there are go on
            async with asyncio.timeout(5):
                with pytest.raises(LeadershipTransferError, match="leads on"):
                    await leader.leadership_transfer_to_server(target.id, target.address)
                await leader.apply(b"accepted again")

    asyncio.run(asyncio.wait_for(test(), 60))


@in_loop
async def test_a_caller_that_gives_up_ends_a_transfer_that_has_not_begun() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        target = follower_of(cluster, leader)
        cluster.isolate(target.id)
        await leader.apply(b"the target lacks this")
        with pytest.raises(TimedOutError) as ended:
            await leader.leadership_transfer_to_server(target.id, target.address, timeout=0.01)
        assert ended.value.outcome is Outcome.DEFINITE
        await leader.apply(b"accepted again")
        call = asyncio.ensure_future(
            leader.leadership_transfer_to_server(target.id, target.address)
        )
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await leader.apply(b"and again")


@in_loop
async def test_a_shutdown_ends_a_transfer() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        target = follower_of(cluster, leader)
        cluster.isolate(target.id)
        await leader.apply(b"the target lacks this")
        call = asyncio.ensure_future(
            leader.leadership_transfer_to_server(target.id, target.address)
        )
        await asyncio.sleep(0)
        await leader.shutdown()
        with pytest.raises(RaftError):
            await call


SLOW = replace(
    fast_config("any"), heartbeat_timeout=2.0, election_timeout=2.0, early_campaign=False
)


@in_loop
async def test_a_shutdown_hands_over_first_when_asked() -> None:
    """Nobody waits for an election: a follower would campaign after two seconds at best."""
    async with Cluster(config=SLOW) as cluster:
        leader = await cluster.leader()
        rest = [i for i in cluster.ids if i != leader.id]
        await leader.apply(b"before")
        del cluster.rafts[leader.id]
        await leader.shutdown(hand_over=2.0)
        async with asyncio.timeout(1):
            successor = await cluster.leader(among=rest)
            assert await successor.apply(b"after") == 2


@in_loop
async def test_a_leader_the_others_cannot_do_without_hands_nothing_over() -> None:
    async with Cluster(2) as cluster:
        leader = await cluster.leader()
        term = leader.current_term
        assert not await leader.hand_over(timeout=1.0)
        assert (leader.state, leader.current_term) == (State.LEADER, term)


@in_loop
async def test_handing_over_is_for_leaders_only() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        term = leader.current_term
        assert await follower_of(cluster, leader).hand_over(timeout=1.0)
        assert leader.state is State.LEADER
        assert leader.current_term == term


@in_loop
async def test_who_can_still_be_dialled_may_wait_for_the_new_leaders_word() -> None:
    """What is under way at a server that stops is sent on to the new leader, which it must know."""
    async with Cluster() as cluster:
        leader = await cluster.leader()
        assert await leader.hand_over(timeout=5.0, wait_heard=True)
        successor = leader.leader_with_id()
        assert successor is not None
        assert successor.id != leader.id
