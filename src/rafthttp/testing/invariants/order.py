"""purged <= snapshot <= applied <= committed <= last (Raft §5.3, §7)."""

from __future__ import annotations

from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.invariants.error import InvariantError


def check_order(
    server: ServerID, purged: Index, snapshot: Index, applied: Index, commit: Index, last: Index
) -> None:
    """Something happened to a server."""
    if not purged <= snapshot <= applied <= commit <= last:
        raise InvariantError(
            f"order: {server} has purged {purged}, snapshot {snapshot}, applied {applied},"
            f" committed {commit}, last {last}"
        )
