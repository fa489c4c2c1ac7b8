"""One run of whole servers: harm, healing, and what must be true all along.

Knows how a run is put together; what each part does stands in its own file.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from typing import Final

from rafthttp.raft.config import Config
from rafthttp.raft.types import Index, Log, State
from rafthttp.testing.driversim.clients import Clients
from rafthttp.testing.driversim.disk import Disk
from rafthttp.testing.driversim.loop import VirtualLoop
from rafthttp.testing.driversim.machine import COMMAND, Registers
from rafthttp.testing.driversim.member import (
    Member,
    NodeMember,
    RaftMember,
    configuration_of,
    server_id,
)
from rafthttp.testing.driversim.nemesis import Nemesis
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.driversim.watch import Watch
from rafthttp.testing.invariants import InvariantError
from rafthttp.testing.invariants.linearizable import check_clients
from rafthttp.testing.sim.faults import Faults

TIMEOUT: Final = 0.1
"""Election timeout, virtual seconds; as in the other simulator, whose fault rates count on it."""
HARM_SECONDS: Final = 2.0
HEAL_SECONDS: Final = 25.0
"""Within which a cluster must be whole again. Most need a second; where a snapshot's stream was
left half-open its sender waits for 10 s (`runtime.send_snapshot`), and that may happen twice."""
_STOP_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.01
_MARKER_KEY: Final = -2
# As in the other simulator.
_TERMS_PER_SECOND: Final = 150
_SNAPSHOTS_PER_SECOND: Final = 600


class DriverCluster:
    """Servers, clients and nemesis of one run, made from one seed."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, faults: Faults, kind: str) -> None:
        self.loop, self.rng, self.faults, self.kind = loop, rng, faults, kind
        self.began = loop.now
        self.seen: Counter[str] = Counter()
        self.network = VirtualNetwork(loop, rng, self.tell)
        self.network.seen = self.seen
        self._hash = hashlib.blake2b(digest_size=16)
        count = rng.choice((3, 3, 5)) if kind == "raft" else 3
        self.ballast_bytes = rng.choice((0, 0, 400_000))
        self.members = [self._member(number) for number in range(count)]
        self.watch = Watch(self.members)
        self._introduce()
        self.clients = Clients(loop, rng, self.members, rng.choice((1, 2, 5)))
        self.clients.padding = bytes(rng.choice((0, 0, 0, 20_000)))
        self.clients.on_acknowledged = self._on_acknowledged

    def _member(self, number: int) -> Member:
        rng, faults = self.rng, self.faults
        config = Config(
            server_id(number),
            heartbeat_timeout=TIMEOUT,
            election_timeout=TIMEOUT * (1 + rng.random() * faults.mixed_timeouts),
            commit_timeout=0.005,
            leader_lease_timeout=TIMEOUT * 0.6,
            pre_vote=not (faults.mixed_pre_vote and rng.random() < 0.5),
            early_campaign=not faults.lease_reads
            and not (faults.mixed_early_campaign and rng.random() < 0.5),
            lease_reads=faults.lease_reads,
            trailing_logs=0 if faults.compact_to_tip else rng.choice((3, 20, 1000)),
            append_entries_max=rng.choice((1, 2, 64)) if faults.mixed_batches else 8192,
            inflight_appends_max=rng.choice((1, 2, 16)) if faults.mixed_batches else 64,
        )
        disk = Disk(self.loop, rng, self.seen)
        disk.busy_max = faults.fsync_ns_max / 1e9
        disk.slow_chance = faults.slow_fsync_chance
        disk.torn_chance = faults.torn_write_chance
        disk.snapshot_failure_chance = faults.snapshot_failure_chance
        rate = 1 + (2 * rng.random() - 1) * faults.skew_ppm_max / 1e6
        member = NodeMember if self.kind == "node" else RaftMember
        return member(self, number, config, disk, rate)

    def _introduce(self) -> None:
        configuration = configuration_of(self.members)
        for number, member in enumerate(self.members):
            if isinstance(member, RaftMember):
                member.first = configuration
            elif isinstance(member, NodeMember):
                others = [f"http://{m.address}/raft" for m in self.members if m is not member]
                member.joins = lambda others=others: others  # type: ignore[misc] # bound now
                member.is_first = number == 0
                member.carrier = self.rng.choice(("auto", "raw", "websocket"))

    # -- what the parts tell

    def tell(self, what: object) -> None:
        """Something happened that belongs to the history."""
        self._hash.update(f"{self.loop.now!r} {what!r}\n".encode())

    def on_applied(self, member: Member, machine: Registers, log: Log) -> None:
        """A state machine took in a command."""
        self.tell(("applied", member.id, log.index, log.term))
        self.watch.on_applied(member.id, machine, log, COMMAND.unpack_from(log.data)[1])

    def _on_acknowledged(self, value: int) -> None:
        self.tell(("acknowledged", value))
        self.watch.check_acknowledged(value)

    def look(self) -> None:
        """Raise what has broken; and whatever failed out of a client's sight."""
        if self.watch.failure is not None:
            raise self.watch.failure
        if self.loop.complaints:
            raise InvariantError(f"errors: nobody took {self.loop.complaints[0]}")

    # -- the run

    async def run(self) -> None:
        """All of it.

        Raises:
            AssertionError: a property does not hold; the text begins with its name.
        """
        for member in self.members:
            member.start()
        await self._settle("began")
        faults, network = self.faults, self.network
        network.latency_max = faults.latency_ns_max / 1e9
        network.delay_chance = faults.delay_chance
        network.reset_chance = faults.drop_chance / 10
        network.refuse_chance = faults.drop_chance
        heavy = self.ballast_bytes or self.clients.padding
        network.cuts = self.rng.choice(("whole", "mixed", "mixed" if heavy else "pieces"))
        network.window_bytes = self.rng.choice((4 << 10, 64 << 10))
        nemesis = Nemesis(self.loop, self.rng, network, self.members, faults, self.seen, TIMEOUT)
        self.clients.start(self.rng.choice((1, 3, 6)), self.rng.choice((0.005, 0.02, 0.06)))
        await self._watched(asyncio.create_task(asyncio.sleep(HARM_SECONDS)))
        network.delay_chance = network.reset_chance = network.refuse_chance = 0.0
        network.latency_max = min(network.latency_max, 0.002)
        for member in self.members:
            member.disk.slow_chance = member.disk.snapshot_failure_chance = 0.0
            member.disk.busy_max = min(member.disk.busy_max, 0.002)
        nemesis.stop()
        await self._watched(asyncio.create_task(self.clients.stop()))
        await self._settle("healed")
        self._check_kept()
        check_clients(self.clients.history)
        self.watch.bounded.check(
            round((self.loop.now - self.began) * 1e9), _TERMS_PER_SECOND, _SNAPSHOTS_PER_SECOND
        )
        await self._end()

    async def _watched(self, task: asyncio.Task[None]) -> None:
        while not task.done():
            self.look()
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)
        task.result()
        self.look()

    async def _settle(self, what: str) -> None:
        """Wait until one leads, serves, and all have its state."""
        ends = self.loop.now + HEAL_SECONDS
        value = 0
        why = "nobody leads"
        while self.loop.now < ends:
            self.look()
            await asyncio.sleep(_LOOK_SECONDS)
            for member in self.members:  # a start may have met a fault
                if member.life is None and what == "healed":
                    member.start()
            leaders = [m for m in self.members if m.is_up and self._leads(m)]
            if len(leaders) != 1:
                why = f"{[m.id for m in leaders]} lead"
                continue
            leader = leaders[0]
            assert leader.raft is not None
            if not value:
                trial = self.clients.value()
                how, error = await self.clients.ask(
                    leader, leader.apply(COMMAND.pack(_MARKER_KEY, trial), TIMEOUT)
                )
                value = trial if how == "ok" else 0
                why = f"{leader.id} does not serve: {error!r}"
                continue
            configuration = leader.raft.get_configuration().configuration
            behind = [
                m.id
                for m in self.members
                if (not m.is_up or value not in m.machine.applied)
                and (what == "began" or configuration.get(m.id) is not None)
            ]
            if not behind:
                self.tell(what)
                return
            why = f"{behind} did not converge"
        raise InvariantError(f"healed: {what}: not within {HEAL_SECONDS:g} s: {why}")

    def _leads(self, member: Member) -> bool:
        return member.raft is not None and member.raft.state is State.LEADER

    def _check_kept(self) -> None:
        applied: dict[int, Index] = {}
        for member in self.members:
            if member.is_up:
                applied |= member.machine.applied
        for value in self.clients.acknowledged:
            if value not in applied:
                raise InvariantError(f"healed: acknowledged {value} is lost")
        for value in self.clients.refused:
            if value in applied:
                raise InvariantError(f"errors: {value} was refused for good, and is applied")

    async def _end(self) -> None:
        """Every server stops in good order, and leaves nothing behind."""
        lives = [member.life for member in self.members]
        stopping = [member.spawn(member.stop()) for member in self.members if member.life]
        await asyncio.wait(stopping, timeout=_STOP_SECONDS)
        for task in stopping:
            if not task.done():
                raise InvariantError("stop: a server does not stop")
            task.result()
        await asyncio.sleep(0.1)
        for life in lives:
            left = [] if life is None else self.loop.tasks_of(life)
            if left:
                raise InvariantError(f"stop: {life and life.name} leaves {left} behind")
        self.look()

    def digest(self) -> str:
        """Of all that happened, and of all chance that was drawn."""
        self._hash.update(repr(random.random()).encode())  # noqa: S311 - all chance was the same
        return self._hash.hexdigest()
