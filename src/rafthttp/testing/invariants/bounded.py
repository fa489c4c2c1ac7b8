"""Bounded work: elections and snapshots a simulated second (thesis §9.3; S13, S38: no storms)."""

from __future__ import annotations

from rafthttp.raft.types import Term
from rafthttp.testing.invariants.error import InvariantError

_SECOND_NS = 1_000_000_000


class Bounded:
    """Counts of one history; `elections` by the newest term anybody was in."""

    def __init__(self) -> None:
        self.terms: Term = 1
        self.snapshots = 0

    def on_term(self, term: Term) -> None:
        """A server is in that term."""
        if term > self.terms:
            self.terms = term

    def check(
        self, simulated_ns: int, elections_per_second: float, snapshots_per_second: float
    ) -> None:
        """The history ended."""
        # The first second of a history is allowed one second's worth.
        seconds = 1 + simulated_ns / _SECOND_NS
        if self.terms > elections_per_second * seconds:
            raise InvariantError(f"bounded: {self.terms} terms in {seconds - 1:.1f} s")
        if self.snapshots > snapshots_per_second * seconds:
            raise InvariantError(f"bounded: {self.snapshots} snapshots in {seconds - 1:.1f} s")
