"""Whether a leader still leads: heartbeat rounds, the reads they confirm, leases, check-quorum.

A read is confirmed by a round of heartbeats that *started* after it was asked (Raft thesis §6.4):
what counts is the time of sending, so an answer to an older round proves nothing (S70). Giving up
leadership goes by the time of reception, as hashicorp/raft's LeaderLeaseTimeout does.

A lease (Raft thesis §6.4.1) spares a read its round. It rests on a promise of each voter: having
heard a leader, it votes for nobody else for a heartbeat timeout (`Server.promised_until_ns`). So
from the time at which heartbeats were *sent* that a quorum has answered since, no other can be
elected for that long, but for a transfer, and that the leader begins itself:

1. a sends TimeoutNow to b. From this moment b may campaign with the flag that voters grant a vote
   for although they hear a; b leads and commits at any time after.
2. So a's lease ends before TimeoutNow leaves, and does not come back in that leadership: it may
   arrive late, and so may b's requests for votes. It does where b refused, or nothing was sent.
3. a may lead again in a later term while its TimeoutNow is still on the way to b, which follows a
   then and obeys. So there is no lease in later leaderships either until the answer is there. (A
   TimeoutNow that outlives its sender's process and next election is beyond this: it has no term.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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


def lease_length_ns(heartbeat_timeout_ns: int, election_timeout_ns: int) -> int:
    """How long a quorum's answers hold: a promise, less what clocks may differ by.

    A tenth. Oscillators are off by some 100 ppm and NTP slews by 500; the rest is for clocks of
    virtual machines that catch up.
    """
    return min(heartbeat_timeout_ns, election_timeout_ns) // 10 * 9


class ReadLease:
    """Up to when one leadership needs no round trip for a read.

    Invariant: `_sent_ns[peer]` is when the latest heartbeat was sent that the peer has answered, of
    those sent at `_since_ns` or later.
    """

    __slots__ = ("_length_ns", "_sent_ns", "_since_ns", "dropped")

    def __init__(self, length_ns: int) -> None:
        self._length_ns = length_ns
        self._sent_ns: dict[ServerID, int] = {}
        self._since_ns = 0
        self.dropped = False
        """Whether somebody campaigns by order; for the rest of this leadership."""

    def answered(self, peer: ServerID, sent_ns: int) -> None:
        """The peer acknowledged the leader in a heartbeat that was sent then."""
        if sent_ns >= self._since_ns and sent_ns > self._sent_ns.get(peer, -1):
            self._sent_ns[peer] = sent_ns

    def begin_anew(self, now_ns: int) -> None:
        """Nothing that was sent before counts, whenever it is answered."""
        self._since_ns = now_ns
        self._sent_ns.clear()

    def holds(self, now_ns: int, others: Sequence[ServerID], needed: int) -> bool:
        """Whether `needed` of the other voters promised to elect nobody else by `now_ns`."""
        if self.dropped:
            return False
        if needed <= 0:
            return True
        sent = [self._sent_ns[peer] for peer in others if peer in self._sent_ns]
        if len(sent) < needed:
            return False
        return now_ns < quorum_contact_ns(sent, needed) + self._length_ns
