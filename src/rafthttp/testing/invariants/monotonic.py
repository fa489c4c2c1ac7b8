"""Term, vote, commit and applied index do not fall (Raft Figure 2, §5.1, §5.2).

In one life of a server none of them does; on disk, over all its lives, term and vote do not.
"""

from __future__ import annotations

from rafthttp.raft.core.ready import HardState
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.invariants.error import InvariantError


class Monotonic:
    """Each server's figures when it was last seen."""

    def __init__(self) -> None:
        self._seen: dict[ServerID, tuple[int, Term, Index, Index]] = {}

    def on_step(
        self, server: ServerID, life: int, term: Term, commit: Index, applied: Index
    ) -> None:
        """Something happened to a server."""
        before = self._seen.get(server)
        if (
            before is not None
            and before[0] == life
            and (term < before[1] or commit < before[2] or applied < before[3])
        ):
            raise InvariantError(
                f"monotonic: {server} went from term, commit, applied {before[1:]}"
                f" to {(term, commit, applied)}"
            )
        self._seen[server] = (life, term, commit, applied)

    def on_hard_state(self, server: ServerID, before: HardState, now: HardState) -> None:
        """Term and vote were written."""
        if now.term < before.term:
            raise InvariantError(f"monotonic: {server} wrote term {now.term} after {before.term}")
        if now.term == before.term and before.voted_for not in (None, now.voted_for):
            raise InvariantError(f"monotonic: {server} changed its vote in term {now.term}")
