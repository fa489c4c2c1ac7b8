"""A model of hashicorp/raft's follower, for tests of what a leader may send it.

Knows `appendEntries`, the votes and `installSnapshot` of hashicorp/raft's `raft.go`, in memory and
without timers: it never campaigns. What differs from ours, and matters: it commits min(leader's
commit, its *own* last index); it rejects with its real last index; it rejects a `prev` below its
first retained entry, and entries that are compacted away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rafthttp.raft.types import Index, ServerID, Term


class GoAnswer(NamedTuple):
    """What goes into the AppendEntries response."""

    term: Term
    last_log: Index
    success: bool
    no_retry_backoff: bool


class GoFollower:
    """One follower. `entries[i]` is the pair (term, payload) of index `first + i`."""

    def __init__(self) -> None:
        self.term: Term = 0
        self.voted_for: ServerID | None = None
        self.leader: ServerID | None = None
        self.first: Index = 1
        self.entries: list[tuple[Term, object]] = []
        self.snapshot_index: Index = 0
        self.snapshot_term: Term = 0
        self.commit_index: Index = 0

    @property
    def last_log(self) -> Index:
        """Last entry held, 0 if none (`getLastLog`)."""
        return self.first + len(self.entries) - 1 if self.entries else 0

    @property
    def last_index(self) -> Index:
        """Last entry or snapshot (`getLastIndex`)."""
        return max(self.last_log, self.snapshot_index)

    @property
    def last_term(self) -> Term:
        """Its term (`getLastEntry`)."""
        if self.last_log >= self.snapshot_index and self.entries:
            return self.entries[-1][0]
        return self.snapshot_term

    def get(self, index: Index) -> tuple[Term, object] | None:
        """One entry, None where the store does not hold it (`GetLog`)."""
        at = index - self.first
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def append_entries(
        self,
        leader: ServerID,
        term: Term,
        prev_index: Index,
        prev_term: Term,
        entries: Sequence[tuple[Term, object]],
        leader_commit: Index,
    ) -> GoAnswer:
        """`appendEntries`, step by step."""
        last_log = self.last_index
        if term < self.term:
            return GoAnswer(self.term, last_log, success=False, no_retry_backoff=False)
        if term > self.term:
            self.term, self.voted_for = term, None
        self.leader = leader
        if prev_index > 0:
            if prev_index == self.last_index:
                own_term: Term | None = self.last_term
            else:
                held = self.get(prev_index)
                own_term = None if held is None else held[0]
            if own_term != prev_term:
                return GoAnswer(self.term, last_log, success=False, no_retry_backoff=True)
        if not self._store(prev_index, entries):
            return GoAnswer(self.term, last_log, success=False, no_retry_backoff=False)
        if leader_commit > self.commit_index:
            self.commit_index = min(leader_commit, self.last_index)
        return GoAnswer(self.term, last_log, success=True, no_retry_backoff=False)

    def _store(self, prev_index: Index, entries: Sequence[tuple[Term, object]]) -> bool:
        last_log = self.last_log
        for at, entry in enumerate(entries):
            index = prev_index + 1 + at
            if index <= last_log:
                held = self.get(index)
                if held is None:
                    return False
                if held[0] == entry[0]:
                    continue
                del self.entries[index - self.first :]
            if not self.entries:
                self.first = index
            self.entries.extend(entries[at:])
            break
        return True

    def request_vote(
        self, candidate: ServerID, term: Term, last_index: Index, last_term: Term, *, pre: bool
    ) -> tuple[Term, bool]:
        """`requestVote` and `requestPreVote`: (term, granted)."""
        if term < self.term or self.leader not in (None, candidate):
            return self.term, False
        ahead = (last_term, last_index) >= (self.last_term, self.last_index)
        if pre:
            return (term, True) if ahead else (self.term, False)
        if term > self.term:
            self.term, self.voted_for = term, None
        granted = ahead and self.voted_for in (None, candidate)
        if granted:
            self.voted_for = candidate
        return self.term, granted

    def install_snapshot(
        self, leader: ServerID, term: Term, last_index: Index, last_term: Term
    ) -> bool:
        """`installSnapshot`, with no trailing logs."""
        if term < self.term:
            return False
        if term > self.term:
            self.term, self.voted_for = term, None
        self.leader = leader
        self.compact(last_index, last_term, trailing=0)
        self.commit_index = max(self.commit_index, last_index)
        return True

    def compact(self, index: Index, term: Term, *, trailing: int) -> None:
        """A snapshot up to `index`; the log keeps `trailing` entries up to there."""
        self.snapshot_index, self.snapshot_term = index, term
        first = index - trailing + 1
        if first > self.last_log:
            self.entries = []
        elif first > self.first:
            del self.entries[: first - self.first]
        if self.entries:
            self.first = max(self.first, first)
