"""A confirmed read covers all that was committed when it was asked (Raft §8, thesis §6.4)."""

from __future__ import annotations

from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.invariants.error import InvariantError


class FreshReads:
    """What was committed when each read was asked."""

    def __init__(self) -> None:
        self._asked: dict[int, Index] = {}

    def on_asked(self, read: int, committed_index: Index) -> None:
        """A client asks."""
        self._asked[read] = committed_index

    def on_confirmed(self, server: ServerID, read: int, read_index: Index) -> None:
        """A leader serves it at that index."""
        asked = self._asked[read]
        if read_index < asked:
            raise InvariantError(f"fresh reads: {server} serves at {read_index}, asked at {asked}")
