"""State Machine Safety: one entry an index, one state an entry (Raft §5.4.3).

Both are asked: that all servers apply the same entry at an index, and that a state machine which
has applied it is in the same state everywhere, however it got there.
"""

from __future__ import annotations

from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError


class StateMachineSafety:
    """Everything that was applied anywhere."""

    def __init__(self) -> None:
        self.committed: dict[Index, Entry] = {}
        self.committed_index: Index = 0
        self._digests: dict[Index, int] = {}

    def on_commit(self, server: ServerID, index: Index, entry: Entry) -> None:
        """A server applies an entry."""
        seen = self.committed.setdefault(index, entry)
        if seen != entry:
            raise InvariantError(
                f"state machine safety: {server} applies {entry} at {index}, another applied {seen}"
            )
        if index > self.committed_index:
            self.committed_index = index

    def on_state(self, server: ServerID, index: Index, digest: int) -> None:
        """A server's state machine has applied all up to `index`."""
        if self._digests.setdefault(index, digest) != digest:
            raise InvariantError(f"state machine safety: {server} is in another state at {index}")
