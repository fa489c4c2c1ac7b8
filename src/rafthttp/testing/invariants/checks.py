"""All invariants of one history, called where they look.

Knows which event concerns which property; not what any of them means.
"""

from __future__ import annotations

from collections.abc import Mapping

from rafthttp.raft.core.ready import HardState, Reply, VoteReply, VoteRequest
from rafthttp.raft.types import Configuration, Index, ServerID, State, Term
from rafthttp.testing.coremember import Entry, Request
from rafthttp.testing.invariants import configurations
from rafthttp.testing.invariants.acknowledged import check_reply, check_request, check_vote
from rafthttp.testing.invariants.bounded import Bounded
from rafthttp.testing.invariants.durable_commit import DurableCommit
from rafthttp.testing.invariants.election_safety import ElectionSafety
from rafthttp.testing.invariants.fresh_reads import FreshReads
from rafthttp.testing.invariants.leader_append_only import LeaderAppendOnly
from rafthttp.testing.invariants.leader_completeness import check_leader_completeness
from rafthttp.testing.invariants.log_matching import LogMatching
from rafthttp.testing.invariants.monotonic import Monotonic
from rafthttp.testing.invariants.order import check_order
from rafthttp.testing.invariants.state_machine_safety import StateMachineSafety
from rafthttp.testing.invariants.view import View, Voter


class Checks:
    """What has been seen of a history."""

    def __init__(self) -> None:
        self.states = StateMachineSafety()
        self.bounded = Bounded()
        self.reads = FreshReads()
        self.durable = DurableCommit()
        self._elections = ElectionSafety()
        self._append_only = LeaderAppendOnly()
        self._matching = LogMatching()
        self._monotonic = Monotonic()
        self._committed_in: dict[Term, Index] = {}
        self.commit_index: Index = 0

    def on_step(self, view: View) -> None:
        """Something happened to a server, and all it had to do is done."""
        core, server, applied = view.live, view.id, view.applied
        term, commit, last = core.term, core.commit_index, core.last_index
        self._monotonic.on_step(server, view.life, term, commit, applied)
        check_order(server, core.first_index - 1, core.snapshot_index, applied, commit, last)
        if core.state is State.LEADER:
            self._append_only.on_step(view, term, last)
        self.bounded.on_term(term)
        if commit > self.commit_index:
            self.commit_index = commit

    def on_append(self, view: View, index: Index, entry: Entry, prev_term: Term | None) -> None:
        """A server put an entry at the end of its log."""
        self._matching.on_append(view.id, index, entry, prev_term)
        if isinstance(entry.payload, Configuration):
            configurations.check_pending(view.id, view.base, view.log, self.commit_index)

    def on_configuration(self, view: View) -> None:
        """A leader is about to append a configuration."""
        configurations.check_proposed(view.id, view.live)

    def on_leader(self, view: View) -> None:
        """A server says that it leads."""
        core = view.live
        assert core.state is State.LEADER
        self._elections.on_leader(view.id, core.term)
        check_request(view.id, view.disk, core.term)
        # A late majority may elect it when newer terms have committed already: what counts is what
        # older terms did.
        needed = max((i for term, i in self._committed_in.items() if term < core.term), default=0)
        check_leader_completeness(view.id, view.base, view.log, self.states.committed, needed)

    def on_go_leader(self, server: ServerID, term: Term, base: Index, log: list[Entry]) -> None:
        """A model of a server in Go has won an election."""
        self._elections.on_leader(server, term)
        needed = max((i for at, i in self._committed_in.items() if at < term), default=0)
        check_leader_completeness(server, base, log, self.states.committed, needed)

    def on_apply(self, server: ServerID, index: Index, entry: Entry) -> None:
        """A server applies an entry."""
        self.states.on_commit(server, index, entry)

    def on_leader_commit(
        self,
        term: Term,
        index: Index,
        entry: Entry,
        configuration: Configuration,
        servers: Mapping[ServerID, Voter],
    ) -> None:
        """The leader of `term`, of that configuration, holds an entry for committed."""
        self._committed_in[term] = index
        self.durable.on_commit(index, entry, configuration, servers)

    def on_hard_state(self, server: ServerID, before: HardState, now: HardState) -> None:
        """Term and vote were written."""
        self._monotonic.on_hard_state(server, before, now)

    def on_request(self, view: View, request: Request) -> None:
        """A server asks another."""
        if isinstance(request, VoteRequest) and not request.pre_vote:
            check_request(view.id, view.disk, request.term)

    def on_reply(self, view: View, asker: ServerID, request: Request, reply: Reply) -> None:
        """A server answers another."""
        check_reply(view.id, view.disk, request, reply)
        if (
            isinstance(reply, VoteReply)
            and isinstance(request, VoteRequest)
            and not request.pre_vote
        ):
            check_vote(view.id, view.disk, asker, reply)
