"""Elections: who may campaign, who gets a vote, and the early campaign on a closed stream.

Knows votes and timers; not how a candidate becomes a leader.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from rafthttp.raft.core.ready import Seq, VoteRequest
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Index, ServerID, Term

# Decision 7: long enough that a proxy's reload reopens the stream, short enough to be worth it.
GRACE_NS: Final = 30_000_000
# Tries after a refusal in an early campaign, a grace apart; then the normal timeout (ADR 4).
_RETRIES_MAX: Final = 3


class Phase(Enum):
    """Where a campaign is."""

    PRE_VOTE = "pre-vote"
    VOTE = "vote"


class Campaign:
    """One try to become the leader: the answers so far.

    A real vote is asked for only when the own term and vote are durable (`after`). It would be safe
    to ask before: a candidate that forgot its vote in a crash can at most ask again in the same
    term, and its own vote counts only when durable. It is held back so that a server whose disk
    hangs does not raise everybody's term, and no request shows a term that can be forgotten.
    """

    __slots__ = ("_refused", "after", "granted", "phase", "term", "transfer")

    def __init__(self, phase: Phase, term: Term, after: Seq | None, *, transfer: bool) -> None:
        self.phase = phase
        self.term = term
        self.after = after
        """The write to wait for before asking; None once asked."""
        self.transfer = transfer
        self.granted: set[ServerID] = set()
        self._refused: set[ServerID] = set()

    def record(self, peer: ServerID, *, granted: bool) -> None:
        """Count an answer; a vote once granted stays granted."""
        if granted:
            self.granted.add(peer)
        elif peer not in self.granted:
            self._refused.add(peer)

    def is_won(self, server: Server) -> bool:
        """Whether a quorum of the voters of the latest configuration granted (S24, S25)."""
        members = server.members
        return sum(v in self.granted for v in members.voters) >= members.quorum

    def is_lost(self, server: Server) -> bool:
        """Whether so many refused that no quorum is left."""
        members = server.members
        return sum(v not in self._refused for v in members.voters) < members.quorum

    def ask(self, server: Server) -> None:
        """Put the requests into the `Ready`, for every other voter."""
        self.after = None
        log = server.log
        server.out.votes.extend(
            VoteRequest(
                voter,
                self.phase is Phase.PRE_VOTE,
                self.term,
                log.last_index,
                log.last_term,
                self.transfer,
            )
            for voter in server.members.voters
            if voter != server.local_id
        )


class EarlyCampaign:
    """The leader's streams closed: grace, one dial, and only then the leader is forgotten.

    Nothing here can wedge: the election timer runs on meanwhile.
    """

    __slots__ = ("_probed", "probe_ns", "retries")

    def __init__(self) -> None:
        self.probe_ns: int | None = None
        self.retries = 0
        """Quick tries left since the leader was found dead; none once a leader is heard."""
        self._probed: ServerID | None = None

    def begin(self, server: Server) -> None:
        """The last stream of the leader closed."""
        if self.probe_ns is None and self._probed is None:
            self.probe_ns = server.now_ns + server.random_timeout_ns(GRACE_NS)

    def cancel(self) -> None:
        """The leader was heard, or is no longer the leader."""
        self.probe_ns = None
        self._probed = None

    def tick(self, server: Server) -> None:
        """After the grace: ask for one dial of the leader's address."""
        if self.probe_ns is not None and server.now_ns >= self.probe_ns:
            self.probe_ns = None
            self._probed = server.out.probe_leader = server.leader

    def answered(self, peer: ServerID, *, alive: bool) -> bool:
        """The dial's outcome. True: the leader is gone, and nothing cancelled this meanwhile."""
        if peer != self._probed:
            return False
        self._probed = None
        if alive:
            return False
        self.retries = _RETRIES_MAX
        return True

    def take_retry(self) -> bool:
        """Whether a refused campaign is to be repeated soon."""
        if self.retries == 0:
            return False
        self.retries -= 1
        return True


def may_campaign(server: Server) -> bool:
    """Whether this server may ask for votes: a member that votes, with a disk that works.

    Not before its log holds what it forgot: it may count by a configuration of long ago. Not while
    a snapshot is about to replace its log: it would lead with entries that are no more.
    """
    return (
        server.members.may_campaign
        and server.may_vote()
        and not server.disk.failed
        and not server.disk_is_late()
        and server.installing is None
    )


def is_outsider(server: Server, candidate: ServerID, last_index: Index, last_term: Term) -> bool:
    """Whether the candidate has no business asking (S53, S54).

    By what is known here it may not lead, and its log is not ahead of this one. Were its log ahead,
    it might have been added by an entry that is missing here, and this vote could be the one that
    is needed; a removed server's log never is, for what removed it is in this log.
    """
    log = server.log
    if (last_term, last_index) > (log.last_term, log.last_index):
        return False
    return bool(server.members.latest.servers) and not server.members.may_lead(candidate)


def sticks_to_leader(server: Server, candidate: ServerID) -> bool:
    """Whether a live leader is known, other than the candidate (Raft thesis §4.2.3; S20).

    Where leases rest on it, also while one may live that is known no more: after a restart, or a
    glimpse of a higher term.
    """
    known = server.leader is not None and server.leader != candidate
    return known or server.is_promised_to_another(candidate)


def grants_pre_vote(
    server: Server, candidate: ServerID, term: Term, last_index: Index, last_term: Term
) -> bool:
    """Whether a vote in `term` would be granted. Changes nothing, not even the timer (S21).

    Term 0 is how an address is asked who is there; it is refused like any old term.
    """
    return (
        not server.disk.failed
        and server.may_vote_for(last_index, last_term)
        and term > 0
        and term >= server.term
        and not sticks_to_leader(server, candidate)
        and not is_outsider(server, candidate, last_index, last_term)
        and server.is_up_to_date(last_index, last_term)
    )
