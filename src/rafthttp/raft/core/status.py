"""What the caller may read of a server at any time.

Knows nothing of its own: every figure is read through.
"""

from __future__ import annotations

from rafthttp.raft.core.ready import ProgressState
from rafthttp.raft.core.roles import Roles
from rafthttp.raft.types import Configuration, Index, ServerID, State, Term


class Status(Roles):
    """Read-only figures of a server."""

    __slots__ = ()

    @property
    def state(self) -> State:
        """Role."""
        return self._server.state

    @property
    def term(self) -> Term:
        """Present term; perhaps not durable yet."""
        return self._server.term

    @property
    def leader(self) -> ServerID | None:
        """Who leads, as far as known."""
        return self._server.leader

    @property
    def first_index(self) -> Index:
        """First entry of the log as the core sees it."""
        return self._server.log.base_index + 1

    @property
    def last_index(self) -> Index:
        """Last entry, durable or not."""
        return self._server.log.last_index

    @property
    def last_term(self) -> Term:
        """Its term."""
        return self._server.log.last_term

    @property
    def durable_index(self) -> Index:
        """Up to where the log, as it is now, is durable here."""
        return self._server.disk.durable_index

    @property
    def commit_index(self) -> Index:
        """Highest entry known to be committed."""
        return self._server.commit_index

    @property
    def snapshot_index(self) -> Index:
        """Last entry the newest snapshot covers."""
        return self._server.snapshot_index

    @property
    def configuration(self) -> Configuration:
        """The latest configuration, committed or not."""
        return self._server.members.latest

    @property
    def configuration_index(self) -> Index:
        """Its index."""
        return self._server.members.latest_index

    @property
    def committed_configuration(self) -> Configuration:
        """The newest configuration known to be committed."""
        return self._server.members.committed

    @property
    def committed_configuration_index(self) -> Index:
        """Its index."""
        return self._server.members.committed_index

    @property
    def last_contact_ns(self) -> int | None:
        """When a leader was last heard; None if never."""
        return self._server.last_contact_ns

    @property
    def disk_failed(self) -> bool:
        """Whether a write failed: this server takes no part any more (S6)."""
        return self._server.disk.failed

    @property
    def transferring(self) -> bool:
        """Whether a leadership transfer is under way."""
        leadership = self._leadership
        return leadership is not None and leadership.transfer_target is not None

    @property
    def awaits_campaign(self) -> bool:
        """Whether another server was told to campaign, and has not answered yet."""
        return self._server.unanswered_timeout_nows > 0

    @property
    def is_dispensable(self) -> bool:
        """Whether this server leads and the other voters could go on without it."""
        return self._leadership is not None and self._leadership.is_dispensable

    @property
    def accepts_proposals(self) -> bool:
        """Whether `propose` may be called."""
        leadership = self._leadership
        return (
            leadership is not None
            and leadership.first_index is not None
            and leadership.transfer_target is None
            and not leadership.restoring
        )

    @property
    def restoring(self) -> bool:
        """Whether this server leads, and a user's snapshot is coming in."""
        return self._leadership is not None and self._leadership.restoring

    @property
    def can_change_configuration(self) -> bool:
        """Whether an entry of the own term is committed (S50) and no configuration is pending."""
        return (
            self.accepts_proposals
            and self._leadership is not None
            and self._leadership.has_committed
            and self._server.members.latest_index <= self._server.commit_index
        )

    def term_at(self, index: Index) -> Term | None:
        """Term of one entry (or of the one before the first), None where it is not held."""
        return self._server.log.term_at(index)

    def match_index(self, peer: ServerID) -> Index:
        """Up to where that peer is known to hold the log durably; 0 if unknown. Leader only."""
        progress = self._leadership.peers.get(peer) if self._leadership is not None else None
        return 0 if progress is None else progress.match

    def contact_ns(self, peer: ServerID) -> int | None:
        """When that peer was last heard, or this leadership began; None if not fed. Leader only."""
        progress = self._leadership.peers.get(peer) if self._leadership is not None else None
        return None if progress is None else progress.contact_ns

    def progress(self, peer: ServerID) -> ProgressState | None:
        """How that peer is being fed; None if it is not. Leader only."""
        progress = self._leadership.peers.get(peer) if self._leadership is not None else None
        return None if progress is None else progress.state
