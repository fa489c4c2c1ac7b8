"""Who does the harm: at random times of the world, what the `Faults` of the run allow.

Knows when and to whom; the network, disks and processes know how.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rafthttp.raft.errors import LeadershipTransferError
from rafthttp.raft.types import Configuration, ServerID, Suffrage
from rafthttp.testing.sim.faults import MS
from rafthttp.testing.sim.process import Process
from rafthttp.testing.sim.world import Chance

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster


@dataclass(eq=False, slots=True)
class _Kind:
    """One kind of deed, and how many were planned."""

    name: str
    rate: float
    do: Callable[[], str]
    chance: Chance
    done: int = 0


class Deed(NamedTuple):
    """Something the nemesis did. `name` is its kind and number: `crash.3` is the fourth crash."""

    name: str
    at_ns: int
    what: str

    def __str__(self) -> str:
        return f"{self.at_ns / MS:9.3f} ms  {self.name:14} {self.what}"


class Nemesis:
    """Draws each kind's deeds and their times, as long as the run is in its first phase.

    Each kind, and each deed, has its own source of chance: those that stay when others are left out
    come at the same times, and to the same servers where they can.

    Attributes:
        deeds: what was done, in order.
    """

    def __init__(self, cluster: Cluster, skipped: Collection[str] = ()) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._chance = cluster.chance("nemesis")
        self._skipped = frozenset(skipped)
        self._stopped = False
        self._partition = 0
        self.deeds: list[Deed] = []
        faults = cluster.faults
        for kind, rate, do in (
            ("clog", faults.clog_rate, self._clog),
            ("split", faults.partition_rate, self._split),
            ("deafen", faults.asymmetric_rate, self._deafen),
            ("bridge", faults.bridge_rate, self._bridge),
            ("reset", faults.reset_rate, self._reset),
            ("hang", faults.hung_fsync_rate, self._hang),
            ("eio", faults.eio_rate, self._eio),
            ("enospc", faults.enospc_rate, self._enospc),
            ("pause", faults.pause_rate, self._pause),
            ("stall", faults.stall_rate, self._stall),
            ("crash", faults.crash_rate, self._crash),
            ("wipe", faults.wipe_rate, self._wipe),
            ("change", faults.membership_rate, self._change),
            ("transfer", faults.transfer_rate, self._transfer),
            ("snapshot", faults.snapshot_rate, self._snapshot),
            ("flip", faults.flip_rate, self._flip),
            ("go_crash", faults.go_crash_rate, self._go_crash),
        ):
            if rate > 0:
                self._plan(_Kind(kind, rate, do, cluster.chance(kind)))

    def stop(self) -> None:
        """No more harm."""
        self._stopped = True

    def _plan(self, kind: _Kind) -> None:
        wait = kind.chance.rng.expovariate(kind.rate)
        self._world.after(1 + int(wait * 1_000 * MS), self._act, kind)

    def _act(self, kind: _Kind) -> None:
        if self._stopped:
            return
        name = f"{kind.name}.{kind.done}"
        kind.done += 1
        if name not in self._skipped:
            self._chance = self._cluster.chance(name)
            what = kind.do()
            if what:
                self._world.seen[kind.name] += 1
                self.deeds.append(Deed(name, self._world.now_ns, what))
        self._plan(kind)

    # -- network

    def _ids(self) -> list[ServerID]:
        ids = list(self._cluster.voters)
        self._chance.rng.shuffle(ids)
        return ids

    def _cut(self, blocked: set[tuple[ServerID, ServerID]], what: str) -> str:
        """Block these pairs for a while; an earlier partition ends."""
        world = self._world
        self._partition += 1
        self._cluster.network.blocked = blocked
        world.after((20 + self._chance.below(400)) * MS, self._join, self._partition)
        return what

    def _join(self, partition: int) -> None:
        if partition == self._partition:
            self._cluster.network.blocked = set()

    def _groups(self) -> tuple[list[ServerID], list[ServerID]]:
        ids = self._ids()
        at = 1 + self._chance.below(len(ids) - 1)
        return ids[:at], ids[at:]

    def _split(self) -> str:
        one, two = self._groups()
        both = {(a, b) for a in one for b in two} | {(b, a) for a in one for b in two}
        return self._cut(both, f"{_text(one)} | {_text(two)}")

    def _deafen(self) -> str:
        one, two = self._groups()
        return self._cut({(a, b) for a in one for b in two}, f"{_text(one)} not to {_text(two)}")

    def _bridge(self) -> str:
        middle, *others = self._ids()
        if len(others) < 2:
            return ""
        at = 1 + self._chance.below(len(others) - 1)
        one, two = others[:at], others[at:]
        both = {(a, b) for a in one for b in two} | {(b, a) for a in one for b in two}
        return self._cut(both, f"{_text(one)} | {_text(two)}, all hear {middle}")

    def _clog(self) -> str:
        ids, world = self._ids(), self._world
        until = world.now_ns + (10 + self._chance.below(300)) * MS
        self._cluster.network.clogged[ids[0], ids[1]] = until
        return f"{ids[0]} to {ids[1]}"

    def _reset(self) -> str:
        server, other = self._up(), self._up()
        if server is None or other is None or server is other:
            return ""
        self._cluster.network.reset(server.id, other)
        return f"{other.id} sees {server.id} close"

    # -- processes and disks

    def _up(self) -> Process | None:
        up = [p for p in self._cluster.processes.values() if p.core is not None]
        return up[self._chance.below(len(up))] if up else None

    def _hang(self) -> str:
        server, timeout = self._up(), self._cluster.election_timeout_ns
        if server is None:
            return ""
        server.device.hung_until_ns = self._world.now_ns + self._chance.below(6 * timeout)
        return server.id

    def _eio(self) -> str:
        return self._fail_disk("eio")

    def _enospc(self) -> str:
        return self._fail_disk("enospc")

    def _fail_disk(self, how: str) -> str:
        server = self._up()
        if server is None:
            return ""
        server.device.fails_next = how
        self._world.after((50 + self._chance.below(300)) * MS, self._replace, server, server.life)
        return server.id

    def _replace(self, server: Process, life: int) -> None:
        """An operator restarts what stands still."""
        if server.core is not None and server.life == life:
            server.crash()
            self._restart_later(server)

    def _pause(self) -> str:
        timeout = self._cluster.election_timeout_ns
        return self._stop_for(timeout + self._chance.below(3 * timeout))

    def _stall(self) -> str:
        return self._stop_for(self._chance.below(self._cluster.election_timeout_ns))

    def _stop_for(self, time_ns: int) -> str:
        server = self._up()
        if server is None:
            return ""
        server.paused_until_ns = max(server.paused_until_ns, self._world.now_ns + time_ns)
        return f"{server.id} for {time_ns / MS:.1f} ms"

    def _crash(self) -> str:
        server = self._up()
        if server is None:
            return ""
        server.crash()
        self._restart_later(server)
        return server.id

    def _restart_later(self, server: Process) -> None:
        self._world.after((1 + self._chance.below(300)) * MS, self._restart, server, server.life)

    @staticmethod
    def _restart(server: Process, life: int) -> None:
        if server.core is None and server.life == life and server.wiped is None:
            server.start()

    def _wipe(self) -> str:
        server = self._expendable()
        if server is None:
            return ""
        server.crash()
        server.lose_disk()
        return server.id

    def _flip(self) -> str:
        """Only at once: later the others might not do without it any more."""
        server = self._expendable()
        if server is None:
            return ""
        server.crash()
        what = server.device.flip(self._chance)
        if what:
            server.start()
            return f"{server.id}: {what}"
        self._restart_later(server)
        return ""

    def _expendable(self) -> Process | None:
        """A server without whose disk the rest can go on and take it out of the configuration.

        That takes a committed configuration which all its voters know for the latest, three or
        more, and nobody a later one.
        """
        cluster = self._cluster
        if cluster.wiped() or cluster.go:
            return None
        known = {i: cluster.latest_configuration(p) for i, p in cluster.processes.items()}
        newest = max(known.values(), key=lambda pair: pair[0])
        voters = newest[1].voters
        server = self._up()
        if (
            server is None
            or len(voters) < 3
            or newest[0] > cluster.checks.commit_index
            or any(known[v.id] != newest for v in voters)
        ):
            return None
        return server

    def _go_crash(self) -> str:
        up = [voter for voter in self._cluster.go.values() if voter.up]
        if not up:
            return ""
        up[0].crash((1 + self._chance.below(300)) * MS)
        return up[0].id

    # -- operations

    def _leader(self) -> Process | None:
        now = self._world.now_ns
        leaders = [
            p for p in self._cluster.processes.values() if p.is_leader and p.paused_until_ns <= now
        ]
        return leaders[self._chance.below(len(leaders))] if leaders else None

    def _change(self) -> str:
        leader = self._leader()
        if leader is None or self._cluster.wiped():
            return ""
        core = leader.live
        if not core.can_change_configuration:
            return ""
        new = self._changed(core.configuration)
        voters = [v.id for v in new.voters]
        # A model of a follower in Go never campaigns: the others must be a quorum by themselves.
        own = sum(v in self._cluster.processes for v in voters)
        if len(voters) < 2 or own < new.quorum_size:
            return ""
        leader.propose_configuration(new)
        return f"{leader.id}: {' '.join(f'{s.id}={s.suffrage.name.lower()}' for s in new)}"

    def _changed(self, old: Configuration) -> Configuration:
        rng = self._chance.rng
        ids = list(self._cluster.processes)
        chosen = ids[self._chance.below(len(ids))]
        member = old.get(chosen)
        server = self._cluster.server
        if member is None:
            # At once, as AddVoter does it; a join has the server catch up first.
            voter = rng.random() < 0.5
            return old.with_server(server(chosen, Suffrage.VOTER if voter else Suffrage.NONVOTER))
        if rng.random() < 0.5:
            return old.without(chosen)
        voter = member.suffrage is Suffrage.VOTER
        return old.with_server(server(chosen, Suffrage.NONVOTER if voter else Suffrage.VOTER))

    def _transfer(self) -> str:
        leader = self._leader()
        if leader is None or not leader.live.accepts_proposals:
            return ""
        ids = list(self._cluster.processes)
        at = self._chance.below(len(ids) + 1)
        try:
            leader.live.transfer_leadership(None if at == len(ids) else ids[at], leader.local_ns())
        except LeadershipTransferError:
            return ""
        leader.turn()
        return f"{leader.id} to {'any' if at == len(ids) else ids[at]}"

    def _snapshot(self) -> str:
        server = self._up()
        if server is None or server.live.disk_failed:
            return ""
        server.take_snapshot(self._cluster.trailing)
        return server.id


def _text(ids: Iterable[ServerID]) -> str:
    return "".join(sorted(ids))
