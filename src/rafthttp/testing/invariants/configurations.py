"""One configuration change at a time (Raft thesis §4.1; the fix of 2015 in §4.1's erratum).

A leader appends a configuration only once the one before it and an entry of its own term are
committed; so no log holds two that are not committed.
"""

from __future__ import annotations

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.types import Configuration, Index, ServerID
from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.invariants.view import Log


def check_proposed(server: ServerID, core: Consensus) -> None:
    """A leader is about to append a configuration, and would be allowed to."""
    if core.configuration_index > core.commit_index:
        raise InvariantError(f"configurations: {server} adds one while another is not committed")
    if core.term_at(core.commit_index) != core.term:
        raise InvariantError(f"configurations: {server} has committed nothing in term {core.term}")


def check_pending(server: ServerID, base: Index, log: Log, committed_index: Index) -> None:
    """A server appended a configuration; `committed_index` is what anybody knows to be so."""
    pending = [
        base + 1 + at
        for at in range(max(committed_index - base, 0), len(log))
        if isinstance(log[at].payload, Configuration)
    ]
    if len(pending) > 1:
        raise InvariantError(f"configurations: {server} holds uncommitted ones at {pending}")
