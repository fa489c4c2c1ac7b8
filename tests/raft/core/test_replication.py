"""The conflict search: how many probes until leader and follower agree, whoever the follower is.

A probe is an AppendEntries to that follower up to and including the first that succeeds. Divergent
entries are the follower's own behind the last one it shares with the leader.
"""

from __future__ import annotations

import random

import pytest

from rafthttp.raft.core.ready import CoreConfig, HardState, Heartbeat, ProgressState
from rafthttp.raft.core.replication import Search
from rafthttp.raft.types import Configuration, Index, Server, ServerAddress, ServerID, State
from rafthttp.testing.coremember import Answer, Entry, Frame, Member, Message
from rafthttp.testing.corenet import CoreNet

A, B, C = ServerID("a"), ServerID("b"), ServerID("c")
CONFIGURATION = Configuration(tuple(Server(i, ServerAddress(f"{i}:1")) for i in (A, B, C)))


def log2_up(n: int) -> int:
    return (n - 1).bit_length()


def tail(rng: random.Random, length: int, runs: int, terms: range, name: str) -> list[Entry]:
    """`length` entries in at most `runs` terms."""
    chosen = sorted(rng.choice(terms) for _ in range(min(runs, length)))
    cuts = sorted(rng.randrange(length) for _ in range(len(chosen) - 1))
    result: list[Entry] = []
    for term, end in zip(chosen, [*cuts, length], strict=True):
        result += [Entry(term, f"{name}{term}") for _ in range(end - len(result))]
    return result


class Pair:
    """A leader, a follower, and a third voter that has the leader's log and elects it."""

    def __init__(self, leader: list[Entry], follower: list[Entry], *, go: bool) -> None:
        self.net = CoreNet(random.Random(1))
        term = max(e.term for e in leader + follower)
        self.follower = follower
        for i in (A, B, C):
            member = Member(
                i, CoreConfig(local_id=i, append_size_bytes_max=10_000), go=go and i == B
            )
            log = follower if i == B else leader
            member.disk.hard_state = HardState(term, None)
            member.disk.entries = list(log)
            member.disk.configurations = ((1, CONFIGURATION),)
            self.net.add(member)
            if member.go is not None:
                member.go.term, member.go.entries = term, [*log]
            else:
                self.net.start(i)
        self.probes = 0

    def to_or_from(self, peer: ServerID) -> list[Message]:
        return [m for m in self.net.messages if peer in (m.source, m.target)]

    def flush_disks(self) -> None:
        for member in self.net.members.values():
            while member.core is not None and member.disk.waiting:
                self.net.complete_write(member.id)

    def elect(self) -> None:
        """Let `a` become the leader by the vote of `c`; `b` hears nothing yet."""
        self.net.now_ns += 2_000_000_000
        self.net.tick(A)
        for _ in range(20):
            self.flush_disks()
            for message in self.to_or_from(C):
                self.net.deliver(message)
        assert self.net.members[A].live.state is State.LEADER
        for message in self.to_or_from(B):
            if not isinstance(message.body, Frame) or isinstance(message.body.ask, Heartbeat):
                self.net.drop(message)

    def search(self) -> int:
        """Deliver between `a` and `b` until a frame succeeds; returns the number of frames."""
        leader = self.net.members[A].live
        for _ in range(10_000):
            if leader.progress(B) is not ProgressState.PROBE:
                return self.probes
            messages = self.to_or_from(B)
            if not messages:
                self.net.now_ns += 50_000_000
                self.net.tick(A)
                messages = list(self.net.messages)
            for message in messages:
                if not isinstance(message.body, Answer) and isinstance(message.body, Frame):
                    self.probes += 1
                self.net.deliver(message)
            self.flush_disks()
        raise AssertionError("the search does not end")

    def settle(self) -> None:
        for _ in range(2000):
            self.flush_disks()
            if not self.net.messages:
                return
            for message in list(self.net.messages):
                if message in self.net.messages:
                    self.net.deliver(message)
        raise AssertionError("no rest")

    def agree(self) -> bool:
        a, b = self.net.members[A], self.net.members[B]
        held = [Entry(*e) for e in b.go.entries] if b.go is not None else b.log
        return held == a.log


def divergence(rng: random.Random) -> tuple[list[Entry], list[Entry], int]:
    """A leader's log, a follower's, and how many entries they share."""
    common = [Entry(1, CONFIGURATION), *tail(rng, rng.randrange(1, 60), 5, range(1, 20), "x")]
    even, odd = range(20, 80, 2), range(21, 80, 2)
    scale = rng.choice((1, 3, 10, 100, 1000))
    more, runs = rng.randrange(2 * scale), rng.choice((1, 2, 5, 30))
    leader = common + (tail(rng, more, runs, even, "l") if more else [])
    less, runs = rng.randrange(2 * scale), rng.choice((1, 2, 5, 30))
    follower = common + (tail(rng, less, runs, odd, "f") if less else [])
    return leader, follower, len(common)


@pytest.mark.parametrize("go", [False, True])
def test_probes_stay_within_both_bounds(go: bool) -> None:
    """S32: at most 2 log2(divergent) + 2 towards any peer, terms + 2 between our own; S30, S38."""
    for seed in range(300):
        rng = random.Random(seed)
        leader, follower, shared = divergence(rng)
        pair = Pair(leader, follower, go=go)
        pair.elect()
        divergent = len(follower) - shared
        probes = pair.search()
        assert probes <= 2 * log2_up(max(divergent, 1)) + 2, f"seed {seed}: {probes}, {divergent}"
        if not go:
            terms = len({e.term for e in follower[shared:]})
            assert probes <= terms + 2, f"seed {seed}: {probes} probes, {terms} terms"
        else:
            model = pair.net.members[B].go
            assert model is not None
            assert model.commit_index <= shared, f"seed {seed}: committed its divergent tail"
        pair.settle()
        assert pair.agree(), f"seed {seed}"
        assert pair.net.members[A].live.progress(B) is ProgressState.REPLICATE


@pytest.mark.parametrize("divergent", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 255, 256, 1000])
@pytest.mark.parametrize("go", [False, True])
@pytest.mark.parametrize("longer", [-1, 0, 1])
def test_bounds_at_their_edges(divergent: int, go: bool, longer: int) -> None:
    """S32: the leader's log shorter, equal or longer; each divergent entry in a term of its own."""
    common = [Entry(1, CONFIGURATION)] + [Entry(1, "x")] * 2000
    follower = common + [Entry(3 + 2 * i, "f") for i in range(divergent)]
    top = 4 + 2 * divergent
    leader = common + [Entry(top, "l")] * max(divergent + longer, 0)
    pair = Pair(leader, follower, go=go)
    pair.elect()
    assert pair.search() <= 2 * log2_up(divergent) + 2
    pair.settle()
    assert pair.agree()


def test_a_go_follower_with_nothing_but_a_snapshot_needs_no_other() -> None:
    """S32, S48: it accepts only its snapshot's end; the search finds that before it gives up."""
    leader = [Entry(1, CONFIGURATION)] + [Entry(1, "x")] * 50
    pair = Pair(leader, leader[:30], go=True)
    go = pair.net.members[B].go
    assert go is not None
    go.compact(30, 1, trailing=0)
    pair.elect()
    assert pair.search() <= 3
    pair.settle()
    assert pair.net.members[A].live.progress(B) is ProgressState.REPLICATE
    assert go.last_index == pair.net.members[A].live.last_index


def test_a_go_follower_that_compacted_its_log_gets_a_snapshot_in_the_end() -> None:
    """S32: probes below its first retained entry are refused though they match; no endless loop."""
    leader = [Entry(1, CONFIGURATION)] + [Entry(1, "x")] * 60
    pair = Pair([*leader, Entry(4, "l")], leader + [Entry(3, "f")] * 20, go=True)
    go = pair.net.members[B].go
    assert go is not None
    go.compact(58, 1, trailing=0)
    pair.elect()
    for message in pair.to_or_from(C):
        pair.net.deliver(message)
    pair.flush_disks()
    pair.net.compact(A, len(leader), trailing=1000)
    assert pair.search() <= 2 * log2_up(61) + 2
    pair.settle()
    assert pair.net.members[A].live.progress(B) is ProgressState.REPLICATE
    assert go.last_index == pair.net.members[A].live.last_index


def test_a_follower_that_only_lags_takes_two_probes() -> None:
    """S32: no divergence at all, however far behind."""
    leader = [Entry(1, CONFIGURATION)] + [Entry(1, "x")] * 5000
    for go in (False, True):
        pair = Pair(leader, leader[:10], go=go)
        pair.elect()
        assert pair.search() == 2


class Follower:
    """A follower in Go by its numbers alone: last index, last shared one, first one retained."""

    def __init__(self, last: Index, shared: Index, first: Index) -> None:
        self.last, self.shared, self.first = last, shared, first

    def accepts(self, prev: Index) -> bool:
        if prev == self.last:
            return self.last == self.shared
        return prev == 0 or self.first <= prev <= self.shared


@pytest.mark.parametrize("base", [0, 3])
def test_every_small_search_ends(base: Index) -> None:
    """S32: with every last index, divergence and compaction, each search ends."""
    gave_up = 0
    for leader_last in range(base, 18):
        for last in range(base, 18):
            for shared in range(base, min(last, leader_last) + 1):
                for first in range(1, shared + 2):
                    follower = Follower(last, shared, first)
                    search = Search()
                    prev: Index | None = leader_last
                    asked: list[Index] = []
                    while prev is not None and not follower.accepts(prev):
                        assert prev not in asked, "no place is probed twice"
                        asked.append(prev)
                        prev = search.refused(prev, last, base)
                        assert prev is None or base <= prev <= leader_last
                    if prev is None:
                        gave_up += 1
                        assert first > max(base, 1), "a snapshot is for what is compacted away"
    assert (gave_up > 0) == (base > 0), "index 0 is shared by all"
