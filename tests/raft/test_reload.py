"""Settings that change while a server runs; a cluster begun, and ended, on running servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from rafthttp.raft.config import Config, ReloadableConfig
from rafthttp.raft.errors import CantBootstrapError, ConfigError, ShutdownError
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, State, Suffrage
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until

SLOW = replace(fast_config("any"), heartbeat_timeout=60.0, election_timeout=60.0)


def wrong(name: str, value: object) -> dict[str, Any]:
    return {name: value}


# -- reload_config


@in_loop
async def test_a_shorter_timeout_counts_at_once() -> None:
    """A follower that would wait for a minute campaigns within the new timeout."""
    config = replace(SLOW, early_campaign=False)
    async with Cluster(config=replace(config, heartbeat_timeout=0.2)) as cluster:
        leader = await cluster.leader()
        rest = [raft for raft in cluster.rafts.values() if raft.id != leader.id]
        for raft in cluster.rafts.values():
            raft.reload_config(replace(raft.reloadable_config(), heartbeat_timeout=60.0))
        cluster.isolate(leader.id)
        await until(lambda: leader.state is not State.LEADER)
        for raft in rest:
            raft.reload_config(
                replace(raft.reloadable_config(), heartbeat_timeout=0.2, election_timeout=0.2)
            )
        async with asyncio.timeout(5):
            await cluster.leader(among=[raft.id for raft in rest])


@in_loop
async def test_a_longer_timeout_is_kept_by_a_leader_that_beats_more_slowly() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        for raft in cluster.rafts.values():
            raft.reload_config(
                replace(raft.reloadable_config(), heartbeat_timeout=2.0, election_timeout=2.0)
            )
        assert leader.reloadable_config().heartbeat_timeout == 2.0
        assert await leader.apply(b"goes on") == 1
        assert (await cluster.leader()).id == leader.id


@in_loop
async def test_a_wrong_setting_changes_nothing() -> None:
    async with Cluster(1) as cluster:
        raft = await cluster.leader()
        before = raft.reloadable_config()
        assert before == ReloadableConfig.of(cluster.config(raft.id))
        for name, value in (
            ("heartbeat_timeout", 0.001),
            ("election_timeout", 0.1),
            ("trailing_logs", -1),
            ("snapshot_interval", None),
            ("snapshot_threshold", 0),
        ):
            with pytest.raises(ConfigError, match=name):
                raft.reload_config(replace(before, **wrong(name, value)))
        assert raft.reloadable_config() == before
        assert await raft.apply(b"goes on") == 1


@in_loop
async def test_snapshot_settings_reach_who_takes_them() -> None:
    async with Cluster(1) as cluster:
        raft = await cluster.leader()
        raft.reload_config(
            replace(
                raft.reloadable_config(),
                trailing_logs=7,
                snapshot_interval=33.0,
                snapshot_threshold=5,
            )
        )
        taken = raft._driver.snapshots.config  # pyright: ignore[reportPrivateUsage] # who uses it
        assert (taken.trailing_logs, taken.snapshot_interval, taken.snapshot_threshold) == (
            7,
            33.0,
            5,
        )


@in_loop
async def test_a_shorter_interval_between_snapshots_counts_at_once() -> None:
    """Not only when the longer one, up to two weeks, has passed."""
    config = replace(fast_config("any"), snapshot_interval=3600.0, snapshot_threshold=2)
    async with Cluster(1, config=config) as cluster:
        raft = await cluster.leader()
        await asyncio.gather(*(raft.apply(b"a") for _ in range(3)))
        raft.reload_config(replace(raft.reloadable_config(), snapshot_interval=0.01))
        await until(lambda: raft.stats()["last_snapshot_index"] != 0)


def test_what_leases_rest_on_is_not_reloaded() -> None:
    config = Config(ServerID("n1"), lease_reads=True, early_campaign=False)
    present = ReloadableConfig.of(config)
    assert replace(present, trailing_logs=1).applied_to(config).trailing_logs == 1
    for more in ({}, wrong("heartbeat_timeout", 2.0)):
        with pytest.raises(ConfigError, match="lease_reads"):
            replace(present, **wrong("election_timeout", 2.0), **more).applied_to(config)


# -- a cluster begins on running servers


async def idle(network: InmemNetwork, name: str, config: Config | None = None) -> Raft:
    store = MemoryStore()
    transport = InmemTransport(network, ServerAddress(f"{name}:1"))
    config = fast_config(name) if config is None else config
    return await Raft.start(config, Recorder(), store, store, None, transport)


def voters(*names: str) -> Configuration:
    return Configuration(tuple(Server(ServerID(n), ServerAddress(f"{n}:1")) for n in names))


@in_loop
async def test_a_running_server_begins_a_cluster() -> None:
    raft = await idle(InmemNetwork(), "n1", replace(SLOW, local_id=ServerID("n1")))
    assert raft.state is State.FOLLOWER
    await raft.bootstrap_cluster(voters("n1"))
    async with asyncio.timeout(5):  # it does not wait for its timeout of a minute
        await until(lambda: raft.state is State.LEADER)
        assert await raft.apply(b"first") == 1
    with pytest.raises(CantBootstrapError):
        await raft.bootstrap_cluster(voters("n1"))
    assert "leader in term 2" in repr(raft)
    await raft.shutdown()
    with pytest.raises(ShutdownError):
        await raft.bootstrap_cluster(voters("n1"))


@in_loop
async def test_several_running_servers_begin_together() -> None:
    network = InmemNetwork()
    rafts = [await idle(network, name) for name in ("n1", "n2", "n3")]
    await asyncio.gather(*(raft.bootstrap_cluster(voters("n1", "n2", "n3")) for raft in rafts))

    def leads(raft: Raft) -> bool:  # its first entry stands in its log: it takes commands
        return raft.state is State.LEADER and raft.last_index > 1

    await until(lambda: any(map(leads, rafts)))
    assert await next(filter(leads, rafts)).apply(b"first") == 1
    for raft in rafts:
        await raft.shutdown()


@in_loop
async def test_who_would_not_vote_begins_nothing() -> None:
    raft = await idle(InmemNetwork(), "n1")
    learner = Server(ServerID("n1"), ServerAddress("n1:1"), Suffrage.NONVOTER)
    for configuration in (voters("n2"), Configuration((learner, *voters("n2")))):
        with pytest.raises(ConfigError, match="no voter"):
            await raft.bootstrap_cluster(configuration)
    assert (raft.last_index, raft.current_term) == (0, 0)
    await raft.bootstrap_cluster(voters("n1"))
    await raft.shutdown()


# -- shutdown_on_remove


@pytest.mark.parametrize("shuts_down", [True, False])
def test_a_leader_that_removes_itself(shuts_down: bool) -> None:
    """hashicorp/raft's ShutdownOnRemove; it answers whoever asked, and has a successor first."""

    async def test() -> None:
        config = replace(fast_config("any"), shutdown_on_remove=shuts_down)
        async with Cluster(config=config) as cluster:
            leader = await cluster.leader()
            rest = [i for i in cluster.ids if i != leader.id]
            await leader.remove_server(leader.id)
            successor = await cluster.leader(among=rest)
            assert await successor.apply(b"goes on") == 1
            if shuts_down:
                await until(lambda: leader.state is State.SHUTDOWN)
            else:
                assert leader.state is State.FOLLOWER
            assert all(cluster.rafts[i].state is not State.SHUTDOWN for i in rest)

    asyncio.run(asyncio.wait_for(test(), 60))


@in_loop
async def test_a_removed_follower_stays_and_can_be_added_again() -> None:
    """As in Go, where a leader feeds nobody beyond the entry that removes it.

    Added again, it finds its removal in the log, committed before what adds it has arrived.
    """
    config = replace(fast_config("any"), shutdown_on_remove=True, append_entries_max=2)
    async with Cluster(config=config) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"before")
        await cluster.converged()
        removed = next(raft for raft in cluster.rafts.values() if raft.id != leader.id)
        await leader.remove_server(removed.id)
        term = leader.current_term
        await until(lambda: removed.state is State.CANDIDATE)  # it knows of nothing
        await asyncio.gather(*(leader.apply(b"without it") for _ in range(20)))
        assert (leader.state, leader.current_term) == (State.LEADER, term)
        assert all(raft.state is not State.SHUTDOWN for raft in cluster.rafts.values())
        await leader.add_voter(removed.id, cluster.address(removed.id))
        await cluster.converged()
        assert (removed.state, removed.current_term) == (State.FOLLOWER, term)
        assert removed.applied_index == leader.applied_index


@in_loop
async def test_a_demoted_leader_stays() -> None:
    """It is a member still; in Go it would shut down."""
    config = replace(fast_config("any"), shutdown_on_remove=True)
    async with Cluster(config=config) as cluster:
        leader = await cluster.leader()
        await leader.demote_voter(leader.id)
        successor = await cluster.leader(among=[i for i in cluster.ids if i != leader.id])
        await successor.apply(b"goes on")
        await cluster.converged()
        assert leader.state is State.FOLLOWER


# -- what a server tells


@in_loop
async def test_stats_have_the_keys_of_hashicorp_raft() -> None:
    async with Cluster() as cluster:
        leader = await cluster.leader()
        await leader.apply(b"x")
        stats = leader.stats()
        for key in (
            *("state", "term", "last_log_index", "last_log_term", "commit_index"),
            *("applied_index", "fsm_pending", "last_snapshot_index", "last_snapshot_term"),
            *("protocol_version", "protocol_version_min", "protocol_version_max"),
            *("snapshot_version_min", "snapshot_version_max", "latest_configuration_index"),
            *("latest_configuration", "num_peers", "last_contact"),
        ):
            assert key in stats
        assert stats["latest_configuration"] == ", ".join(
            f"{i} at {cluster.address(i)} (voter)" for i in cluster.ids
        )
        assert (stats["num_peers"], stats["last_contact"]) == (2, 0)
