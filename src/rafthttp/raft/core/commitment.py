"""What is committed: three small rules, each a function."""

from __future__ import annotations

from collections.abc import Iterable

from rafthttp.raft.types import Index


def quorum_index(matches: Iterable[Index], quorum: int) -> Index:
    """Highest index that `quorum` of the voters hold durably (a true majority: S24)."""
    return sorted(matches, reverse=True)[quorum - 1]


def leader_commit(commit_index: Index, held: Index, first_of_term: Index) -> Index:
    """The leader's commit index once a quorum holds `held`.

    An entry of an older term is never committed by counting, only by an entry of the leader's own
    term above it (Raft §5.4.2, Figure 8; S28). `first_of_term` is the leader's no-op.
    """
    return held if held >= first_of_term and held > commit_index else commit_index


def shown_commit(commit_index: Index, last: Index) -> Index:
    """What a frame that ends at `last` may say is committed (decision 6).

    hashicorp/raft's follower commits min(leader's commit, its *own* last index): were a probe to
    show more than it carries, that follower would commit a tail that diverges.
    """
    return min(commit_index, last)


def follower_commit(commit_index: Index, shown: Index, last_new: Index) -> Index:
    """A follower's commit index after a frame that ends at `last_new` (Raft Figure 2; S30)."""
    return max(commit_index, min(shown, last_new))
