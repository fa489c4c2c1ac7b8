"""Each invariant by itself: a legal history passes, one more event breaks it under its own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rafthttp.raft.core.ready import AppendEntriesReply, HardState, Send, VoteReply, VoteRequest
from rafthttp.raft.types import (
    Configuration,
    Index,
    Server,
    ServerAddress,
    ServerID,
    State,
    Suffrage,
    Term,
)
from rafthttp.testing import invariants
from rafthttp.testing.coremember import Disk, Entry, Frame
from rafthttp.testing.invariants import Checks, InvariantError
from rafthttp.testing.invariants.acknowledged import check_reply, check_request, check_vote
from rafthttp.testing.invariants.bounded import Bounded
from rafthttp.testing.invariants.configurations import check_pending, check_proposed
from rafthttp.testing.invariants.durable_commit import DurableCommit
from rafthttp.testing.invariants.election_safety import ElectionSafety
from rafthttp.testing.invariants.fresh_reads import FreshReads
from rafthttp.testing.invariants.healed import Acknowledged, check_healed
from rafthttp.testing.invariants.leader_append_only import LeaderAppendOnly
from rafthttp.testing.invariants.leader_completeness import check_leader_completeness
from rafthttp.testing.invariants.linearizable import check_clients
from rafthttp.testing.invariants.log_matching import LogMatching
from rafthttp.testing.invariants.monotonic import Monotonic
from rafthttp.testing.invariants.order import check_order
from rafthttp.testing.invariants.state_machine_safety import StateMachineSafety
from rafthttp.testing.linearizability import Kind, Operation

A, B, C = (ServerID(name) for name in "abc")
X, Y, Z = Entry(1, "x"), Entry(1, "y"), Entry(2, "z")
Broken = Callable[[], object]


def _configuration(*voters: ServerID, nonvoters: tuple[ServerID, ...] = ()) -> Configuration:
    return Configuration(
        tuple(
            Server(i, ServerAddress(f"{i}:1"), kind)
            for ids, kind in ((voters, Suffrage.VOTER), (nonvoters, Suffrage.NONVOTER))
            for i in ids
        )
    )


def _view(log: list[Entry], *, term: Term, state: State = State.LEADER, life: int = 1) -> Any:
    """A server whose core holds that log."""

    def term_at(index: Index) -> Term | None:
        return log[index - 1].term if 0 < index <= len(log) else None

    core = SimpleNamespace(
        term=term,
        state=state,
        last_index=len(log),
        last_term=log[-1].term if log else 0,
        commit_index=0,
        first_index=1,
        snapshot_index=0,
        term_at=term_at,
    )
    disk = Disk()
    disk.hard_state, disk.entries = HardState(term, None), list(log)
    return SimpleNamespace(id=A, life=life, base=0, log=log, live=core, disk=disk, applied=0)


# -- each case plays a legal history, and returns the event that breaks it


def _election_safety() -> Broken:
    leaders = ElectionSafety()
    for server, term in ((A, 1), (A, 1), (B, 2), (A, 3)):
        leaders.on_leader(server, term)
    return lambda: leaders.on_leader(A, 2)


def _leader_append_only() -> Broken:
    checked = LeaderAppendOnly()
    checked.on_step(_view([X], term=2), 2, 1)
    checked.on_step(_view([X, Z], term=2), 2, 2)
    return lambda: checked.on_step(_view([X], term=2), 2, 1)


def _leader_append_only_overwrites() -> Broken:
    checked = LeaderAppendOnly()
    checked.on_step(_view([X, Y], term=2), 2, 2)
    # In another term or another life it has followed meanwhile.
    checked.on_step(_view([X, Z], term=3), 3, 2)
    checked.on_step(_view([X, Y], term=3, life=2), 3, 2)
    return lambda: checked.on_step(_view([X, Z, Z], term=3, life=2), 3, 3)


def _log_matching() -> Broken:
    logs = LogMatching()
    for server in (A, B):
        logs.on_append(server, 1, X, 0)
        logs.on_append(server, 2, Z, 1)
    logs.on_append(C, 2, Y, None)
    return lambda: logs.on_append(C, 2, Entry(2, "another"), 1)


def _log_matching_forerunner() -> Broken:
    logs = LogMatching()
    logs.on_append(A, 3, Z, 1)
    logs.on_append(B, 3, Z, None)
    return lambda: logs.on_append(C, 3, Z, 2)


def _leader_completeness() -> Broken:
    committed = {1: X, 2: Z}
    check_leader_completeness(A, 0, [X, Z, Z], committed, 2)
    check_leader_completeness(A, 2, [Z], committed, 2)
    check_leader_completeness(A, 0, [X], committed, 1)
    return lambda: check_leader_completeness(B, 0, [X, Y], committed, 2)


def _leader_completeness_ends_before() -> Broken:
    """As the run asks it: `z` was committed in term 2."""
    checks, servers = Checks(), {A: _Disk(X, Z)}
    checks.on_leader(_view([X, Z], term=2))
    for index, entry in ((1, X), (2, Z)):
        checks.on_apply(A, index, entry)
    checks.on_leader_commit(2, 2, Z, _configuration(A), servers)
    # Elected in term 2 or before by a late majority: it need not have what term 2 committed.
    checks.on_go_leader(B, 1, 0, [X])
    return lambda: checks.on_leader(_view([X], term=3))


def _state_machine_safety() -> Broken:
    states = StateMachineSafety()
    for server in (A, B):
        states.on_commit(server, 1, X)
    return lambda: states.on_commit(C, 1, Y)


def _state_machine_safety_digest() -> Broken:
    states = StateMachineSafety()
    for server, index, digest in ((A, 1, 11), (B, 1, 11), (A, 2, 12)):
        states.on_state(server, index, digest)
    return lambda: states.on_state(B, 2, 13)


class _Disk:
    """A voter."""

    def __init__(self, *entries: Entry) -> None:
        self.entries = list(entries)

    def holds(self, index: Index, entry: Entry) -> bool:
        return 0 < index <= len(self.entries) and self.entries[index - 1].term == entry.term


def _durable_commit() -> Broken:
    durable, servers = DurableCommit(), {A: _Disk(X, Z), B: _Disk(X, Z), C: _Disk(X)}
    durable.on_commit(1, X, _configuration(A, B, C), servers)
    durable.on_commit(2, Z, _configuration(A, B, C), servers)
    # Of two voters and one without a vote, both must have it.
    return lambda: durable.on_commit(2, Z, _configuration(A, C, nonvoters=(B,)), servers)


def _durable_commit_lost_later() -> Broken:
    """A disk that forgets what it had acknowledged, after the commit: in a crash, or by a write."""
    durable, servers = DurableCommit(), {A: _Disk(X), B: _Disk(X), C: _Disk()}
    durable.on_commit(1, X, _configuration(A, B, C), servers)
    servers[C].entries.append(Y)
    durable.on_disk(servers[C])
    servers[A].entries.clear()
    durable.on_disk(servers[A])  # two of three have one of that term
    servers[B].entries.clear()
    return lambda: durable.on_disk(servers[B])


def _acknowledged() -> Broken:
    disk = Disk()
    disk.hard_state, disk.entries = HardState(1, None), [X]
    frame = Frame(Send(A, 1, 1, 0, 0, 1, 0), (X,))
    check_reply(A, disk, frame, AppendEntriesReply(1, 0, 1, True, 1, False))
    more = Frame(Send(A, 1, 1, 1, 1, 2, 0), (Y,))
    check_reply(A, disk, more, AppendEntriesReply(1, 0, 1, False, 1, False))
    return lambda: check_reply(A, disk, more, AppendEntriesReply(1, 0, 1, True, 2, False))


def _acknowledged_term() -> Broken:
    disk = Disk()
    disk.hard_state = HardState(3, None)
    check_request(A, disk, 3)
    asked = VoteRequest(A, True, 4, 0, 0, False)
    check_reply(A, disk, asked, VoteReply(1, 0, 4, True))  # a pre-vote promises nothing
    return lambda: check_request(A, disk, 4)


def _acknowledged_vote() -> Broken:
    disk = Disk()
    disk.hard_state = HardState(3, B)
    check_vote(A, disk, B, VoteReply(1, 0, 3, True))
    check_vote(A, disk, C, VoteReply(1, 0, 3, False))
    return lambda: check_vote(A, disk, C, VoteReply(1, 0, 3, True))


def _monotonic() -> Broken:
    figures = Monotonic()
    for life, term, commit, applied in ((1, 1, 0, 0), (1, 1, 3, 2), (1, 2, 3, 3), (2, 2, 0, 0)):
        figures.on_step(A, life, term, commit, applied)
    return lambda: figures.on_step(A, 2, 1, 0, 0)


def _monotonic_commit() -> Broken:
    figures = Monotonic()
    figures.on_step(A, 1, 1, 3, 2)
    return lambda: figures.on_step(A, 1, 1, 2, 2)


def _monotonic_vote() -> Broken:
    figures = Monotonic()
    figures.on_hard_state(A, HardState(1, None), HardState(1, B))
    figures.on_hard_state(A, HardState(1, B), HardState(2, None))
    return lambda: figures.on_hard_state(A, HardState(2, B), HardState(2, C))


def _monotonic_hard_term() -> Broken:
    figures = Monotonic()
    figures.on_hard_state(A, HardState(1, None), HardState(2, B))
    return lambda: figures.on_hard_state(A, HardState(2, B), HardState(1, B))


def _order(*broken: int) -> Broken:
    check_order(A, 0, 0, 0, 0, 0)
    check_order(A, 1, 2, 3, 4, 5)
    return lambda: check_order(A, *broken)


def _configurations() -> Broken:
    one, two = Entry(1, _configuration(A)), Entry(1, _configuration(A, B))
    check_pending(A, 0, [one, X, two], 1)
    check_pending(A, 2, [two], 1)
    return lambda: check_pending(A, 0, [one, X, two], 0)


def _configurations_proposed() -> Broken:
    core = _view([X, Z], term=2).live
    core.configuration_index, core.commit_index = 1, 2
    check_proposed(A, core)
    core.configuration_index = 3
    return lambda: check_proposed(A, core)


def _configurations_before_own_term() -> Broken:
    core = _view([X, Z], term=2).live
    core.configuration_index, core.commit_index = 1, 2
    check_proposed(A, core)
    core.term = 3
    return lambda: check_proposed(A, core)


def _fresh_reads() -> Broken:
    reads = FreshReads()
    for read, committed in ((1, 0), (2, 4), (3, 5)):
        reads.on_asked(read, committed)
    reads.on_confirmed(A, 2, 5)
    reads.on_confirmed(A, 1, 0)
    return lambda: reads.on_confirmed(B, 3, 4)


def _healed(
    leaders: list[ServerID], states: list[tuple[ServerID, Index, int]], payload: object
) -> Broken:
    kept = [Acknowledged(1, "x")]
    check_healed([A], [(A, 2, 9), (B, 2, 9)], kept, {1: X, 2: Z})
    return lambda: check_healed(leaders, states, [Acknowledged(1, payload)], {1: X, 2: Z})


def _bounded() -> Broken:
    bounded = Bounded()
    for term in (1, 3, 2):
        bounded.on_term(term)
    bounded.check(1_000_000_000, 2, 1)
    bounded.on_term(5)
    return lambda: bounded.check(1_000_000_000, 2, 1)


def _bounded_snapshots() -> Broken:
    bounded = Bounded()
    bounded.snapshots = 2
    bounded.check(1_000_000_000, 2, 1)
    bounded.snapshots = 3
    return lambda: bounded.check(1_000_000_000, 2, 1)


def _linearizable() -> Broken:
    history = [
        Operation(1, Kind.WRITE, 7, None, 0, 1),
        Operation(1, Kind.WRITE, 8, None, 2, None),
        Operation(1, Kind.READ, None, 7, 3, 4),
        Operation(1, Kind.READ, None, 8, 5, 6),
    ]
    check_clients(history)
    return lambda: check_clients([*history, Operation(1, Kind.READ, None, 7, 7, 8)])


CASES: list[tuple[str, Callable[[], Broken]]] = [
    ("election_safety", _election_safety),
    ("leader_append_only", _leader_append_only),
    ("leader_append_only", _leader_append_only_overwrites),
    ("log_matching", _log_matching),
    ("log_matching", _log_matching_forerunner),
    ("leader_completeness", _leader_completeness),
    ("leader_completeness", _leader_completeness_ends_before),
    ("state_machine_safety", _state_machine_safety),
    ("state_machine_safety", _state_machine_safety_digest),
    ("durable_commit", _durable_commit),
    ("durable_commit", _durable_commit_lost_later),
    ("acknowledged", _acknowledged),
    ("acknowledged", _acknowledged_term),
    ("acknowledged", _acknowledged_vote),
    ("monotonic", _monotonic),
    ("monotonic", _monotonic_commit),
    ("monotonic", _monotonic_vote),
    ("monotonic", _monotonic_hard_term),
    ("order", lambda: _order(3, 2, 3, 4, 5)),
    ("order", lambda: _order(1, 4, 3, 4, 5)),
    ("order", lambda: _order(1, 2, 5, 4, 5)),
    ("order", lambda: _order(1, 2, 3, 6, 5)),
    ("configurations", _configurations),
    ("configurations", _configurations_proposed),
    ("configurations", _configurations_before_own_term),
    ("fresh_reads", _fresh_reads),
    ("healed", lambda: _healed([A, B], [(A, 2, 9), (B, 2, 9)], "x")),
    ("healed", lambda: _healed([A], [(A, 2, 9), (B, 1, 8)], "x")),
    ("healed", lambda: _healed([A], [(A, 2, 9), (B, 2, 9)], "lost")),
    ("bounded", _bounded),
    ("bounded", _bounded_snapshots),
    ("linearizable", _linearizable),
]


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)]
)
def test_one_event_breaks_it(name: str, case: Callable[[], Broken]) -> None:
    broken = case()
    with pytest.raises(InvariantError) as caught:
        broken()
    said = str(caught.value).partition(":")[0]
    assert said.replace("-", " ").replace(" ", "_") == name


def test_every_invariant_has_a_case_and_a_line_in_the_table() -> None:
    directory = Path(invariants.__file__).parent
    files = {path.stem for path in directory.glob("*.py")} - {"__init__", "checks", "error", "view"}
    assert files == {name for name, _ in CASES}
    told = invariants.__doc__ or ""
    assert all(f"\n| `{name}` |" in told for name in files)
    # Each names its section.
    for name in files:
        text = (directory / f"{name}.py").read_text("utf-8")
        assert "§" in text or "Figure" in text, name
