"""Bugs of membership changes."""

from __future__ import annotations

from typing import Final

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.membership import Membership
from rafthttp.raft.core.server import Server
from rafthttp.raft.core.status import Status
from rafthttp.raft.types import Configuration, Index, LogPosition, Term
from rafthttp.testing.mutants.plant import Patch

# pyright: reportPrivateUsage=false
# A bug is planted inside.


def early_configuration(patch: Patch) -> None:
    """S50: a configuration is changed before a commit of the own term."""

    def has_committed(_self: Leadership) -> bool:
        return True

    patch.set(Leadership, "has_committed", property(has_committed))


def two_configurations(patch: Patch) -> None:
    """Thesis §4.1: a configuration is changed while another is not committed."""

    def can_change_configuration(self: Status) -> bool:
        leadership = self._leadership
        return self.accepts_proposals and leadership is not None and leadership.has_committed

    patch.set(Status, "can_change_configuration", property(can_change_configuration))


def no_rollback(patch: Patch) -> None:
    """S52: a truncated configuration goes on counting."""

    def truncate_from(_self: Membership, _index: Index) -> None:
        pass

    patch.set(Membership, "truncate_from", truncate_from)


def nonvoters_vote(patch: Patch) -> None:
    """S25: servers that do not vote are counted."""

    def voters(self: Configuration) -> tuple[object, ...]:
        return self.servers

    patch.set(Configuration, "voters", property(voters))


def configuration_counts_late(patch: Patch) -> None:
    """Thesis §4.1: a configuration counts once it is committed, not once it is appended."""
    original, commit = Membership.append, Membership.commit

    def append(self: Membership, index: Index, configuration: Configuration) -> None:
        voters, quorum, is_voter = self.voters, self.quorum, self.is_voter
        original(self, index, configuration)
        self.voters, self.quorum, self.is_voter = voters, quorum, is_voter

    def commit_late(self: Membership, index: Index) -> None:
        commit(self, index)
        self._refresh()

    patch.set(Membership, "append", append)
    patch.set(Membership, "commit", commit_late)


def votes_at_once(patch: Patch) -> None:
    """ADR 9: who lost its state votes before its log holds its own removal."""

    def may_vote(_self: Server) -> bool:
        return True

    patch.set(Server, "may_vote", may_vote)


def votes_only_when_caught_up(patch: Patch) -> None:
    """ADR 9: who lost its state refuses even those who hold its removal; it may be needed."""

    def may_vote_for(self: Server, _last_index: Index, _last_term: Term) -> bool:
        return self.may_vote()

    patch.set(Server, "may_vote_for", may_vote_for)


def hears_deposed_leaders(patch: Patch) -> None:
    """ADR 9: who lost its state acknowledges entries of leaders older than its removal."""

    def take_part(self: Consensus, votes_from: LogPosition, now_ns: int) -> None:
        self._server.now_ns = now_ns
        self._server.votes_from = votes_from

    patch.set(Consensus, "take_part", take_part)


PLANTS: Final = (
    (votes_at_once, "lost_state", False),
    (votes_only_when_caught_up, "lost_state_needed", False),
    (hears_deposed_leaders, "lost_state_deposed", False),
    (early_configuration, "concurrent_removals", True),
    (two_configurations, "configuration_change", True),
    (no_rollback, "truncated_configuration", False),
    (nonvoters_vote, None, True),
    (configuration_counts_late, None, True),
)
