"""Leader Completeness: a leader's log holds all that is committed (Raft §5.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError


def check_leader_completeness(
    server: ServerID,
    base: Index,
    log: Sequence[Entry],
    committed: Mapping[Index, Entry],
    committed_index: Index,
) -> None:
    """A server says that it leads."""
    if base + len(log) < committed_index:
        raise InvariantError(f"leader completeness: {server} ends before a committed entry")
    for index in range(base + 1, committed_index + 1):
        entry = committed.get(index)
        if entry is not None and log[index - base - 1] != entry:
            raise InvariantError(f"leader completeness: {server} lacks committed {index}")
