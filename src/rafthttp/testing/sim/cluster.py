"""One simulated cluster and its run: harm first, then healing, with the invariants on every step.

Knows how a run is put together; what each part does stands in its own file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import CoreConfig, HardState
from rafthttp.raft.types import (
    Configuration,
    Index,
    LogPosition,
    Server,
    ServerAddress,
    ServerID,
    State,
    Suffrage,
)
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants import Checks, InvariantError
from rafthttp.testing.invariants.healed import Acknowledged, check_healed
from rafthttp.testing.invariants.linearizable import check_clients
from rafthttp.testing.invariants.view import Voter
from rafthttp.testing.sim.clients import Clients
from rafthttp.testing.sim.faults import MS, Faults
from rafthttp.testing.sim.go import GoVoter
from rafthttp.testing.sim.machine import Command, Machine
from rafthttp.testing.sim.nemesis import Nemesis
from rafthttp.testing.sim.network import Network
from rafthttp.testing.sim.process import Process
from rafthttp.testing.sim.world import Chance, World

ELECTION_TIMEOUT_NS: Final = 100 * MS
# A perfect world's: what is left when the faults are off.
_CALM: Final = Faults()
# Simulated time within which a cluster must be whole again: fifty election timeouts, for a split
# vote takes one and a far-behind server several round trips; most need three.
HEAL_NS: Final = 50 * ELECTION_TIMEOUT_NS
# Events within that time, likewise; the busiest of 10,000 seeds needs a fifth.
HEAL_EVENTS: Final = 30_000
# A key no client uses.
_MARKER_KEY: Final = -2
# Terms a simulated second, at most: each server may begin one a timeout, and once more where its
# leader's streams close (decision 7) or leadership is handed over. Twice that for skewed clocks.
_TERMS_PER_SECOND: Final = 150
_SNAPSHOTS_PER_SECOND: Final = 600


def swarm_of(seed: int) -> Faults:
    """The faults that a seed picks."""
    return Faults.swarm(Chance(f"{seed} faults").rng)


class Cluster:
    """Three to five servers, their clients and their nemesis, made from one seed.

    Args:
        seed: of everything.
        faults: what may happen; without them the seed picks them (swarm testing).
        servers: how many servers, clients: how many clients; without them the seed picks.
        skipped: names of single deeds that the nemesis leaves out (`Deed.name`).
        machine: makes the state machine of each server.
        workload: draws the data of each command; without it, there are none.
    """

    def __init__(
        self,
        seed: int,
        faults: Faults | None = None,
        *,
        servers: int | None = None,
        clients: int | None = None,
        skipped: Collection[str] = (),
        machine: Callable[[], Machine] = Machine,
        workload: Callable[[random.Random], bytes] | None = None,
    ) -> None:
        self._seed = seed
        # What the run is made of, and what its servers and disks do; the rest has its own.
        rng = random.Random(seed)  # noqa: S311 - histories must repeat
        self.world = World(rng)
        self.faults = swarm_of(seed) if faults is None else faults
        self.new_machine = machine
        self._workload = workload
        self._workload_chance = self.chance("workload").rng
        self.active_faults = self.faults
        self.election_timeout_ns = ELECTION_TIMEOUT_NS
        self.checks = Checks()
        self.trailing = 0 if self.faults.compact_to_tip else rng.choice((3, 20, 1000))
        # Where a frame takes one entry, large batches would only make the run long.
        many = (1, 1, 2, 4) if self.faults.mixed_batches else (4, 16)
        self.batches = rng.choice(((1,), (1, 1, 2, 9), many))
        self.processes: dict[ServerID, Process] = {}
        self.go: dict[ServerID, GoVoter] = {}
        self.voters: dict[ServerID, Voter] = {}
        """Every server, as a commit counts it."""
        self.network = Network(self)
        self._make_servers(rng, servers)
        many_clients = rng.choice((1, 3, 6, 10))
        self.clients = Clients(
            self,
            clients=many_clients if clients is None else clients,
            keys=rng.choice((1, 2, 5)),
            think_ns=rng.choice((5, 20, 60)) * MS,
        )
        for process in self.processes.values():
            process.start()
        self.nemesis = Nemesis(self, skipped)

    def command(self, key: int, value: int) -> Command:
        """The next command of a client."""
        if self._workload is None:
            return Command(key, value)
        return Command(key, value, self._workload(self._workload_chance))

    def chance(self, name: str) -> Chance:
        """A source of chance for one part of the run."""
        return Chance(f"{self._seed} {name}")

    @staticmethod
    def server(server_id: ServerID, suffrage: Suffrage = Suffrage.VOTER) -> Server:
        """A member of a configuration."""
        return Server(server_id, ServerAddress(f"{server_id}:1"), suffrage)

    def _make_servers(self, rng: random.Random, servers: int | None) -> None:
        count = rng.choice((3, 3, 4, 5))
        count = count if servers is None else servers
        ids = [ServerID(name) for name in "abcde"[:count]]
        go = ids[count - self.faults.go_followers :] if self.faults.go_followers else []
        voters = ids if rng.random() < 0.7 or count < 4 else [*ids[:3]]
        voters = [i for i in ids if i in voters or i in go]
        configuration = Configuration(tuple(self.server(i) for i in voters))
        first = Entry(1, configuration)
        for number, server_id in enumerate(ids):
            if server_id in go:
                voter = self.go[server_id] = GoVoter(self, server_id)
                voter.model.term, voter.model.entries = 1, [first]
                self.voters[server_id] = voter
                continue
            skew = self.faults.skew_ppm_max
            process = Process(
                self, number, self._config(server_id, rng), int((2 * rng.random() - 1) * skew)
            )
            if server_id in voters:
                process.disk.hard_state = HardState(1, None)
                process.disk.entries = [first]
                process.disk.configurations = ((1, configuration),)
            self.processes[server_id] = self.voters[server_id] = process

    def _config(self, server_id: ServerID, rng: random.Random) -> CoreConfig:
        faults, timeout = self.faults, ELECTION_TIMEOUT_NS
        config = CoreConfig(
            local_id=server_id,
            heartbeat_timeout_ns=timeout,
            election_timeout_ns=timeout,
            commit_timeout_ns=5 * MS,
            leader_lease_timeout_ns=timeout * 3 // 5,
            disk_timeout_ns=timeout * 3 // 2,
            append_size_bytes_max=450,
            inflight_appends_max=4,
            unsized_entries_max=3,
        )
        if faults.mixed_timeouts:
            mixed = int(timeout * (1 + rng.random()))
            config = replace(config, heartbeat_timeout_ns=mixed, election_timeout_ns=mixed)
        if faults.mixed_pre_vote:
            config = replace(config, pre_vote=rng.random() < 0.5)
        if faults.mixed_early_campaign:
            config = replace(config, early_campaign=rng.random() < 0.5)
        if faults.lease_reads:
            config = replace(config, lease_reads=True, early_campaign=False)
        if faults.mixed_batches:
            config = replace(
                config,
                append_size_bytes_max=rng.choice((1, 250, 450, 5000)),
                append_entries_max=rng.choice((1, 3, 8192)),
                inflight_appends_max=rng.choice((1, 2, 4, 64)),
            )
        return config

    # -- wiped servers

    def is_gone(self, server_id: ServerID) -> bool:
        """Whether nobody has that name any more."""
        return server_id not in self.voters

    def wiped(self) -> list[Process]:
        """Servers without a disk that may still be counted on."""
        return [p for p in self.processes.values() if p.wiped is not None]

    def latest_configuration(self, process: Process) -> tuple[Index, Configuration]:
        """The latest configuration a server has, up or down."""
        if process.core is not None:
            return process.core.configuration_index, process.core.configuration
        known = process.disk.initial_state().configurations
        return known[-1] if known else (0, Configuration())

    def release_wiped(self) -> None:
        """Take wiped servers out of the configuration; then they begin as new ones (S62)."""
        if not self.wiped():
            return
        for leader in [p for p in self.processes.values() if p.is_leader]:
            core = leader.live
            for server in self.wiped():
                if core.configuration.get(server.id) is not None:
                    if core.can_change_configuration and len(core.configuration.voters) > 1:
                        leader.propose_configuration(core.configuration.without(server.id))
                        break
                elif core.configuration_index <= core.commit_index and self._leads_on(core):
                    server.wiped = None
                    self.checks.durable.on_disk(server)
                    server.start()
                    server.take_part(LogPosition(core.term, core.commit_index))
        self.world.after(20 * MS, self.release_wiped)

    def _leads_on(self, core: Consensus) -> bool:
        """Whether a quorum would say so now, and what it has committed is of its term."""
        voters = [self.processes[voter.id].core for voter in core.configuration.voters]
        heard = sum(voter is not None and voter.term <= core.term for voter in voters)
        return (
            heard >= core.configuration.quorum_size and core.term_at(core.commit_index) == core.term
        )

    # -- the run

    def run(self, events: int) -> None:
        """So many events of harm, then healing; raises where an invariant breaks.

        Raises:
            InvariantError, AssertionError: an invariant, or one of the core's own, is broken.
        """
        world = self.world
        end = world.events + events
        while world.events < end:
            world.step()
        self._heal()
        harmed = world.now_ns
        self.checks.bounded.check(harmed, _TERMS_PER_SECOND, _SNAPSHOTS_PER_SECOND)
        check_clients(self.clients.finish())

    def _heal(self) -> None:
        """All faults end; the cluster must be whole within `HEAL_NS`."""
        world = self.world
        self.nemesis.stop()
        self.active_faults = _CALM
        self.network.heal(_CALM)
        for voter in self.go.values():
            voter.start(voter.life)
        for process in self.processes.values():
            process.device.heal(_CALM)
            process.paused_until_ns = 0
            if process.core is not None and process.core.disk_failed:
                process.crash()
            if process.core is None and process.wiped is None:
                process.start()
        end, events = world.now_ns + HEAL_NS, world.events + HEAL_EVENTS
        marker: Acknowledged | None = None
        checked = world.now_ns
        while not (marker is not None and self._is_whole(marker)):
            self._must_end(end, events)
            if world.now_ns >= checked:
                checked = world.now_ns + 10 * MS
                marker = self._mark(marker)
            world.step()
        self.clients.stop()
        while not self._has_converged():
            self._must_end(end, events)
            world.step()
        members = self._members()
        check_healed(
            [p.id for p in self.processes.values() if p.is_leader],
            [(p.id, p.applied, p.machine.digest) for p in members],
            self.clients.acknowledged,
            self.checks.states.committed,
        )

    def _must_end(self, end_ns: int, events: int) -> None:
        if self.world.now_ns > end_ns or self.world.events > events:
            raise InvariantError(f"healed: not whole after {HEAL_NS // MS} ms")

    def _leader(self) -> Process | None:
        leaders = [p for p in self.processes.values() if p.is_leader]
        return max(leaders, key=lambda p: p.live.term, default=None)

    def _members(self) -> list[Process]:
        """The running servers of the newest leader's configuration."""
        leader = self._leader()
        if leader is None:
            return []
        return [self.processes[s.id] for s in leader.live.configuration if s.id in self.processes]

    def _mark(self, marker: Acknowledged | None) -> Acknowledged | None:
        """Have a marker proposed, again where it was lost."""
        leader = self._leader()
        if leader is None or not leader.live.can_change_configuration:
            return marker
        if marker is not None:
            at = marker.at - leader.base - 1
            if at < 0 or (at < len(leader.log) and leader.log[at].payload == marker.payload):
                return marker
        command = Command(_MARKER_KEY, self.clients.value())
        return Acknowledged(leader.propose([command])[0], command)

    def _is_whole(self, marker: Acknowledged) -> bool:
        members = self._members()
        if not members or self.wiped():
            return False
        entry = self.checks.states.committed.get(marker.at)
        return (
            entry is not None
            and entry.payload == marker.payload
            and all(p.core is not None and p.applied >= marker.at for p in members)
        )

    def _has_converged(self) -> bool:
        members = self._members()
        if not members or any(p.core is None for p in members):
            return False
        leader = self._leader()
        assert leader is not None
        last = leader.live.last_index
        followers = [p for p in members if p is not leader]
        return (
            all(p.applied == last for p in members)
            and all(p.live.state is State.FOLLOWER for p in followers)
            and sum(p.is_leader for p in self.processes.values()) == 1
        )
