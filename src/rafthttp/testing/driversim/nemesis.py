"""Who does the harm: at random times, what the `Faults` of the run allow.

Knows when and to whom; network, disks and processes know how.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rafthttp.raft.errors import RaftHttpError
from rafthttp.raft.types import State, Suffrage
from rafthttp.testing.driversim.loop import Life, VirtualLoop
from rafthttp.testing.driversim.member import Member, NodeMember
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.sim.faults import Faults

_CALL_SECONDS = 0.3


class Nemesis:
    """Draws the next deed and its time, until it is stopped."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        network: VirtualNetwork,
        members: Sequence[Member],
        faults: Faults,
        seen: Counter[str],
        timeout: float,
    ) -> None:
        self._loop, self._rng, self._network = loop, rng, network
        self._members, self._seen, self._timeout = members, seen, timeout
        self._stopped = False
        self._partition = 0
        deeds: list[tuple[float, Callable[[], bool]]] = [
            (faults.clog_rate, self._clog),
            (faults.partition_rate, self._split),
            (faults.asymmetric_rate, self._deafen),
            (faults.bridge_rate, self._bridge),
            (faults.reset_rate, self._reset),
            (faults.hung_fsync_rate, self._hang),
            (faults.eio_rate, lambda: self._fail("eio")),
            (faults.enospc_rate, lambda: self._fail("enospc")),
            (faults.pause_rate, self._pause),
            (faults.stall_rate, self._stall),
            (faults.crash_rate, self._crash),
            (faults.crash_rate / 3, self._power_off),
            (faults.wipe_rate, self._wipe),
            (faults.flip_rate, self._flip),
            (faults.membership_rate, self._change),
            (faults.transfer_rate, self._transfer),
            (faults.snapshot_rate, self._snapshot),
        ]
        self._deeds = [deed for deed in deeds if deed[0] > 0]
        self._rate = sum(rate for rate, _ in self._deeds)
        self._plan()

    def stop(self) -> None:
        """No more harm, and what can be undone is."""
        self._stopped = True
        self._network.blocked.clear()
        self._network.clogged.clear()
        self._network.check()
        for member in self._members:
            member.disk.hung_until = 0.0
            member.disk.fails_next = None
            if member.life is not None and member.life.paused:
                self._loop.resume(member.life)
            failed = member.raft is not None and (
                member.raft.state is State.SHUTDOWN or member.raft.failure is not None
            )
            if member.disk.store.is_poisoned or failed:
                member.crash()
            if member.life is None:
                member.start()

    def _after(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        self._loop.at(self._loop.now + seconds, callback, *args)

    def _plan(self) -> None:
        if self._rate > 0:
            self._after(self._rng.expovariate(self._rate), self._act)

    def _act(self) -> None:
        if self._stopped:
            return
        at = self._rng.random() * self._rate
        for rate, deed in self._deeds:
            at -= rate
            if at < 0:
                if deed() and deed.__name__ != "<lambda>":
                    self._seen[deed.__name__.strip("_")] += 1
                break
        self._plan()

    # -- network

    def _hosts(self) -> list[str]:
        hosts = [m.host for m in self._members]
        self._rng.shuffle(hosts)
        return hosts

    def _cut(self, blocked: set[tuple[str, str]]) -> bool:
        self._partition += 1
        self._network.blocked = blocked
        self._network.check()
        self._after(0.02 + 0.4 * self._rng.random(), self._join, self._partition)
        return True

    def _join(self, partition: int) -> None:
        if partition == self._partition:
            self._network.blocked = set()
            self._network.check()

    def _groups(self) -> tuple[list[str], list[str]]:
        hosts = self._hosts()
        at = 1 + self._rng.randrange(len(hosts) - 1)
        return hosts[:at], hosts[at:]

    def _split(self) -> bool:
        one, two = self._groups()
        return self._cut({(a, b) for a in one for b in two} | {(b, a) for a in one for b in two})

    def _deafen(self) -> bool:
        one, two = self._groups()
        return self._cut({(a, b) for a in one for b in two})

    def _bridge(self) -> bool:
        _, *others = self._hosts()
        at = 1 + self._rng.randrange(len(others) - 1)
        one, two = others[:at], others[at:]
        return self._cut({(a, b) for a in one for b in two} | {(b, a) for a in one for b in two})

    def _clog(self) -> bool:
        one, two = self._hosts()[:2]
        self._network.clogged[one, two] = self._loop.now + 0.01 + 0.3 * self._rng.random()
        return True

    def _reset(self) -> bool:
        one, two = self._hosts()[:2]
        ends = self._network.live_ends(one, two)
        if not ends:
            return False
        # One of them (in the middle of a frame), or all: what a proxy does that is reloaded.
        for end in ends if self._rng.random() < 0.3 else [self._rng.choice(ends)]:
            if self._rng.random() < 0.2:
                self._network.mute(end)
                self._seen["half_open"] += 1
            else:
                self._network.reset(end)
        return True

    # -- processes and disks

    def _up(self) -> Member | None:
        up = [m for m in self._members if m.is_up]
        return self._rng.choice(up) if up else None

    def _hang(self) -> bool:
        member = self._up()
        if member is not None:
            member.disk.hung_until = self._loop.now + 6 * self._timeout * self._rng.random()
        return member is not None

    def _fail(self, how: str) -> bool:
        member = self._up()
        if member is None:
            return False
        member.disk.fails_next = how
        self._after(0.05 + 0.3 * self._rng.random(), self._replace, member, member.lives)
        return True

    def _replace(self, member: Member, life: int) -> None:
        """An operator restarts what stands still."""
        if not self._stopped and member.lives == life:
            member.crash()
            self._restart_later(member)

    def _pause(self) -> bool:
        return self._stop_for(self._timeout * (1 + 3 * self._rng.random()))

    def _stall(self) -> bool:
        return self._stop_for(self._timeout * self._rng.random())

    def _stop_for(self, seconds: float) -> bool:
        member = self._up()
        if member is None or member.life is None or member.life.paused:
            return False
        self._loop.pause(member.life)
        self._after(seconds, self._go_on, member.life)
        return True

    def _go_on(self, life: Life) -> None:
        if life.alive and life.paused:
            self._loop.resume(life)

    def _crash(self) -> bool:
        return self._end(silent=False)

    def _power_off(self) -> bool:
        return self._end(silent=True)

    def _end(self, *, silent: bool) -> bool:
        member = self._up()
        if member is None:
            return False
        member.crash(silent=silent)
        self._restart_later(member)
        return True

    def _wipe(self) -> bool:
        member = self._expendable()
        if member is None:
            return False
        member.wipe()
        self._restart_later(member)
        return True

    def _flip(self) -> bool:
        """Its next start is refused, and its disk emptied."""
        member = self._expendable()
        if member is None:
            return False
        member.crash()
        flipped = member.disk.flip()
        self._restart_later(member)
        return bool(flipped)

    def _expendable(self) -> Member | None:
        """A server without whose disk the rest can go on and release it (S62).

        That takes a committed configuration which all its voters know for the latest, three or
        more, and nobody a later one. A bare server cannot be released.
        """
        if self._is_one_lost():
            return None
        known = {m.id: m.raft.get_configuration() for m in self._members if m.raft is not None}
        newest = max(known.values(), key=lambda latest: latest.index, default=None)
        member = self._up()
        if (
            newest is None
            or not isinstance(member, NodeMember)
            or len(newest.configuration.voters) < 3
            or all(m.raft is None or m.raft.commit_index < newest.index for m in self._members)
            or any(known.get(voter.id) != newest for voter in newest.configuration.voters)
        ):
            return None
        return member

    def _is_one_lost(self) -> bool:
        return any(m.disk.lost is not None or m.disk.flipped for m in self._members)

    def _restart_later(self, member: Member) -> None:
        self._after(0.001 + 0.3 * self._rng.random(), self._restart, member, member.lives)

    @staticmethod
    def _restart(member: Member, lives: int) -> None:
        if member.life is None and member.lives == lives:
            member.start()

    # -- operations

    def _leader(self) -> Member | None:
        leaders = [
            m
            for m in self._members
            if m.is_up
            and m.raft is not None
            and m.raft.state is State.LEADER
            and m.life is not None
            and not m.life.paused
        ]
        return self._rng.choice(leaders) if leaders else None

    def _do(self, member: Member, coro: Any) -> bool:
        task: asyncio.Task[Any] = member.spawn(coro)
        task.add_done_callback(_seen, context=self._loop.world.context)
        return True

    def _transfer(self) -> bool:
        leader = self._leader()
        if leader is None or leader.raft is None:
            return False
        return self._do(leader, leader.raft.leadership_transfer(timeout=_CALL_SECONDS))

    def _snapshot(self) -> bool:
        member = self._up()
        if member is None or member.raft is None:
            return False
        return self._do(member, member.raft.snapshot(timeout=_CALL_SECONDS))

    def _change(self) -> bool:
        leader = self._leader()
        if leader is None or leader.raft is None or self._is_one_lost():
            return False
        raft = leader.raft
        configuration = raft.get_configuration().configuration
        member = self._rng.choice(self._members)
        server = configuration.get(member.id)
        if server is not None and server.suffrage is Suffrage.VOTER:
            if len(configuration.voters) < 3:
                return False
            return self._do(leader, raft.demote_voter(member.id, timeout=_CALL_SECONDS))
        return self._do(leader, raft.add_voter(member.id, member.address, timeout=_CALL_SECONDS))


def _seen(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, RaftHttpError):
        raise error
