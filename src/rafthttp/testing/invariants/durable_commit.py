"""What is committed is durable on a quorum of the voters of its configuration.

Raft §5.3, and thesis §10.2.1 for a leader that writes while it sends. The disks of servers that are
down count: they are what a restart finds.
"""

from __future__ import annotations

from collections.abc import Iterable

from rafthttp.raft.types import Index
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.invariants.view import Voter


def check_durable(index: Index, entry: Entry, voters: Iterable[Voter], quorum: int) -> None:
    """A leader holds `entry` for committed."""
    holders = sum(voter.holds(index, entry) for voter in voters)
    if holders < quorum:
        raise InvariantError(
            f"durable commit: entry {index} is committed, and durable on {holders} voters only"
        )
