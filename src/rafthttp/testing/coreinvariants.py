"""Raft's safety properties (Raft Figure 3), checked on every step of a history.

| property | checked when |
|---|---|
| Election Safety: one leader a term | a server announces leadership |
| Log Matching: same index and term, same entry and same forerunner | a server appends |
| Leader Completeness: a leader holds all that is committed | a server announces leadership |
| State Machine Safety: one entry an index | a server applies |
| Linearizable reads: covers all that was committed when it was asked | a read is confirmed |
"""

from __future__ import annotations

from collections.abc import Sequence

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import Entry


class InvariantError(AssertionError):
    """A history breaks one of Raft's properties."""


class Invariants:
    """What has been seen of a history."""

    def __init__(self) -> None:
        self.committed: dict[Index, Entry] = {}
        self.committed_index: Index = 0
        self._leaders: dict[Term, ServerID] = {}
        self._entries: dict[tuple[Index, Term], tuple[object, Term | None]] = {}
        self._reads: dict[int, Index] = {}

    def on_append(
        self, server: ServerID, index: Index, entry: Entry, prev_term: Term | None
    ) -> None:
        """A server put an entry into its log."""
        seen = self._entries.setdefault((index, entry.term), (entry.payload, prev_term))
        if seen[0] != entry.payload or (
            prev_term is not None and seen[1] is not None and seen[1] != prev_term
        ):
            raise InvariantError(f"log matching: {server} has another entry {index}/{entry.term}")

    def on_leader(
        self, server: ServerID, core: Consensus, log: Sequence[Entry], base: Index
    ) -> None:
        """A server says that it leads."""
        if self._leaders.setdefault(core.term, server) != server:
            raise InvariantError(
                f"election safety: {self._leaders[core.term]} and {server} lead {core.term}"
            )
        if base + len(log) < self.committed_index:
            raise InvariantError(f"leader completeness: {server} ends before a committed entry")
        for index in range(base + 1, self.committed_index + 1):
            if index in self.committed and log[index - base - 1] != self.committed[index]:
                raise InvariantError(f"leader completeness: {server} lacks committed {index}")

    def on_commit(self, server: ServerID, index: Index, entry: Entry) -> None:
        """A server applies an entry."""
        if self.committed.setdefault(index, entry) != entry:
            raise InvariantError(
                f"state machine safety: {server} applies {entry} at {index},"
                f" another applied {self.committed[index]}"
            )
        self.committed_index = max(self.committed_index, index)

    def on_read_asked(self, read: int) -> None:
        """A client asks for a read: it must see all that is committed by now."""
        self._reads[read] = self.committed_index

    def on_read_confirmed(self, server: ServerID, read: int, read_index: Index) -> None:
        """A leader serves the read at that index."""
        if read_index < self._reads[read]:
            raise InvariantError(
                f"stale read: {server} serves at {read_index}, asked at {self._reads[read]}"
            )
