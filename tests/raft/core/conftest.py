"""Random histories as a fixture, and the `--rewrite` flag of the dialogues.

A history: drops, duplicates, reordering, partitions, crashes that lose unsynced writes, torn
streams, slow disks, configuration changes, transfers, snapshots; then a calm phase in which the
servers must agree and commit again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from rafthttp.raft.core.ready import CoreConfig, HardState
from rafthttp.raft.errors import ConfigurationChangeError, LeadershipTransferError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, State, Suffrage
from rafthttp.testing.coremember import Entry, Member, TimeoutNow
from rafthttp.testing.corenet import CoreNet

MS = 1_000_000
STEPS = 1500


class History:
    """One seed."""

    leases = False

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.net = CoreNet(self.rng)
        self.net.slow_installs = True
        self.ids = [ServerID(i) for i in "abcde"[: self.rng.choice((3, 3, 4, 5))]]
        self.blocked: set[tuple[ServerID, ServerID]] = set()
        self.names = 0
        self.trailing = self.rng.choice((0, 3, 1000))
        voters = self.ids if self.rng.random() < 0.7 else self.ids[:3]
        configuration = Configuration(tuple(self.server(i) for i in voters))
        for i in self.ids:
            member = Member(
                i,
                CoreConfig(
                    local_id=i,
                    heartbeat_timeout_ns=100 * MS,
                    election_timeout_ns=100 * MS,
                    commit_timeout_ns=5 * MS,
                    leader_lease_timeout_ns=100 * MS if self.leases else 60 * MS,
                    disk_timeout_ns=150 * MS,
                    append_size_bytes_max=450,
                    inflight_appends_max=4,
                    unsized_entries_max=3,
                    lease_reads=self.leases,
                    early_campaign=not self.leases,
                ),
            )
            if i in voters:
                member.disk.hard_state = HardState(1, None)
                member.disk.entries = [Entry(1, configuration)]
                member.disk.configurations = ((1, configuration),)
            self.net.add(member)
            self.net.start(i)
        self.net.checks.on_append(self.ids[0], 1, Entry(1, configuration), 0)

    @staticmethod
    def server(i: ServerID, suffrage: Suffrage = Suffrage.VOTER) -> Server:
        return Server(i, ServerAddress(f"{i}:1"), suffrage)

    def leaders(self) -> list[Member]:
        return [
            m
            for m in self.net.members.values()
            if m.core is not None and m.core.state is State.LEADER
        ]

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def step(self) -> None:
        """One random step."""
        net, rng = self.net, self.rng
        roll = rng.random()
        if not net.messages and not any(m.disk.waiting for m in net.members.values()):
            self.pass_time(rng.randrange(20 * MS))
        if roll < 0.60:
            self.deliver()
        elif roll < 0.66:
            self.pass_time(rng.randrange(4 * MS))
        elif roll < 0.80:
            waiting = [m for m in net.members.values() if m.disk.waiting]
            if waiting:
                net.complete_write(rng.choice(waiting).id)
        elif roll < 0.90:
            self.ask_leader()
        elif roll < 0.915:
            if net.messages:
                net.drop(rng.choice(net.messages))
        elif roll < 0.935:
            self.crash_or_start()
        elif roll < 0.945:
            self.blocked = {
                (a, b) for a in self.ids for b in self.ids if a != b and rng.random() < 0.25
            }
        elif roll < 0.98:
            self.blocked = set()
        else:
            a, b = rng.choice(self.ids), rng.choice(self.ids)
            net.close_streams(of=a, at=b)

    def deliver(self) -> None:
        net = self.net
        if not net.messages:
            return
        message = self.rng.choice(net.messages)
        if (message.source, message.target) in self.blocked:
            net.drop(message)
        else:
            net.deliver(message, keep=self.rng.random() < 0.05)

    def pass_time(self, ns: int) -> None:
        self.net.now_ns += ns
        for member in self.net.members.values():
            if member.core is not None and member.core.deadline_ns <= self.net.now_ns:
                self.net.tick(member.id)

    def ask_leader(self) -> None:
        leaders = self.leaders()
        if not leaders:
            return
        net, rng = self.net, self.rng
        leader = rng.choice(leaders)
        core = leader.live
        roll = rng.random()
        if roll < 0.15:
            self.names += 1
            net.read(leader.id, self.names)
        elif roll < 0.25 and core.can_change_configuration:
            self.change_configuration(leader)
        elif roll < 0.28 and core.accepts_proposals:
            try:
                core.transfer_leadership(rng.choice([None, *self.ids]), net.now_ns)
            except LeadershipTransferError:
                return
        elif roll < 0.33:
            member = rng.choice([m for m in net.members.values() if m.core is not None])
            if len(member.applied) > member.live.snapshot_index:
                net.compact(member.id, len(member.applied), self.trailing)
                return
        elif core.accepts_proposals:
            net.propose(leader.id, [self.name() for _ in range(rng.choice((1, 1, 2, 9)))])
        net.settle(leader)

    def change_configuration(self, leader: Member) -> None:
        old = leader.live.configuration
        i = self.rng.choice(self.ids)
        member = old.get(i)
        if member is None:
            new = old.with_server(
                self.server(i, self.rng.choice((Suffrage.VOTER, Suffrage.NONVOTER)))
            )
        elif self.rng.random() < 0.5:
            new = old.without(i)
        else:
            flipped = Suffrage.NONVOTER if member.suffrage is Suffrage.VOTER else Suffrage.VOTER
            new = old.with_server(self.server(i, flipped))
        if len(new.voters) < 2:
            return
        try:
            self.net.propose_configuration(leader.id, new)
        except ConfigurationChangeError as error:
            raise AssertionError("can_change_configuration said yes") from error

    def crash_or_start(self) -> None:
        member = self.net.members[self.rng.choice(self.ids)]
        if member.core is None:
            self.net.start(member.id)
        elif sum(m.core is None for m in self.net.members.values()) < (len(self.ids) - 1) // 2:
            self.net.crash(member.id, self.rng.randrange(4))

    def calm(self) -> None:
        """No more faults: the servers must elect, agree and commit (liveness)."""
        net = self.net
        self.blocked = set()
        for member in net.members.values():
            if member.core is None:
                net.start(member.id)
        marker = "calm"
        proposed = False
        for _ in range(4000):
            for member in net.members.values():
                while member.disk.waiting:
                    net.complete_write(member.id)
            for message in list(net.messages):
                if message in net.messages:
                    net.deliver(message)
            leaders = self.leaders()
            top = max(leaders, key=lambda m: m.live.term, default=None)
            if top is not None and top.live.can_change_configuration and not proposed:
                net.propose(top.id, [marker])
                net.settle(top)
                proposed = True
            if top is not None and proposed:
                members = [self.net.members[s.id] for s in top.live.configuration]
                if all(any(e.payload == marker for e in m.applied) for m in members):
                    return
                if not any(e.payload == marker for e in top.log) and not top.live.transferring:
                    proposed = False
            if not net.messages:
                self.pass_time(2 * MS)
        raise AssertionError("the servers do not agree again")


class LeaseHistory(History):
    """Reads by lease, and what could make one stale.

    Leaders that are cut off, or stopped in their tracks, while they hand over or before: others
    must not be able to lead and commit while a lease holds. Voters that restart, and forget whom
    they follow.
    """

    leases = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.cut_off_steps = 0
        self.paused: ServerID | None = None

    def pass_time(self, ns: int) -> None:
        """As for all; but who is paused notices it only when it is asked to read."""
        self.net.now_ns += ns
        for member in self.net.members.values():
            core = member.core
            due = core is not None and core.deadline_ns <= self.net.now_ns
            if due and member.id != self.paused:
                self.net.tick(member.id)

    def step(self) -> None:
        rng, leaders = self.rng, self.leaders()
        roll = rng.random()
        if leaders and roll < 0.15:
            self.names += 1
            self.net.read(rng.choice(leaders).id, self.names)
            self.net.settle(self.net.members[rng.choice(leaders).id])
        elif leaders and roll < 0.16 and not self.cut_off_steps:
            self.cut_off(rng.choice(leaders))
        elif roll < 0.165:
            self.restart()
        elif roll < 0.25:
            self.pass_time(rng.randrange(15 * MS))
        elif self.cut_off_steps:
            self.cut_off_steps -= 1
            blocked = self.blocked
            super().step()
            self.blocked = blocked if self.cut_off_steps else set()
            self.paused = self.paused if self.cut_off_steps else None
        else:
            super().step()

    def cut_off(self, leader: Member) -> None:
        """From now on nothing reaches the leader, perhaps just as it has told another to lead."""
        voters = [i for i in self.ids if i != leader.id]
        if self.rng.random() < 0.5 and leader.live.accepts_proposals:
            target = self.rng.choice(voters)
            with suppress(LeadershipTransferError):
                leader.live.transfer_leadership(target, self.net.now_ns)
                self.net.settle(leader)
                for message in list(self.net.messages):
                    if message.source == leader.id and isinstance(message.body, TimeoutNow):
                        self.net.deliver(message)
        self.blocked = {(i, leader.id) for i in voters}
        if self.rng.random() < 0.5:
            self.blocked |= {(leader.id, self.rng.choice(voters))}
        if self.rng.random() < 0.5:
            self.paused = leader.id
        self.cut_off_steps = self.rng.randrange(400)

    def restart(self) -> None:
        """A voter that is back at once."""
        member = self.net.members[self.rng.choice(self.ids)]
        if member.core is not None:
            self.net.crash(member.id, self.rng.randrange(4))
            self.net.start(member.id)


def run_with_leases(seed: int) -> History:
    history = LeaseHistory(seed)
    for _ in range(2 * STEPS):
        history.step()
    history.cut_off_steps, history.paused = 0, None
    history.calm()
    return history


def run(seed: int) -> History:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    history.calm()
    return history


@pytest.fixture
def history() -> Callable[[int], History]:
    """Runs one seed."""
    return run


@pytest.fixture
def lease_history() -> Callable[[int], History]:
    """Runs one seed with lease reads."""
    return run_with_leases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        default=False,
        help="write what the dialogues print into their files, to be read as a diff",
    )
