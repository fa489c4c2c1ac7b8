"""`Consensus`: one server's part in Raft, as a deterministic object.

Inputs go in through methods, each with the caller's monotonic time; one `Ready` a turn comes out.
No input does I/O, and nothing but inputs changes anything: equal inputs and an equal generator give
equal outputs.

The caller's duties, beside those in `Ready`:

- `now_ns` never goes back.
- After any inputs: `ready()`, carried out at once and without an await, again until it is None;
  then a call of `tick` is due at `deadline_ns`.
- After `propose` or `propose_configuration` the caller's cache holds the new entries before
  `ready()` is called; after `on_append_entries` it holds the frame's records from the returned
  index up, and none of those it held there before. For `Ready.noop` it makes the entry itself,
  before `persist`.
- Writes complete in the order of their `seq`; `on_persisted(seq)` stands for all up to `seq`. After
  `on_persist_failed` no further write counts.
- Each `Send` ends in exactly one of `on_append_entries_response` (with that very `Send`, in order)
  and `on_append_entries_failed` (for the stream, and so for all in flight on it). Each
  `SendSnapshot` ends in exactly one of `on_snapshot_sent` and `on_snapshot_send_failed`. Heartbeats
  and votes may go without an answer.
- Each inbound RPC gets one reply through `Ready.replies`, save where the input raised
  ProtocolError: then nothing has changed, and its stream is to be closed. After
  `on_install_snapshot` returned True comes `on_snapshot_arrived`, before the snapshot is made
  visible, then `on_snapshot_installed`; in place of either, `on_snapshot_failed`. The reply follows
  the last of them. One snapshot at a time may be between arrived and installed.
- When `disk_failed`, RPCs are best failed without asking here: a refusal looks like an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from rafthttp.raft.core import following
from rafthttp.raft.core.election import (
    Phase,
    grants_pre_vote,
    is_outsider,
    may_campaign,
    sticks_to_leader,
)
from rafthttp.raft.core.ready import (
    Heartbeat,
    ProgressState,
    RpcId,
    Send,
    Seq,
    TimeoutNowReply,
    VoteRequest,
)
from rafthttp.raft.core.snapshots import Snapshots
from rafthttp.raft.types import Configuration, Index, LogPosition, ServerID, State, Term


class Consensus(Snapshots):
    """One server's consensus (see the module's docstring for the caller's duties)."""

    __slots__ = ()

    # -- a server that lost its state

    def take_part(self, votes_from: LogPosition, now_ns: int) -> None:
        """The cluster counts on nothing this server may have forgotten (ADR 9).

        `votes_from` is the end of what the leader that said so had committed in its term; the
        caller has it durable, for `InitialState`. Nobody gets a vote whose log ends before it;
        there is no campaign until this log reaches it; and no leader of an older term is heard: one
        may be left that still counts this server by an old configuration.
        """
        server = self._server
        server.now_ns = now_ns
        assert server.state is State.FOLLOWER, "it has taken no part"
        server.votes_from = votes_from
        if votes_from.term > server.term:
            self._become_follower(votes_from.term, None)

    # -- inbound RPCs

    def on_append_entries(
        self,
        rpc: RpcId,
        leader: ServerID,
        term: Term,
        prev_index: Index,
        prev_term: Term,
        terms: Sequence[Term],
        sizes: Sequence[int],
        leader_commit: Index,
        configurations: Sequence[tuple[Index, Configuration]],
        now_ns: int,
    ) -> Index | None:
        """An AppendEntries, a heartbeat included. Returns the first index that is new, or None.

        Raises:
            ProtocolError: no correct leader of this cluster sends this; nothing changed.
        """
        server = self._server
        server.now_ns = now_ns
        last_log = server.log.last_index
        if server.disk.failed or term < server.term or self._is_rival(term):
            server.reply_append(rpc, success=False, last_log=last_log, upto=0)
            return None
        following.check_frame(server, term, prev_index, prev_term, terms)
        self._hear_leader(leader, term)
        if server.installing is not None and (terms or prev_index):
            # What it acknowledged now, the snapshot about to count might not hold.
            server.reply_append(rpc, success=False, last_log=last_log, upto=0)
            return None
        if not following.matches(server, prev_index, prev_term):
            hint = following.conflict_hint(server.log, prev_index, prev_term, server.commit_index)
            server.reply_append(rpc, success=False, last_log=hint, upto=0, no_backoff=True)
            return None
        first = following.append(server, prev_index, terms, sizes, leader_commit, configurations)
        server.reply_append(rpc, success=True, last_log=last_log, upto=prev_index + len(terms))
        return first

    def on_request_vote(
        self,
        rpc: RpcId,
        candidate: ServerID,
        term: Term,
        last_index: Index,
        last_term: Term,
        leadership_transfer: bool,
        now_ns: int,
    ) -> None:
        """A RequestVote (Raft §5.2, §5.4.1)."""
        server = self._server
        server.now_ns = now_ns
        outsider = is_outsider(server, candidate, last_index, last_term)
        if outsider and term > server.outsider_term:
            server.outsider_term = term
        # A transfer goes to a voter: whoever else says so does not unseat a live leader.
        transfer = leadership_transfer and server.members.latest.has_vote(candidate)
        if (
            server.disk.failed
            or not server.may_vote_for(last_index, last_term)
            or term < server.term
            or (outsider and server.members.latest.get(candidate) is None)
            or (sticks_to_leader(server, candidate) and not transfer)
        ):
            server.reply_vote(rpc, granted=False)
            return
        if term > server.term:
            self._become_follower(term, None)
        granted = (
            not outsider
            and server.voted_for in (None, candidate)
            and server.is_up_to_date(last_index, last_term)
        )
        if granted:
            if server.voted_for is None:
                server.vote_for(candidate)
            self._waits_since_ns = now_ns
        server.reply_vote(rpc, granted=granted)

    def on_request_pre_vote(
        self,
        rpc: RpcId,
        candidate: ServerID,
        term: Term,
        last_index: Index,
        last_term: Term,
        now_ns: int,
    ) -> None:
        """A RequestPreVote (Raft thesis §9.6): changes nothing; a grant shows the proposed term."""
        server = self._server
        server.now_ns = now_ns
        granted = grants_pre_vote(server, candidate, term, last_index, last_term)
        server.reply_vote(rpc, granted=granted, term=term if granted else None)

    def on_timeout_now(self, rpc: RpcId, leader: ServerID, now_ns: int) -> None:
        """A TimeoutNow. It has no term: only the present leader's word counts, to a voter."""
        server = self._server
        server.now_ns = now_ns
        accepted = (
            server.state is State.FOLLOWER
            and server.leader == leader
            and server.members.is_voter
            and may_campaign(server)
        )
        server.out.replies.append(TimeoutNowReply(rpc, 0, accepted))
        if accepted:
            self._campaign_now(Phase.VOTE, transfer=True)

    # -- answers

    def on_append_entries_response(
        self,
        send: Send,
        term: Term,
        success: bool,
        last_log: Index,
        no_retry_backoff: bool,
        now_ns: int,
    ) -> None:
        """The answer to a `Send`, handed back with it."""
        leadership = self._hear_answer(term, send.term, now_ns)
        if leadership is None:
            return
        progress = leadership.peers.get(send.peer)
        if progress is None:
            return
        if term == self._server.term:
            progress.contact_ns = now_ns
        if progress.epoch != send.epoch:
            return
        if success:
            progress.accepted(send.last)
            leadership.commit_due = True
            return
        epoch = leadership.next_epoch()
        if not no_retry_backoff and progress.unwilling(epoch, now_ns):
            return
        progress.refused(send.prev_index, last_log, self._server.log.base_index, epoch)
        if no_retry_backoff:
            progress.failures = 0
        else:
            progress.back_off(now_ns, at_once=False)

    def on_append_entries_failed(self, peer: ServerID, epoch: int, now_ns: int) -> None:
        """A replication stream closed; `epoch` is that of the last `Send` on it."""
        self._server.now_ns = now_ns
        leadership = self._leadership
        progress = None if leadership is None else leadership.peers.get(peer)
        if progress is None or leadership is None or progress.epoch != epoch:
            return
        if progress.state is not ProgressState.SNAPSHOT:
            progress.failed(leadership.next_epoch(), now_ns)

    def on_heartbeat_response(
        self, heartbeat: Heartbeat, term: Term, success: bool, now_ns: int
    ) -> None:
        """The answer to a `Heartbeat`."""
        leadership = self._hear_answer(term, heartbeat.term, now_ns)
        if leadership is None:
            return
        progress = leadership.peers.get(heartbeat.peer)
        if progress is None or term != self._server.term:
            # An answer of an older term comes from a server whose disk failed: it does not count.
            return
        progress.contact_ns = now_ns
        if progress.unreachable and progress.retry_ns > now_ns:
            # It is there again: no reason to wait on (S31). At most one try a heartbeat.
            progress.retry_ns = now_ns
        if success:
            leadership.reads.answered(heartbeat.peer, heartbeat.round)
            leadership.read_lease.answered(heartbeat.peer, heartbeat.at_ns)

    def on_vote_response(
        self, request: VoteRequest, term: Term, granted: bool, now_ns: int
    ) -> None:
        """The answer to a `VoteRequest`. A granted pre-vote shows the proposed term."""
        server = self._server
        server.now_ns = now_ns
        if term > server.term and not (request.pre_vote and granted):
            self._become_follower(term, None)
            return
        campaign = self._campaign
        if (
            campaign is None
            or campaign.term != request.term
            or (campaign.phase is Phase.PRE_VOTE) != request.pre_vote
        ):
            return
        campaign.record(request.peer, granted=granted)
        if campaign.is_won(server):
            self._win(campaign)
            return
        if campaign.phase is Phase.PRE_VOTE and campaign.is_lost(server):
            # Somebody leads, or knows more: the normal timeout, as after silence.
            self._become_follower(server.term, None)
        if not granted:
            self._retry_soon()

    def on_timeout_now_answered(self, peer: ServerID, *, accepted: bool, now_ns: int) -> None:
        """The fate of a `Ready.timeout_now` is known: answered, or never sent (then refused).

        Not called where it is unknown: it may yet arrive.
        """
        server, leadership = self._server, self._leadership
        server.now_ns = now_ns
        server.unanswered_timeout_nows = max(server.unanswered_timeout_nows - 1, 0)
        if leadership is None:
            return
        if accepted:
            leadership.read_lease.dropped = True
        elif leadership.transfer_target == peer:
            # It will not campaign: no reason to refuse proposals any longer.
            leadership.end_transfer()

    # -- disk

    def on_persisted(self, seq: Seq, now_ns: int) -> bool:
        """All writes up to `seq` are durable. False: there is nothing new to do for it.

        What waited for the write to be shown (`Ready.replies`) is the caller's to send, always.
        """
        server = self._server
        server.now_ns = now_ns
        if server.disk.failed:
            return False
        server.disk.completed(seq, now_ns)
        campaign = self._campaign
        if self._leadership is not None:
            return self._leadership.on_own_copy()
        if campaign is None or campaign.after is None or campaign.after > seq:
            return False
        campaign.ask(server)
        campaign.record(server.local_id, granted=True)
        if campaign.is_won(server):
            self._win(campaign)
        return True

    def on_persist_failed(self, seq: Seq, now_ns: int) -> None:
        """A write failed: nothing is known of the disk; this server takes no part any more (S6)."""
        del seq
        server = self._server
        server.now_ns = now_ns
        server.disk.failed = True
        self._become_follower(server.term, None)

    # -- streams and time

    def on_stream_closed(self, peer: ServerID, now_ns: int) -> None:
        """The last inbound stream that named `peer` closed (decision 7)."""
        server = self._server
        server.now_ns = now_ns
        if (
            server.config.early_campaign
            and server.state is State.FOLLOWER
            and server.leader == peer
        ):
            self._early.begin(server)

    def on_leader_probed(self, peer: ServerID, alive: bool, now_ns: int) -> None:
        """The outcome of `Ready.probe_leader`."""
        server = self._server
        server.now_ns = now_ns
        if self._early.answered(peer, alive=alive):
            self._time_out()

    def tick(self, now_ns: int) -> None:
        """Do what time made due."""
        server = self._server
        server.now_ns = now_ns
        if self._leadership is not None:
            if not self._leadership.tick():
                self._become_follower(server.term, None)
            return
        self._early.tick(server)
        if now_ns >= self._waits_since_ns + self._timeout_ns:
            self._time_out()
