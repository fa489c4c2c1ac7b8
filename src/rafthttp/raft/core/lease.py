"""Whether a leader still leads: heartbeat rounds, the reads they confirm, and check-quorum.

A read is confirmed by a round of heartbeats that *started* after it was asked (Raft thesis §6.4):
what counts is the time of sending, so an answer to an older round proves nothing (S70). Giving up
leadership goes by the time of reception, as hashicorp/raft's LeaderLeaseTimeout does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rafthttp.raft.core.ready import ReadConfirmed, ReadId
from rafthttp.raft.types import Index, ServerID


class ReadRounds:
    """Reads waiting for a quorum. One round is in flight; later readers share the next.

    Invariants: `confirming` is empty exactly when no round is in flight for reads; `_acks` holds
    voters that answered round `_since` or a later one.
    """

    __slots__ = ("_acks", "_index", "_since", "confirming", "number", "waiting")

    def __init__(self) -> None:
        self.number = 0
        self.waiting: list[ReadId] = []
        self.confirming: list[ReadId] = []
        self._since = 0
        self._index: Index = 0
        self._acks: set[ServerID] = set()

    def wants_round(self) -> bool:
        """Whether reads wait and no round is in flight for others."""
        return bool(self.waiting) and not self.confirming

    def begin(self, read_index: Index) -> None:
        """The round about to be sent, `number`, confirms what waits at `read_index`."""
        assert not self.confirming, "one round in flight"
        self.confirming, self.waiting = self.waiting, []
        self._since = self.number
        self._index = read_index
        self._acks.clear()

    def answered(self, peer: ServerID, round_number: int) -> None:
        """The peer answered that round; a later one than asked for proves it just as well."""
        if self.confirming and round_number >= self._since:
            self._acks.add(peer)

    def confirmed(
        self, voters: Collection[ServerID], local_id: ServerID, quorum: int
    ) -> list[ReadConfirmed]:
        """The reads that a quorum of the present voters, this server included, confirms now."""
        if not self.confirming:
            return []
        acks = sum(1 for voter in voters if voter == local_id or voter in self._acks)
        if acks < quorum:
            return []
        done = [ReadConfirmed(read, self._index) for read in self.confirming]
        self.confirming = []
        return done

    def abort(self) -> list[ReadId]:
        """Leadership is lost: nothing is confirmed any more (S71)."""
        reads = self.confirming + self.waiting
        self.confirming, self.waiting = [], []
        return reads


def quorum_contact_ns(contacts_ns: Iterable[int], quorum: int) -> int:
    """Since when a quorum has been heard: the latest time at which `quorum` voters were."""
    return sorted(contacts_ns, reverse=True)[quorum - 1]
