"""What is committed is durable on a quorum of the voters of its configuration.

Raft §5.3, and thesis §10.2.1 for a leader that writes while it sends. The disks of servers that are
down count: they are what a restart finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rafthttp.raft.types import Configuration, Index, ServerID, Suffrage
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.invariants.view import Voter


class DurableCommit:
    """The last entry that is committed, and those who must not lose it.

    One is enough: whose log has it has all before it, too (Log Matching).
    """

    def __init__(self) -> None:
        self._index: Index = 0
        self._entry = Entry(0, None)
        self._voters: Sequence[Voter] = ()

    def on_commit(
        self,
        index: Index,
        entry: Entry,
        configuration: Configuration,
        servers: Mapping[ServerID, Voter],
    ) -> None:
        """A leader of that configuration holds `entry` for committed."""
        voters = [servers[s.id] for s in configuration.servers if s.suffrage is Suffrage.VOTER]
        check_durable(index, entry, voters)
        if index >= self._index:
            self._index, self._entry, self._voters = index, entry, voters

    def on_disk(self, server: Voter) -> None:
        """A server's disk changed, or what a restart will find on it."""
        if not server.holds(self._index, self._entry) and server in self._voters:
            check_durable(self._index, self._entry, self._voters)


def check_durable(index: Index, entry: Entry, voters: Iterable[Voter]) -> None:
    """`entry` is committed; a majority of `voters` must hold it."""
    held = [voter.holds(index, entry) for voter in voters]
    if 2 * sum(held) <= len(held):
        raise InvariantError(
            f"durable commit: entry {index} is committed, and durable on {sum(held)} voters only"
        )
