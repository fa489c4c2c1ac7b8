"""Who does the harm: at random times of the world, what the `Faults` of the run allow.

Knows when and to whom; the network, disks and processes know how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rafthttp.raft.errors import LeadershipTransferError
from rafthttp.raft.types import Configuration, ServerID, Suffrage
from rafthttp.testing.sim.faults import MS
from rafthttp.testing.sim.process import Process

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster


class Nemesis:
    """Draws the next deed and its time, as long as the run is in its first phase."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._stopped = False
        self._partition = 0
        faults = cluster.faults
        deeds: list[tuple[float, Callable[[], bool]]] = [
            (faults.clog_rate, self._clog),
            (faults.partition_rate, self._split),
            (faults.asymmetric_rate, self._deafen),
            (faults.bridge_rate, self._bridge),
            (faults.reset_rate, self._reset),
            (faults.hung_fsync_rate, self._hang),
            (faults.eio_rate, self._eio),
            (faults.enospc_rate, self._enospc),
            (faults.pause_rate, self._pause),
            (faults.stall_rate, self._stall),
            (faults.crash_rate, self._crash),
            (faults.wipe_rate, self._wipe),
            (faults.membership_rate, self._change),
            (faults.transfer_rate, self._transfer),
            (faults.snapshot_rate, self._snapshot),
        ]
        self._deeds = [deed for deed in deeds if deed[0] > 0]
        self._rate = sum(rate for rate, _ in self._deeds)
        self._plan()

    def stop(self) -> None:
        """No more harm."""
        self._stopped = True

    def _plan(self) -> None:
        if self._rate > 0:
            wait = self._world.rng.expovariate(self._rate)
            self._world.after(1 + int(wait * 1_000 * MS), self._act)

    def _act(self) -> None:
        if self._stopped:
            return
        at = self._world.rng.random() * self._rate
        for rate, deed in self._deeds:
            at -= rate
            if at < 0:
                if deed():
                    self._world.seen[deed.__name__.strip("_")] += 1
                break
        self._plan()

    # -- network

    def _ids(self) -> list[ServerID]:
        ids = list(self._cluster.voters)
        self._world.rng.shuffle(ids)
        return ids

    def _cut(self, blocked: set[tuple[ServerID, ServerID]]) -> bool:
        """Block these pairs for a while; an earlier partition ends."""
        world = self._world
        self._partition += 1
        self._cluster.network.blocked = blocked
        world.after((20 + world.below(400)) * MS, self._join, self._partition)
        return True

    def _join(self, partition: int) -> None:
        if partition == self._partition:
            self._cluster.network.blocked = set()

    def _groups(self) -> tuple[list[ServerID], list[ServerID]]:
        ids = self._ids()
        at = 1 + self._world.below(len(ids) - 1)
        return ids[:at], ids[at:]

    def _split(self) -> bool:
        one, two = self._groups()
        return self._cut({(a, b) for a in one for b in two} | {(b, a) for a in one for b in two})

    def _deafen(self) -> bool:
        one, two = self._groups()
        return self._cut({(a, b) for a in one for b in two})

    def _bridge(self) -> bool:
        middle, *others = self._ids()
        if len(others) < 2:
            return False
        del middle  # it hears and reaches everybody
        at = 1 + self._world.below(len(others) - 1)
        one, two = others[:at], others[at:]
        return self._cut({(a, b) for a in one for b in two} | {(b, a) for a in one for b in two})

    def _clog(self) -> bool:
        ids, world = self._ids(), self._world
        until = world.now_ns + (10 + world.below(300)) * MS
        self._cluster.network.clogged[ids[0], ids[1]] = until
        return True

    def _reset(self) -> bool:
        server, other = self._up(), self._up()
        if server is None or other is None or server is other:
            return False
        self._cluster.network.reset(server.id, other)
        return True

    # -- processes and disks

    def _up(self) -> Process | None:
        up = [p for p in self._cluster.processes.values() if p.core is not None]
        return up[self._world.below(len(up))] if up else None

    def _hang(self) -> bool:
        server, timeout = self._up(), self._cluster.election_timeout_ns
        if server is None:
            return False
        server.device.hung_until_ns = self._world.now_ns + self._world.below(6 * timeout)
        return True

    def _eio(self) -> bool:
        return self._fail_disk("eio")

    def _enospc(self) -> bool:
        return self._fail_disk("enospc")

    def _fail_disk(self, how: str) -> bool:
        server = self._up()
        if server is None:
            return False
        server.device.fails_next = how
        self._world.after((50 + self._world.below(300)) * MS, self._replace, server, server.life)
        return True

    def _replace(self, server: Process, life: int) -> None:
        """An operator restarts what stands still."""
        if server.core is not None and server.life == life:
            server.crash()
            self._restart_later(server)

    def _pause(self) -> bool:
        timeout = self._cluster.election_timeout_ns
        return self._stop_for(timeout + self._world.below(3 * timeout))

    def _stall(self) -> bool:
        return self._stop_for(self._world.below(self._cluster.election_timeout_ns))

    def _stop_for(self, time_ns: int) -> bool:
        server = self._up()
        if server is None:
            return False
        server.paused_until_ns = max(server.paused_until_ns, self._world.now_ns + time_ns)
        return True

    def _crash(self) -> bool:
        server = self._up()
        if server is None:
            return False
        server.crash()
        self._restart_later(server)
        return True

    def _restart_later(self, server: Process) -> None:
        self._world.after((1 + self._world.below(300)) * MS, self._restart, server, server.life)

    @staticmethod
    def _restart(server: Process, life: int) -> None:
        if server.core is None and server.life == life and server.wiped is None:
            server.start()

    def _wipe(self) -> bool:
        """Lose a disk, where the rest can go on and take the server out of the configuration.

        That takes a committed configuration which all its voters know for the latest, three or
        more, and nobody a later one.
        """
        cluster = self._cluster
        if cluster.wiped() or cluster.go:
            return False
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
            return False
        server.crash()
        server.wiped = server.disk
        server.device.wipe()
        cluster.release_wiped()
        return True

    # -- operations

    def _leader(self) -> Process | None:
        now = self._world.now_ns
        leaders = [
            p for p in self._cluster.processes.values() if p.is_leader and p.paused_until_ns <= now
        ]
        return leaders[self._world.below(len(leaders))] if leaders else None

    def _change(self) -> bool:
        leader = self._leader()
        if leader is None or self._cluster.wiped():
            return False
        core = leader.live
        if not core.can_change_configuration:
            return False
        new = self._changed(core.configuration)
        voters = [v.id for v in new.voters]
        # A model of a follower in Go never campaigns: the others must be a quorum by themselves.
        own = sum(v in self._cluster.processes for v in voters)
        if len(voters) < 2 or own < new.quorum_size:
            return False
        leader.propose_configuration(new)
        return True

    def _changed(self, old: Configuration) -> Configuration:
        rng = self._world.rng
        ids = list(self._cluster.processes)
        chosen = ids[self._world.below(len(ids))]
        member = old.get(chosen)
        server = self._cluster.server
        # As a join does it: who forgot everything catches up first, then is promoted.
        catches_up = not self._cluster.processes[chosen].may_vote
        if member is None:
            voter = rng.random() < 0.5 and not catches_up
            return old.with_server(server(chosen, Suffrage.VOTER if voter else Suffrage.NONVOTER))
        if rng.random() < 0.5 or catches_up:
            return old.without(chosen)
        voter = member.suffrage is Suffrage.VOTER
        return old.with_server(server(chosen, Suffrage.NONVOTER if voter else Suffrage.VOTER))

    def _transfer(self) -> bool:
        leader = self._leader()
        if leader is None or not leader.live.accepts_proposals:
            return False
        ids = list(self._cluster.processes)
        at = self._world.below(len(ids) + 1)
        try:
            leader.live.transfer_leadership(None if at == len(ids) else ids[at], leader.local_ns())
        except LeadershipTransferError:
            return False
        leader.turn()
        return True

    def _snapshot(self) -> bool:
        server = self._up()
        if server is None or server.live.disk_failed:
            return False
        server.take_snapshot(self._cluster.trailing)
        return True
