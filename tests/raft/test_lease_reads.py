"""Lease reads of real servers in one process; their rules are told in the core's dialogues.

S70, S73.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from rafthttp.raft.errors import LeadershipTransferError, NotLeaderError, RaftError
from rafthttp.raft.raft import Raft
from rafthttp.raft.runtime import clock as clock_module
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.types import Index
from rafthttp.testing.cluster import Cluster, fast_config, in_loop, until

LEASES = replace(fast_config("any"), lease_reads=True, early_campaign=False)


class Rounds:
    """Counts the reads that needed a quorum's round."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = Driver.confirm_read

        def confirm_read(driver: Driver) -> asyncio.Future[Index]:
            self.count += 1
            return original(driver)

        patch.setattr(Driver, "confirm_read", confirm_read)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(monkeypatch)


async def leased(cluster: Cluster, rounds: Rounds) -> Raft:
    """The leader, once it holds a lease."""
    leader = await cluster.leader()
    for _ in range(100):
        before = rounds.count
        await leader.read_index()
        if rounds.count == before:
            return leader
    raise AssertionError("no lease within a hundred reads")


async def read_until_refused(raft: Raft) -> None:
    async with asyncio.timeout(5):
        while True:
            await raft.read_index()
            await asyncio.sleep(0.005)


def test_a_lease_spares_the_round_and_ends_without_answers(rounds: Rounds) -> None:
    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await leased(cluster, rounds)
            before = rounds.count
            for n in range(1, 51):
                assert await leader.apply(b"%d" % n) == n
                assert await leader.read_index() == leader.commit_index == leader.applied_index
            assert rounds.count == before
            await leader.verify_leader()
            assert rounds.count == before + 1  # it asks the others, as it says
            cluster.isolate(leader.id)
            with pytest.raises(NotLeaderError):
                await read_until_refused(leader)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_process_that_was_paused_has_no_lease(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's clock may be that of its last pass (uvloop's is): the lease asks for itself."""

    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await leased(cluster, rounds)
            before = rounds.count
            woken = time.monotonic_ns() + 10_000_000_000
            with monkeypatch.context() as patch:
                patch.setattr(time, "monotonic_ns", lambda: woken)
                await leader.read_index()
            assert rounds.count == before + 1

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_machine_that_was_suspended_has_no_lease(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its monotonic clock stood still, those of the others did not. Afterwards there is one again,
    but not by answers to what was sent before."""

    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await leased(cluster, rounds)
            clock = leader._driver.lease_clock  # pyright: ignore[reportPrivateUsage] # its machine
            monkeypatch.setattr(clock, "_elapsed_ns", lambda: clock_module.boot_ns() + 3600 * 10**9)
            before = rounds.count
            await leader.read_index()
            assert rounds.count == before + 1
            await leased(cluster, rounds)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_promise_lasts_from_when_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower whose loop is late (uvloop's clock is that of its last pass) counts from now."""

    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await cluster.leader()
            follower = next(r for r in cluster.rafts.values() if r.id != leader.id)
            server = follower._driver.core._server  # pyright: ignore[reportPrivateUsage]
            late = time.monotonic_ns() + 100_000_000_000
            with monkeypatch.context() as patch:
                patch.setattr(time, "monotonic_ns", lambda: late)
                await until(lambda: server.promised_until_ns > late)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_transfer_ends_the_lease(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision 7: before TimeoutNow leaves; back where it is known that nobody campaigns by it."""

    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await leased(cluster, rounds)
            target = next(r for r in cluster.rafts.values() if r.id != leader.id)
            core = leader._driver.core  # pyright: ignore[reportPrivateUsage] # what a reader asks
            held: list[Index | None] = []
            original = leader._transport.timeout_now  # pyright: ignore[reportPrivateUsage]

            async def timeout_now(*args: object) -> object:
                held.append(core.lease_read_index(time.monotonic_ns()))
                return await original(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(leader._transport, "timeout_now", timeout_now)  # pyright: ignore[reportPrivateUsage]
            await leader.leadership_transfer_to_server(target.id, target.address)
            assert held == [None]
            with pytest.raises(RaftError):
                await leader.confirm_read_index()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_transfer_that_came_to_nothing_leaves_the_lease(rounds: Rounds) -> None:
    async def test() -> None:
        async with Cluster(config=LEASES) as cluster:
            leader = await leased(cluster, rounds)
            target = next(r for r in cluster.rafts.values() if r.id != leader.id)
            cluster.isolate(target.id)
            await leader.apply(b"the target lacks this")
            with pytest.raises(LeadershipTransferError):
                await leader.leadership_transfer_to_server(target.id, target.address)
            await leased(cluster, rounds)

    asyncio.run(asyncio.wait_for(test(), 60))


@in_loop
async def test_a_restarted_cluster_elects_again() -> None:
    """The promise that a voter may have given before its restart delays nobody for long."""
    async with Cluster(config=LEASES) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"before")
        for server_id in cluster.ids:
            await cluster.stop(server_id)
        for server_id in cluster.ids:
            await cluster.start(server_id)
        leader = await cluster.leader()
        assert await leader.apply(b"after") == 2
        await until(lambda: leader.applied_index == leader.last_index)
