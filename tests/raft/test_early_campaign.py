"""The leader's streams close (decision 7): a grace, one real dial, and what its answer decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

from rafthttp.raft.config import Config
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.observer import LeaderObservation, Observer, RaftState
from rafthttp.raft.raft import Raft
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import ServerAddress, ServerID, State
from rafthttp.testing.cluster import Cluster, fast_config, in_loop, until

PATIENCE_SECONDS = 5.0


class PatientCluster(Cluster):
    """`n1` leads; the timers of the others play no part in what a test waits for."""

    def config(self, server_id: ServerID) -> Config:
        config = fast_config(server_id)
        if server_id == "n1":
            return config
        return replace(
            config, heartbeat_timeout=PATIENCE_SECONDS, election_timeout=PATIENCE_SECONDS
        )


class OneWay:
    """Dials in a network that are refused although the other direction is open."""

    def __init__(self, cluster: Cluster) -> None:
        self.dialled: list[tuple[ServerAddress, ServerAddress]] = []
        self.refused: set[tuple[ServerAddress, ServerAddress]] = set()
        self._open = cluster.network.open
        cluster.network.open = self.open  # type: ignore[method-assign]  # the seam of this test

    def open(self, source: ServerAddress, target: ServerAddress) -> Stream:
        self.dialled.append((source, target))
        if (source, target) in self.refused:
            raise PeerUnreachableError("refused by the test")
        return self._open(source, target)


@asynccontextmanager
async def unheard() -> AsyncGenerator[tuple[Cluster, Raft, OneWay, Observer]]:
    """A cluster whose leader can no longer reach `n2`; the streams between them are not cut yet."""
    async with PatientCluster() as cluster:
        leader = await cluster.leader()
        assert leader.id == "n1"
        await leader.apply(b"x")
        follower = cluster.rafts[ServerID("n2")]
        observer = Observer(RaftState, LeaderObservation)
        follower.register_observer(observer)
        network = OneWay(cluster)
        network.refused.add((cluster.address(leader.id), cluster.address(follower.id)))
        yield cluster, follower, network, observer


def cut(cluster: Cluster, server_id: ServerID) -> None:
    """Close all its streams, and let everybody dial again."""
    cluster.isolate(server_id)
    cluster.rejoin(server_id)


@in_loop
async def test_a_leader_that_answers_the_dial_stays() -> None:
    """All its streams closed, its RPCs silent: as after a proxy's reload, until it redials."""
    async with unheard() as (cluster, follower, network, observer):
        leader = await cluster.leader()
        back = (cluster.address(follower.id), cluster.address(leader.id))
        term = follower.current_term
        began = asyncio.get_running_loop().time()
        cut(cluster, follower.id)
        await until(lambda: back in network.dialled)
        network.refused.clear()
        await leader.apply(b"y")
        await cluster.converged()
        assert asyncio.get_running_loop().time() - began < PATIENCE_SECONDS
        follower.deregister_observer(observer)
        assert [observation async for observation in observer] == []
        assert follower.current_term == term
        assert network.dialled.count(back) == 1


@in_loop
async def test_a_leader_that_does_not_answer_the_dial_is_given_up() -> None:
    async with unheard() as (cluster, follower, network, observer):
        leader = await cluster.leader()
        network.refused.add((cluster.address(follower.id), cluster.address(leader.id)))
        term = follower.current_term
        began = asyncio.get_running_loop().time()
        cut(cluster, follower.id)
        seen = {type(one): one for one in (await anext(observer), await anext(observer))}
        assert asyncio.get_running_loop().time() - began < PATIENCE_SECONDS
        assert cast("LeaderObservation", seen[LeaderObservation]).leader is None
        assert cast("RaftState", seen[RaftState]).state is State.CANDIDATE
        assert follower.current_term == term, "the others hear the leader and refuse the pre-vote"


@in_loop
async def test_a_stopped_leader_is_replaced_early() -> None:
    """Closed streams are the signal; no election timeout passes."""
    async with PatientCluster() as cluster:
        leader = await cluster.leader()
        others = [i for i in cluster.ids if i != leader.id]
        await leader.apply(b"x")
        began = asyncio.get_running_loop().time()
        await cluster.stop(leader.id)
        await cluster.leader(among=others)
        assert asyncio.get_running_loop().time() - began < PATIENCE_SECONDS / 2
