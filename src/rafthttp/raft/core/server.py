"""What every role shares: Figure 2's state of one server, and the `Ready` being gathered.

Knows how to change term, log and commit index consistently; not when to.
"""

from __future__ import annotations

import random

from rafthttp.raft.core.durability import Durability
from rafthttp.raft.core.membership import Membership
from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    CoreConfig,
    InitialState,
    InstallSnapshotReply,
    Ready,
    RpcId,
    VoteReply,
)
from rafthttp.raft.core.termruns import SizeWindow, TermRuns
from rafthttp.raft.types import Configuration, Index, LogPosition, ServerID, State, Term


class Server:
    """State of one server.

    Invariants: `commit_index <= log.last_index`; `commit_index` and `term` never fall; entries up
    to `handed_index <= commit_index` were given out for application, each once.
    """

    __slots__ = (
        "commit_index",
        "config",
        "disk",
        "handed_index",
        "installing",
        "last_contact_ns",
        "leader",
        "local_id",
        "log",
        "members",
        "now_ns",
        "out",
        "outsider_term",
        "promised_to",
        "promised_until_ns",
        "rng",
        "sizes",
        "snapshot_index",
        "state",
        "term",
        "unanswered_timeout_nows",
        "voted_for",
        "votes_from",
    )

    def __init__(
        self, config: CoreConfig, initial: InitialState, rng: random.Random, now_ns: int
    ) -> None:
        self.config = config
        self.local_id = config.local_id
        self.rng = rng
        self.now_ns = now_ns
        self.term, self.voted_for = initial.hard_state
        base = initial.log_base or (initial.snapshot_index, initial.snapshot_term)
        assert base[0] <= initial.snapshot_index, "no gap behind the snapshot"
        self.log = TermRuns(*base)
        ends = [first - 1 for first, _ in initial.term_runs[1:]] + [initial.last_index]
        for (first, term), end in zip(initial.term_runs, ends, strict=False):
            assert first == self.log.last_index + 1, "the runs leave no gap"
            self.log.append(term, end - first + 1)
        assert self.log.last_index == initial.last_index, "the runs reach the last entry"
        assert self.log.last_term <= self.term, "the term is not behind the log"
        self.votes_from: LogPosition = initial.votes_from
        """What a log must have reached: its own, to campaign; else a candidate's, for a vote."""
        assert self.votes_from.term <= self.term, "the term is not behind it"
        self.sizes = SizeWindow(initial.last_index)
        self.disk = Durability(initial.last_index, self.term)
        self.snapshot_index = initial.snapshot_index
        self.installing: RpcId | None = None
        """The InstallSnapshot whose snapshot is being made durable now (`on_snapshot_arrived`)."""
        self.members = Membership(self.local_id, initial.configurations, initial.snapshot_index)
        self.state = State.FOLLOWER
        self.leader: ServerID | None = None
        self.commit_index = initial.snapshot_index
        self.handed_index = initial.snapshot_index
        self.last_contact_ns: int | None = None
        self.outsider_term: Term = 0
        """The highest term of a candidate that was refused as an outsider, unseen otherwise.

        A campaign goes above it: voters that cannot tell may have voted in it already.
        """
        self.out = Ready()
        self.unanswered_timeout_nows = 0
        """How many servers were told to campaign, and may yet do so: no lease meanwhile."""
        self.promised_to: ServerID | None = None
        """The leader last heard; until `promised_until_ns` nobody else gets a vote (leases)."""
        self.promised_until_ns = now_ns
        if config.lease_reads and self.term > 0 and self.members.voters != (self.local_id,):
            # Whom it promised what is forgotten, not the promise.
            self.promised_until_ns += config.heartbeat_timeout_ns

    # -- term, log, commit

    def enter_term(self, term: Term, vote: ServerID | None) -> None:
        """A newer term, and the vote in it, in one write (S2)."""
        assert term > self.term, "terms only rise"
        self.term = term
        self.voted_for = vote
        self.disk.hard_state_changed()

    def vote_for(self, candidate: ServerID) -> None:
        """The one vote of this term."""
        assert self.voted_for is None, "one vote a term"
        self.voted_for = candidate
        self.disk.hard_state_changed()

    def truncate_from(self, index: Index) -> None:
        """Drop `index` and all after it, with the configurations among them (S52)."""
        assert index > self.commit_index, "what is committed stays"
        self.log.truncate_from(index)
        self.sizes.truncate_from(index)
        self.disk.truncate_from(index)
        self.members.truncate_from(index)

    def commit(self, index: Index) -> None:
        """Everything up to `index` is committed."""
        assert self.commit_index <= index <= self.log.last_index, "commits rise along the log"
        self.commit_index = index
        self.members.commit(index)

    def reset(
        self, index: Index, term: Term, configuration: Configuration, configuration_index: Index
    ) -> None:
        """A snapshot replaces the whole log."""
        self.log = TermRuns(index, term)
        self.sizes.reset(index)
        self.disk.reset_to(index)
        self.members.reset(configuration_index, configuration)
        self.commit_index = self.handed_index = self.snapshot_index = index

    def is_up_to_date(self, last_index: Index, last_term: Term) -> bool:
        """Whether a log that ends so holds all that this one may have committed (Raft §5.4.1)."""
        log = self.log
        return (last_term, last_index) >= (log.last_term, log.last_index)

    def may_vote(self) -> bool:
        """Whether the log holds all that this server may have forgotten (ADR 9).

        One that lost its state was removed by an entry at or before `votes_from`, which the leader
        of that very term committed. A log that ends there or later, by term first, holds that entry
        (Raft §5.3, Figure 3); the tail of a deposed leader, however long, has a lower term.
        """
        log = self.log
        return LogPosition(log.last_term, log.last_index) >= self.votes_from

    def may_vote_for(self, last_index: Index, last_term: Term) -> bool:
        """Whether a candidate's log may be compared with this one: it holds the removal, or both.

        The own log need not: it votes as if it ended at `votes_from`. It would wait for ever where
        its vote is the one that a leader needs who could bring its log there.
        """
        return LogPosition(last_term, last_index) >= self.votes_from or self.may_vote()

    def disk_is_late(self) -> bool:
        """Whether the oldest write has been pending for too long (S74)."""
        oldest = self.disk.oldest_ns
        return oldest is not None and self.now_ns - oldest > self.config.disk_timeout_ns

    def promise(self, leader: ServerID) -> None:
        """A leader was heard: what its lease rests on (see `lease`)."""
        self.promised_to = leader
        self.promised_until_ns = self.now_ns + self.config.heartbeat_timeout_ns

    def is_promised_to_another(self, candidate: ServerID) -> bool:
        """Whether a vote for the candidate would break a promise; always False without leases."""
        return (
            self.config.lease_reads
            and self.now_ns < self.promised_until_ns
            and candidate != self.promised_to
        )

    def tell_to_campaign(self, target: ServerID) -> None:
        """Send TimeoutNow with this `Ready`; any lease ends with it, before it leaves."""
        self.out.timeout_now = target
        self.unanswered_timeout_nows += 1

    def random_timeout_ns(self, timeout_ns: int) -> int:
        """Once to twice the timeout."""
        return timeout_ns + int(self.rng.random() * timeout_ns)

    # -- replies: none shows a term, a vote or an entry before it is durable

    def reply_append(
        self, rpc: RpcId, *, success: bool, last_log: Index, upto: Index, no_backoff: bool = False
    ) -> None:
        """Answer an AppendEntries; `upto` is the last entry that a success vouches for."""
        after, term = self.disk.seq_of(upto), self.term
        if self.disk.failed:
            after, term = 0, self.disk.durable_term
        self.out.replies.append(AppendEntriesReply(rpc, after, term, success, last_log, no_backoff))

    def reply_vote(self, rpc: RpcId, *, granted: bool, term: Term | None = None) -> None:
        """Answer a vote request, showing the present term unless told otherwise."""
        after = self.disk.seq_of_hard_state()
        shown = self.term if term is None else term
        if self.disk.failed:
            after, shown = 0, self.disk.durable_term
        self.out.replies.append(VoteReply(rpc, after, shown, granted))

    def reply_snapshot(self, rpc: RpcId, *, success: bool, upto: Index) -> None:
        """Answer an InstallSnapshot; `upto` as for `reply_append`."""
        after, term = self.disk.seq_of(upto), self.term
        if self.disk.failed:
            after, term = 0, self.disk.durable_term
        self.out.replies.append(InstallSnapshotReply(rpc, after, term, success))
