"""Bugs of replication and commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rafthttp.raft.core import following, leadership
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.replication import Progress
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Index, Term
from rafthttp.testing.mutants.plant import Patch

# pyright: reportPrivateUsage=false
# A bug is planted inside.


def commit_by_counting(patch: Patch) -> None:
    """S28: an entry of an older term is committed by counting."""

    def leader_commit(commit_index: Index, held: Index, _first_of_term: Index) -> Index:
        return max(commit_index, held)

    patch.set(leadership, "leader_commit", leader_commit)


def unclamped_commit(patch: Patch) -> None:
    """Decision 6: the leader shows its commit index whatever the frame carries."""

    def shown_commit(commit_index: Index, _last: Index) -> Index:
        return commit_index

    patch.set(leadership, "shown_commit", shown_commit)


def go_commit(patch: Patch) -> None:
    """S30: the follower commits what it holds, not what the frame proves."""

    def follower_commit(commit_index: Index, shown: Index, _last_new: Index) -> Index:
        return max(commit_index, min(shown, 6))

    patch.set(following, "follower_commit", follower_commit)


def always_truncate(patch: Patch) -> None:
    """S29: a frame replaces all that follows its place, known or not."""

    def first_new_index(server: Server, prev_index: Index, terms: Sequence[Term]) -> Index | None:
        first = max(prev_index, server.commit_index) + 1
        return first if first <= prev_index + len(terms) else None

    patch.set(following, "first_new_index", first_new_index)


def never_truncate(patch: Patch) -> None:
    """Raft §5.3: a conflicting entry stays."""

    def first_new_index(server: Server, prev_index: Index, terms: Sequence[Term]) -> Index | None:
        last = prev_index + len(terms)
        return server.log.last_index + 1 if last > server.log.last_index else None

    patch.set(following, "first_new_index", first_new_index)


def no_consistency_check(patch: Patch) -> None:
    """Raft §5.3: the entry before a frame's first is not compared."""

    def matches(server: Server, prev_index: Index, _prev_term: Term) -> bool:
        return prev_index <= server.log.last_index

    patch.set(following, "matches", matches)


def commit_past_match(patch: Patch) -> None:
    """Decision 6: success moves match one beyond what was sent."""
    original = Progress.accepted

    def accepted(self: Progress, last: Index) -> None:
        original(self, last)
        self.match = last + 1

    patch.set(Progress, "accepted", accepted)


def commit_by_the_fastest(patch: Patch) -> None:
    """Raft §5.3: an entry is committed when one voter less than a quorum holds it."""

    def quorum_index(matches: Iterable[Index], quorum: int) -> Index:
        return sorted(matches, reverse=True)[max(quorum - 2, 0)]

    patch.set(leadership, "quorum_index", quorum_index)


def transfer_before_match(patch: Patch) -> None:
    """S65: leadership is handed to a server that lacks entries."""
    original = Leadership.fill

    def fill(self: Leadership, out: Any) -> None:
        progress = None if self.transfer_target is None else self.peers.get(self.transfer_target)
        if progress is None:
            original(self, out)
            return
        match, progress.match = progress.match, self._server.log.last_index
        original(self, out)
        progress.match = match

    patch.set(Leadership, "fill", fill)


PLANTS: Final = (
    (commit_by_counting, "figure8", False),
    (unclamped_commit, "go_follower", True),
    (go_commit, "commit_rule", False),
    (always_truncate, None, True),
    (never_truncate, None, True),
    (no_consistency_check, None, True),
    (commit_past_match, None, True),
    (commit_by_the_fastest, None, True),
    (transfer_before_match, "transfer", False),
)
