"""A leader's disk hangs: in virtual time the bound of its stepping down is one without slack.

S74, with the real driver and transport. Real processes: `tests/process/test_stalls.py`.
"""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from rafthttp.raft.core.durability import Durability
from rafthttp.raft.types import State
from rafthttp.testing.driversim.jobs import DEVICE
from rafthttp.testing.driversim.loop import virtual_loop
from rafthttp.testing.driversim.machine import COMMAND
from rafthttp.testing.driversim.member import Member
from rafthttp.testing.driversim.patches import determined
from rafthttp.testing.driversim.run import TIMEOUT, DriverCluster
from rafthttp.testing.sim.faults import Faults

SEEDS = 20


class HungDisk(DriverCluster):
    """A cluster whose leader's disk hangs, at some moment."""

    stepped_down = math.nan
    """Seconds after the first write that does not return."""

    async def run(self) -> None:
        for member in self.members:
            member.start()
        await self._settle("began")
        await asyncio.sleep(self.rng.random() * TIMEOUT)
        (old,) = (member for member in self.members if leads(member))
        old.disk.hung_until = math.inf
        begin = self.loop.now
        asking = old.spawn(old.apply(COMMAND.pack(1, self.clients.value()), 10.0))
        while leads(old):
            assert self.loop.now < begin + 2 * TIMEOUT, "it leads on a disk that hangs"
            await asyncio.sleep(TIMEOUT / 1000)
        self.stepped_down = self.loop.now - begin
        others = [member for member in self.members if member is not old]
        while not any(leads(member) for member in others):
            self.look()
            await asyncio.sleep(TIMEOUT / 100)
        await asyncio.sleep(10 * TIMEOUT)
        assert not leads(old), "it does not campaign on a disk that hangs"
        old.disk.hung_until = 0.0
        old.crash()  # what the disk has under way never ends
        old.start()
        await asyncio.wait({asking}, timeout=0)
        await self._settle("healed")
        await self._end()


def leads(member: Member) -> bool:
    return member.raft is not None and member.raft.state is State.LEADER


def seconds_to_step_down(seed: int) -> float:
    loop = virtual_loop()
    rng = random.Random(seed)
    try:
        with determined(loop, rng):
            cluster = HungDisk(loop, rng, Faults(), "raft")
            loop.executor_delay = lambda: DEVICE.get().busy()
            loop.run(cluster.run())
            return cluster.stepped_down
    finally:
        loop.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_leader_steps_down_within_twice_the_election_timeout(seed: int) -> None:
    """After one of it, in fact."""
    assert seconds_to_step_down(seed) < 2 * TIMEOUT


@pytest.mark.interpreted
def test_a_leader_that_does_not_step_down_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker is checked: nobody looks how long a write has had the disk for itself."""
    monkeypatch.setattr(Durability, "oldest_ns", property(lambda self: None))
    with pytest.raises(AssertionError, match="leads on a disk that hangs"):
        seconds_to_step_down(0)
