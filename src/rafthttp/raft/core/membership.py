"""Who is in the cluster, as the log tells it: the latest configuration counts, committed or not.

Knows the rule for one change at a time (Raft §4.1 of the thesis); not when a leader may make one.
"""

from __future__ import annotations

from collections.abc import Sequence

from rafthttp.raft.errors import ConfigurationChangeError
from rafthttp.raft.types import Configuration, Index, ServerID


class Membership:
    """The configurations that may still count, ascending by index.

    Invariants: `_entries[0]` is the newest one known to be committed (index 0 and empty before any
    is); those behind it may be rolled back (S52).
    """

    __slots__ = ("_entries", "_local_id", "changed", "is_voter", "quorum", "unsaved", "voters")

    def __init__(
        self,
        local_id: ServerID,
        entries: Sequence[tuple[Index, Configuration]],
        commit_index: Index,
    ) -> None:
        self._local_id = local_id
        # The last may be uncommitted; a leader appends a configuration only once the one before it
        # is committed, so all others are (S63: the log's win over the snapshot's).
        self._entries: list[tuple[Index, Configuration]] = list(entries[-2:])
        if len(self._entries) < 2 and (not self._entries or self._entries[0][0] > commit_index):
            self._entries.insert(0, (0, Configuration()))
        self.changed = False
        self.unsaved = False
        self.voters: tuple[ServerID, ...] = ()
        self.quorum = 1
        self.is_voter = False
        self._refresh()

    @property
    def latest(self) -> Configuration:
        """The configuration that counts."""
        return self._entries[-1][1]

    @property
    def latest_index(self) -> Index:
        """Its index; 0 before any."""
        return self._entries[-1][0]

    @property
    def committed(self) -> Configuration:
        """The newest configuration known to be committed."""
        return self._entries[0][1]

    @property
    def committed_index(self) -> Index:
        """Its index; 0 before any."""
        return self._entries[0][0]

    @property
    def may_campaign(self) -> bool:
        """Whether this server may still be needed as a leader. One that votes nowhere is not."""
        return self.is_voter or self.may_lead(self._local_id)

    def may_lead(self, server_id: ServerID) -> bool:
        """Whether that server may still be needed as a leader.

        A voter of the committed configuration that an uncommitted one leaves out may hold the only
        copy of that entry (Raft thesis §4.2.2; S58). It campaigns, so it gets votes as well: were
        it refused, its terms alone could keep every other candidate from being heard. A nonvoter
        of both never leads (S25).
        """
        return self.latest.has_vote(server_id) or (
            len(self._entries) > 1 and self.committed.has_vote(server_id)
        )

    def append(self, index: Index, configuration: Configuration) -> None:
        """An entry of the log is a configuration: it counts from now on."""
        assert index > self.latest_index, "configurations ascend"
        self._entries.append((index, configuration))
        self._refresh()
        self.changed = self.unsaved = True

    def truncate_from(self, index: Index) -> None:
        """The log lost `index` and all after it: back to the configuration before (S52)."""
        if index <= self.latest_index:
            while len(self._entries) > 1 and self._entries[-1][0] >= index:
                self._entries.pop()
            self._refresh()
            self.changed = self.unsaved = True

    def commit(self, index: Index) -> None:
        """Everything up to `index` is committed."""
        entries = self._entries
        while len(entries) > 1 and entries[1][0] <= index:
            del entries[0]

    def reset(self, index: Index, configuration: Configuration) -> None:
        """A snapshot brought this configuration, under its own index (S46); no other is left."""
        self._entries = [(index, configuration)]
        self._refresh()
        self.changed = self.unsaved = True

    def take_unsaved(self) -> tuple[tuple[Index, Configuration], ...] | None:
        """The pairs to write where they changed since the last call."""
        if not self.unsaved:
            return None
        self.unsaved = False
        return tuple(pair for pair in self._entries if pair[0] > 0)

    def _refresh(self) -> None:
        latest = self.latest
        self.voters = tuple(server.id for server in latest.voters)
        self.quorum = latest.quorum_size
        self.is_voter = self._local_id in self.voters


def check_change(old: Configuration, new: Configuration) -> None:
    """Refuse what is not a change of at most one server (Raft thesis §4.1).

    Raises:
        ConfigurationChangeError: more than one server differs, or nobody would vote.
    """
    if not new.voters:
        raise ConfigurationChangeError("the configuration would have no voter left")
    ids = {server.id for server in (*old, *new)}
    differing = sorted(i for i in ids if old.get(i) != new.get(i))
    if len(differing) > 1:
        raise ConfigurationChangeError(
            f"one server at a time: {', '.join(differing)} would all change"
        )
