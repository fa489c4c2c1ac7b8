"""The invariants of a `CoreNet`: those of `rafthttp.testing.invariants` that a dialogue can show.

Knows which of the network's events concerns which property.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.election_safety import ElectionSafety
from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.invariants.fresh_reads import FreshReads
from rafthttp.testing.invariants.leader_completeness import check_leader_completeness
from rafthttp.testing.invariants.log_matching import LogMatching
from rafthttp.testing.invariants.state_machine_safety import StateMachineSafety

__all__ = ["InvariantError", "Invariants"]


class Invariants:
    """What has been seen of a history."""

    def __init__(self) -> None:
        self._elections = ElectionSafety()
        self._matching = LogMatching()
        self._states = StateMachineSafety()
        self._reads = FreshReads()

    @property
    def committed(self) -> Mapping[Index, Entry]:
        """Everything that was applied anywhere."""
        return self._states.committed

    @property
    def committed_index(self) -> Index:
        """The last of it."""
        return self._states.committed_index

    def on_append(
        self, server: ServerID, index: Index, entry: Entry, prev_term: Term | None
    ) -> None:
        """A server put an entry into its log."""
        self._matching.on_append(server, index, entry, prev_term)

    def on_leader(
        self, server: ServerID, core: Consensus, log: Sequence[Entry], base: Index
    ) -> None:
        """A server says that it leads."""
        self._elections.on_leader(server, core.term)
        check_leader_completeness(server, base, log, self.committed, self.committed_index)

    def on_commit(self, server: ServerID, index: Index, entry: Entry) -> None:
        """A server applies an entry."""
        self._states.on_commit(server, index, entry)

    def on_read_asked(self, read: int) -> None:
        """A client asks for a read: it must see all that is committed by now."""
        self._reads.on_asked(read, self.committed_index)

    def on_read_confirmed(self, server: ServerID, read: int, read_index: Index) -> None:
        """A leader serves the read at that index."""
        self._reads.on_confirmed(server, read, read_index)
