"""Election Safety: at most one leader a term (Raft §5.2, Figure 3)."""

from __future__ import annotations

from rafthttp.raft.types import ServerID, Term
from rafthttp.testing.invariants.error import InvariantError


class ElectionSafety:
    """Who led which term."""

    def __init__(self) -> None:
        self._leaders: dict[Term, ServerID] = {}

    def on_leader(self, server: ServerID, term: Term) -> None:
        """A server says that it leads."""
        first = self._leaders.setdefault(term, server)
        if first != server:
            raise InvariantError(f"election safety: {first} and {server} lead term {term}")
