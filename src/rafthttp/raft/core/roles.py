"""The three roles of one server and the ways between them; the end of a turn.

Knows when a server follows, campaigns and leads (Raft Figure 4); not where the inputs come from.
"""

from __future__ import annotations

import random

from rafthttp.raft.core.election import GRACE_NS, Campaign, EarlyCampaign, Phase, may_campaign
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.ready import CoreConfig, InitialState, Ready, SoftState
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import ServerID, State, Term

# What a no-op weighs when a frame is clipped; its record is about this long.
_NOOP_BYTES = 80


class Roles:
    """A server and its role.

    Invariants: `_leadership` is set exactly while the state is LEADER, `_campaign` at most while it
    is CANDIDATE; `deadline_ns` is valid after `ready()`.
    """

    __slots__ = (
        "_campaign",
        "_early",
        "_epoch",
        "_leadership",
        "_server",
        "_soft_state",
        "_timeout_ns",
        "_waits_since_ns",
        "deadline_ns",
    )

    def __init__(
        self, config: CoreConfig, state: InitialState, rng: random.Random, now_ns: int
    ) -> None:
        self._server = Server(config, state, rng, now_ns)
        self._leadership: Leadership | None = None
        self._campaign: Campaign | None = None
        self._early = EarlyCampaign()
        self._epoch = 0
        self._soft_state = SoftState(State.FOLLOWER, self._server.term, None)
        self._waits_since_ns = now_ns
        self._timeout_ns = self._server.random_timeout_ns(config.heartbeat_timeout_ns)
        if self._server.members.voters == (config.local_id,):
            # Nobody else can lead: campaign on the first tick (S26).
            self._timeout_ns = 0
        self.deadline_ns = self._waits_since_ns + self._timeout_ns

    def ready(self) -> Ready | None:
        """Everything to do since the last call, or None. Sets `deadline_ns`."""
        server = self._server
        out = server.out
        if self._leadership is not None:
            self._lead(self._leadership, out)
        out.persist = server.disk.take(
            server.term,
            server.voted_for,
            server.log.last_index,
            server.members.take_unsaved(),
            server.now_ns,
        )
        if server.commit_index > server.handed_index:
            out.apply = (server.handed_index + 1, server.commit_index)
            server.handed_index = server.commit_index
        if server.members.changed:
            server.members.changed = False
            out.configuration_changed = True
        soft_state = self._soft_state
        if (
            soft_state.state is not server.state
            or soft_state.term != server.term
            or soft_state.leader != server.leader
        ):
            self._soft_state = out.soft_state = SoftState(server.state, server.term, server.leader)
        self._set_deadline()
        if not _has_work(out):
            return None
        server.out = Ready()
        return out

    # -- transitions

    def _lead(self, leadership: Leadership, out: Ready) -> None:
        """The leader's part of a `Ready`."""
        server = self._server
        if leadership.first_index is None:
            out.noop = leadership.first_index = server.log.last_index + 1
            server.log.append(server.term, 1)
            server.sizes.extend((_NOOP_BYTES,))
            leadership.commit_due = True
        if leadership.commit_due:
            leadership.advance_commit()
            members = server.members
            if not members.is_voter and members.latest_index <= server.commit_index:
                self._leave(leadership)
                return
        leadership.fill(out)

    def _leave(self, leadership: Leadership) -> None:
        """The configuration without this leader is committed: its work is done (Raft §6).

        The voter that has most is told to campaign, for no other would for a whole timeout.
        """
        server = self._server
        successor = leadership.best_voter()
        if successor is not None:
            server.tell_to_campaign(successor)
        self._become_follower(server.term, None)

    def _become_follower(self, term: Term, leader: ServerID | None) -> None:
        """Step down, or stay down, in `term`; a fresh timeout begins, but for a mere newer term.

        A follower that only learns of a term goes on waiting (Raft §5.2): one that cannot win, but
        asks again and again, would put off for good the election of one that can.
        """
        server = self._server
        waits_on = server.state is State.FOLLOWER and term > server.term and leader is None
        leadership = self._leadership
        if leadership is not None:
            self._lose_leadership(leadership, left=term > server.term)
        if term > server.term:
            server.enter_term(term, None)
        server.state = State.FOLLOWER
        server.leader = leader
        self._campaign = None
        self._early.cancel()
        server.out.probe_leader = None
        server.out.votes.clear()
        if not waits_on:
            self._restart_timer(server.config.heartbeat_timeout_ns)

    def _lose_leadership(self, leadership: Leadership, *, left: bool) -> None:
        """Proposals behind the commit index are unknown now (S35), reads are refused (S71)."""
        server = self._server
        self._leadership = None
        self._epoch = leadership.next_epoch()
        server.out.aborted_from = server.commit_index + 1
        server.out.reads_aborted.extend(leadership.reads.abort())
        server.last_contact_ns = server.now_ns
        if leadership.transfer_target is not None:
            server.out.transfer_ended = left and leadership.timeout_now_sent

    def _is_rival(self, term: Term) -> bool:
        """Whether another server claims to lead the term this server leads: impossible, refused."""
        return self._leadership is not None and term == self._server.term

    def _hear_leader(self, leader: ServerID, term: Term) -> None:
        """A leader of the present or a newer term spoke; this counts as contact (S22)."""
        server = self._server
        if term > server.term or server.state is not State.FOLLOWER or server.leader != leader:
            self._become_follower(term, leader)
        self._early.cancel()
        self._early.retries = 0
        self._waits_since_ns = server.last_contact_ns = server.now_ns
        server.promise(leader)

    def _hear_answer(self, term: Term, asked: Term, now_ns: int) -> Leadership | None:
        """An answer's term: a higher one ends leadership; an answer to an older one is void."""
        server = self._server
        server.now_ns = now_ns
        if term > server.term:
            self._become_follower(term, None)
        return self._leadership if asked == server.term else None

    def _restart_timer(self, timeout_ns: int) -> None:
        server = self._server
        self._waits_since_ns = server.now_ns
        self._timeout_ns = server.random_timeout_ns(timeout_ns)

    def _retry_soon(self) -> None:
        """Refused in an early campaign: another try after a grace, a few times.

        Followers notice the dead leader within milliseconds of each other. One that still waits
        refuses a pre-vote, and two that ask at once split the votes; neither is a reason to wait
        for a whole timeout.
        """
        if self._timeout_ns > 2 * GRACE_NS and self._early.take_retry():
            self._restart_timer(GRACE_NS)

    def _time_out(self) -> None:
        """No leader for the whole timeout: forget it, and campaign if that is allowed."""
        server = self._server
        if may_campaign(server):
            self._campaign_now(Phase.PRE_VOTE if server.config.pre_vote else Phase.VOTE)
        else:
            self._become_follower(server.term, None)

    def _campaign_now(self, phase: Phase, *, transfer: bool = False) -> None:
        """Ask for pre-votes, or raise the term and ask for votes (Raft §5.2)."""
        server = self._server
        server.state = State.CANDIDATE
        server.leader = None
        self._early.cancel()
        server.out.votes.clear()
        self._restart_timer(server.config.election_timeout_ns)
        term = max(server.term, server.outsider_term) + 1
        if phase is Phase.VOTE:
            server.enter_term(term, server.local_id)
            self._campaign = Campaign(phase, term, server.disk.next_seq, transfer=transfer)
            return
        campaign = self._campaign = Campaign(phase, term, None, transfer=False)
        campaign.ask(server)
        campaign.record(server.local_id, granted=True)
        if campaign.is_won(server):
            self._win(campaign)

    def _win(self, campaign: Campaign) -> None:
        """A quorum granted: from pre-vote to vote, from vote to leadership."""
        server = self._server
        if campaign.phase is Phase.PRE_VOTE:
            self._campaign_now(Phase.VOTE)
            return
        server.state = State.LEADER
        server.leader = server.local_id
        self._campaign = None
        self._leadership = Leadership(server, self._epoch)

    def _set_deadline(self) -> None:
        if self._leadership is not None:
            self.deadline_ns = self._leadership.deadline_ns()
            return
        deadline = self._waits_since_ns + self._timeout_ns
        probe = self._early.probe_ns
        self.deadline_ns = deadline if probe is None or probe > deadline else probe


def _has_work(out: Ready) -> bool:
    return bool(
        out.persist is not None
        or out.sends
        or out.replies
        or out.apply is not None
        or out.heartbeats
        or out.reads
        or out.soft_state is not None
        or out.votes
        or out.noop is not None
        or out.configuration_changed
        or out.snapshots
        or out.timeout_now is not None
        or out.probe_leader is not None
        or out.aborted_from is not None
        or out.reads_aborted
        or out.transfer_ended is not None
    )
