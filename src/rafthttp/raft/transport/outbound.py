"""What the server hands to a replication stream."""

from __future__ import annotations

from typing import NamedTuple

from rafthttp.raft.types import Index, Term


class AppendFrame(NamedTuple):
    """One AppendEntries whose entries are encoded already; `leader_commit` is clamped already."""

    term: Term
    prev_log_index: Index
    prev_log_term: Term
    records: list[bytes]
    leader_commit: Index
