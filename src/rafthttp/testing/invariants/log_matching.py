"""Log Matching: same index and term, same entry and same forerunner (Raft §5.3)."""

from __future__ import annotations

from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError


class LogMatching:
    """Every entry that was ever in a log, with the term before it."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Index, Term], tuple[object, Term | None]] = {}

    def on_append(
        self, server: ServerID, index: Index, entry: Entry, prev_term: Term | None
    ) -> None:
        """A server put an entry into its log."""
        seen = self._entries.setdefault((index, entry.term), (entry.payload, prev_term))
        if seen[0] != entry.payload or (
            prev_term is not None and seen[1] is not None and seen[1] != prev_term
        ):
            raise InvariantError(f"log matching: {server} has another entry {index}/{entry.term}")
