"""Leader Append-Only: a leader never overwrites or deletes entries of its log (Raft §5.3)."""

from __future__ import annotations

from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.invariants.view import Running


class LeaderAppendOnly:
    """The end of each leader's log when it was last seen."""

    def __init__(self) -> None:
        self._ends: dict[ServerID, tuple[int, Term, Index, Term]] = {}

    def on_step(self, view: Running, term: Term, last: Index) -> None:
        """Something happened to a server that leads."""
        core = view.live
        before = self._ends.get(view.id)
        if before is not None and before[0] == view.life and before[1] == term:
            at = before[2]
            held = core.term_at(at)
            if last < at or (held is not None and held != before[3]):
                raise InvariantError(
                    f"leader append-only: {view.id} leads term {term} and changed entry {at}"
                )
        self._ends[view.id] = (view.life, term, last, core.last_term)
