"""Bugs of elections and reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from rafthttp.raft.core import consensus, election, leadership
from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.election import Campaign, Phase
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.lease import ReadRounds
from rafthttp.raft.core.roles import Roles
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Configuration, Index, ServerID, Term
from rafthttp.testing.mutants.plant import Patch

# pyright: reportPrivateUsage=false
# A bug is planted inside.


def minority(patch: Patch) -> None:
    """Raft §5.2: one voter less than a majority elects."""

    def is_won(self: Campaign, server: Server) -> bool:
        votes = sum(v in self.granted for v in server.members.voters)
        return votes >= server.members.quorum - 1

    patch.set(Campaign, "is_won", is_won)


def half_is_a_quorum(patch: Patch) -> None:
    """S24: half of an even number of voters elects and commits."""

    def quorum_size(self: Configuration) -> int:
        return (len(self.voters) + 1) // 2

    patch.set(Configuration, "quorum_size", property(quorum_size))


def two_votes(patch: Patch) -> None:
    """Raft §5.2: a vote is not remembered."""

    def vote_for(_self: Server, _candidate: ServerID) -> None:
        pass

    patch.set(Server, "vote_for", vote_for)


def short_logs_win(patch: Patch) -> None:
    """Raft §5.4.1: votes are given whatever the candidate's log."""

    def is_up_to_date(_self: Server, _last_index: Index, _last_term: Term) -> bool:
        return True

    patch.set(Server, "is_up_to_date", is_up_to_date)


def longer_logs_win(patch: Patch) -> None:
    """Raft §5.4.1: only the length of the logs is compared, not their last terms."""

    def is_up_to_date(self: Server, last_index: Index, _last_term: Term) -> bool:
        return last_index >= self.log.last_index

    patch.set(Server, "is_up_to_date", is_up_to_date)


def vote_kept_into_the_next_term(patch: Patch) -> None:
    """Raft §5.2: a new term does not free the vote."""
    original = Server.enter_term

    def enter_term(self: Server, term: Term, vote: ServerID | None) -> None:
        original(self, term, self.voted_for if vote is None else vote)

    patch.set(Server, "enter_term", enter_term)


def own_vote_at_once(patch: Patch) -> None:
    """Thesis §10.2.1: a candidate asks for votes before its own is durable."""
    original = Roles._campaign_now

    def campaign_now(self: Roles, phase: Phase, *, transfer: bool = False) -> None:
        original(self, phase, transfer=transfer)
        campaign = self._campaign
        if campaign is not None and campaign.after is not None:
            campaign.ask(self._server)
            campaign.record(self._server.local_id, granted=True)

    patch.set(Roles, "_campaign_now", campaign_now)


def pre_vote_refreshes_contact(patch: Patch) -> None:
    """S21: a granted pre-vote counts as a sign of life of the leader."""
    original = election.grants_pre_vote

    def grants_pre_vote(server: Server, *args: Any) -> bool:
        granted = original(server, *args)
        if granted:
            # What refreshes the timer for a real vote.
            roles = waiting[server]
            roles._waits_since_ns = server.now_ns
        return granted

    waiting: dict[Server, Roles] = {}
    made = Roles.__init__

    def init(self: Roles, *args: Any) -> None:
        made(self, *args)
        waiting[self._server] = self

    patch.set(Roles, "__init__", init)
    patch.set(consensus, "grants_pre_vote", grants_pre_vote)


def disturbed_by_anybody(patch: Patch) -> None:
    """S16, S53: a live leader does not protect from votes."""

    def sticks_to_leader(_server: Server, _candidate: ServerID) -> bool:
        return False

    patch.set(consensus, "sticks_to_leader", sticks_to_leader)


def no_check_quorum(patch: Patch) -> None:
    """S15: a leader that hears nobody goes on leading."""

    def has_lost_quorum(self: Leadership) -> bool:
        self.lease_ns = None
        return False

    patch.set(Leadership, "has_lost_quorum", has_lost_quorum)


def old_leaders_are_heard(patch: Patch) -> None:
    """Raft §5.1: an AppendEntries of an old term is taken in."""
    original = Consensus.on_append_entries

    def on_append_entries(
        self: Consensus, rpc: int, leader: ServerID, term: Term, *args: Any
    ) -> Index | None:
        return original(self, rpc, leader, max(term, self.term), *args)

    patch.set(Consensus, "on_append_entries", on_append_entries)


def higher_terms_are_ignored(patch: Patch) -> None:
    """Raft §5.1: an answer of a higher term does not end leadership."""
    original = Roles._hear_answer

    def hear_answer(self: Roles, term: Term, asked: Term, now_ns: int) -> Leadership | None:
        return original(self, min(term, self._server.term), asked, now_ns)

    patch.set(Roles, "_hear_answer", hear_answer)


def no_noop(patch: Patch) -> None:
    """Raft §8: a new leader appends nothing of its own term."""
    original = Roles._lead

    def lead(self: Roles, leadership: Leadership, out: Any) -> None:
        if leadership.first_index is None:
            leadership.first_index = self._server.log.last_index + 1
        original(self, leadership, out)

    patch.set(Roles, "_lead", lead)


def stale_rounds(patch: Patch) -> None:
    """S70: an answer to an older round confirms a read."""
    original = ReadRounds.answered

    def answered(self: ReadRounds, peer: ServerID, _round_number: int) -> None:
        original(self, peer, self.number)

    patch.set(ReadRounds, "answered", answered)


def reads_without_a_round(patch: Patch) -> None:
    """Thesis §6.4: a leader confirms reads without asking anybody."""
    original = ReadRounds.confirmed

    def confirmed(self: ReadRounds, voters: Any, local_id: ServerID, _quorum: int) -> Any:
        return original(self, voters, local_id, 0)

    patch.set(ReadRounds, "confirmed", confirmed)


def lease_outlives_the_promise(patch: Patch) -> None:
    """Thesis §6.4.1: a lease lasts longer than the voters' promise."""

    def lease_length_ns(heartbeat_timeout_ns: int, _election_timeout_ns: int) -> int:
        return 3 * heartbeat_timeout_ns

    patch.set(leadership, "lease_length_ns", lease_length_ns)


def no_promise(patch: Patch) -> None:
    """Thesis §6.4.1: leases are taken, and voters promise nothing."""

    def is_promised_to_another(_self: Server, _candidate: ServerID) -> bool:
        return False

    patch.set(Server, "is_promised_to_another", is_promised_to_another)


def lease_beside_early_campaign(patch: Patch) -> None:
    """Thesis §6.4.1: a voter whose leader's streams close campaigns though a lease rests on it."""
    original = Consensus.on_stream_closed

    def on_stream_closed(self: Consensus, peer: ServerID, now_ns: int) -> None:
        server = self._server
        config, server.config = server.config, replace(server.config, early_campaign=True)
        original(self, peer, now_ns)
        server.config = config

    patch.set(Consensus, "on_stream_closed", on_stream_closed)


def outsiders_terms_are_forgotten(patch: Patch) -> None:
    """Raft §6: a campaign's term is the next one, though an outsider was refused in that one."""
    original = Consensus.on_request_vote

    def on_request_vote(self: Consensus, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._server.outsider_term = 0

    patch.set(Consensus, "on_request_vote", on_request_vote)


PLANTS: Final = (
    (minority, "election", True),
    (half_is_a_quorum, "configuration_change", True),
    (two_votes, "election", True),
    (short_logs_win, "up_to_date", True),
    (longer_logs_win, "up_to_date", False),
    (vote_kept_into_the_next_term, None, True),
    (own_vote_at_once, "election", True),
    (pre_vote_refreshes_contact, "pre_vote_contact", False),
    (disturbed_by_anybody, "pre_vote", False),
    (no_check_quorum, "demoted_leader", False),
    (old_leaders_are_heard, "transfer", False),
    (higher_terms_are_ignored, None, True),
    (outsiders_terms_are_forgotten, "removed_rival", False),
    (no_noop, "election", False),
    (stale_rounds, "reads", False),
    (reads_without_a_round, "reads", False),
    (lease_outlives_the_promise, "leases", False),
    (no_promise, "lease_promise", False),
    (lease_beside_early_campaign, "lease_early", False),
)
