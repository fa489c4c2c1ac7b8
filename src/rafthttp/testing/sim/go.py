"""A model of a server in Go, as a member of a simulated cluster: it follows, dies, campaigns.

Knows hashicorp/raft's pre-vote and campaign; not how it leads: one that wins an election dies
before its first frame, which every leader may. What it holds is durable as soon as it answers, as
hashicorp/raft's stores are; its commit index and its leader are forgotten with the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rafthttp.raft.core.ready import Reply, VoteReply, VoteRequest
from rafthttp.raft.types import Configuration, Index, ServerID, Suffrage, Term
from rafthttp.testing.coreanswers import answer_as_go
from rafthttp.testing.coremember import Answer, Entry, Message, Request, SnapshotFrame
from rafthttp.testing.gofollower import GoFollower
from rafthttp.testing.sim.faults import MS

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster


class GoVoter:
    """A server in Go.

    Attributes:
        up: whether it runs.
        life: counts its starts; answers to an earlier life are not heard.
    """

    def __init__(self, cluster: Cluster, server_id: ServerID) -> None:
        self.id = server_id
        self.model = GoFollower()
        self.up = True
        self.life = 1
        self._cluster = cluster
        self._world = cluster.world
        self._chance = cluster.chance(f"go {server_id}")
        self._seen: Index = 0
        self._heard_ns = 0
        self._of_snapshot = Configuration()
        self._granted: set[ServerID] = set()
        self._asked: VoteRequest | None = None
        if cluster.faults.go_campaigns:
            self._set_timer()

    # -- following

    def hear(self, message: Message, body: Request) -> Reply | None:
        """Answer a request."""
        now = self._world.now_ns
        if isinstance(body, VoteRequest):
            if now - self._heard_ns > self._cluster.election_timeout_ns:
                self.model.leader = None
        else:
            self._heard_ns = now
        if isinstance(body, SnapshotFrame):
            self._of_snapshot = body.snapshot.configuration
        reply = answer_as_go(self.model, message, body)
        self._check_commit()
        return reply

    def _check_commit(self) -> None:
        """What it now holds for committed must be so."""
        model = self.model
        for index in range(self._seen + 1, model.commit_index + 1):
            held = model.get(index)
            if held is not None:
                assert isinstance(held, Entry)
                self._cluster.checks.on_apply(self.id, index, held)
        self._seen = max(self._seen, model.commit_index)

    def holds(self, index: Index, entry: Entry) -> bool:
        """Whether it has that entry, or a snapshot that covers it."""
        held = self.model.get(index)
        return self.model.snapshot_index >= index if held is None else held[0] == entry.term

    @property
    def configuration(self) -> Configuration:
        """The latest one it holds, committed or not."""
        for _, payload in reversed(self.model.entries):
            if isinstance(payload, Configuration):
                return payload
        return self._of_snapshot

    # -- life

    def crash(self, back_ns: int) -> None:
        """Die, and start again after so long."""
        self.up = False
        self.life += 1
        self._asked = None
        self.model.leader = None
        self.model.commit_index = self.model.snapshot_index
        self._cluster.network.on_crash(self.id)
        self._world.after(back_ns, self.start, self.life)

    def start(self, life: int) -> None:
        """Run again, on what is durable."""
        if life == self.life:
            self.up = True

    # -- campaigning

    def _set_timer(self) -> None:
        timeout = self._cluster.election_timeout_ns
        wait = int(timeout * (1 + self._chance.random()))
        self._world.after(wait, self._on_timer)

    def _on_timer(self) -> None:
        cluster = self._cluster
        if not cluster.active_faults.go_campaigns:
            return
        self._set_timer()
        silent = self._world.now_ns - self._heard_ns > cluster.election_timeout_ns
        member = self.configuration.get(self.id)
        if self.up and silent and member is not None and member.suffrage is Suffrage.VOTER:
            self.model.leader = None
            self._campaign(self.model.term + 1, pre_vote=True)

    def _campaign(self, term: Term, *, pre_vote: bool) -> None:
        self._world.seen["go_pre_vote" if pre_vote else "go_campaign"] += 1
        model = self.model
        if not pre_vote:
            model.term, model.voted_for = term, self.id
        self._granted = {self.id}
        for server in self.configuration.voters:
            if server.id != self.id:
                ask = VoteRequest(
                    server.id, pre_vote, term, model.last_index, model.last_term, False
                )
                self._asked = ask
                self._cluster.network.ask_from_go(self, ask)

    def on_answer(self, message: Message, answer: Answer) -> None:
        """A vote was given or refused."""
        asked, request, reply = self._asked, answer.request, answer.reply
        if message.life != self.life or asked is None:
            return
        assert isinstance(request, VoteRequest)
        assert isinstance(reply, VoteReply)
        if reply.term > self.model.term and not (request.pre_vote and reply.granted):
            self.model.term, self.model.voted_for, self._asked = reply.term, None, None
            return
        if (request.term, request.pre_vote) != (asked.term, asked.pre_vote) or not reply.granted:
            return
        self._granted.add(message.source)
        configuration = self.configuration
        votes = sum(voter.id in self._granted for voter in configuration.voters)
        if votes < configuration.quorum_size:
            return
        self._asked = None
        if request.pre_vote:
            if request.term == self.model.term + 1:
                self._campaign(request.term, pre_vote=False)
        elif request.term == self.model.term:
            self._win(request.term)

    def _win(self, term: Term) -> None:
        """It leads, which must be safe; and dies."""
        self._world.seen["go_won"] += 1
        model = self.model
        log = [Entry(*entry) for entry in model.entries]
        base = model.first - 1 if log else model.snapshot_index
        self._cluster.checks.on_go_leader(self.id, term, base, log)
        self.crash((1 + self._chance.below(300)) * MS)
