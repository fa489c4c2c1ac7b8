"""The checkers are checked: each planted bug must be caught by the dialogue or the histories named.

A checker that lets its mutant live proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rafthttp.raft.core import following, leadership
from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.durability import Durability
from rafthttp.raft.core.election import Campaign
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.lease import ReadLease, ReadRounds
from rafthttp.raft.core.membership import Membership
from rafthttp.raft.core.ready import Heartbeat, Seq
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.dialogue import run_dialogue

TESTDATA = Path(__file__).parent / "testdata"
Mutation = Callable[[pytest.MonkeyPatch], None]


def unclamped_commit(patch: pytest.MonkeyPatch) -> None:
    """Decision 6: the leader shows its commit index whatever the frame carries."""

    def shown_commit(commit_index: Index, _last: Index) -> Index:
        return commit_index

    patch.setattr(leadership, "shown_commit", shown_commit)


def go_commit(patch: pytest.MonkeyPatch) -> None:
    """S30: the follower commits what it holds, not what the frame proves."""

    def follower_commit(commit_index: Index, shown: Index, _last_new: Index) -> Index:
        return max(commit_index, min(shown, 6))

    patch.setattr(following, "follower_commit", follower_commit)


def commit_by_counting(patch: pytest.MonkeyPatch) -> None:
    """S28: an entry of an older term is committed by counting."""

    def leader_commit(commit_index: Index, held: Index, _first_of_term: Index) -> Index:
        return max(commit_index, held)

    patch.setattr(leadership, "leader_commit", leader_commit)


def vote_before_write(patch: pytest.MonkeyPatch) -> None:
    """S1: a reply does not wait for term and vote."""

    def seq_of_hard_state(_self: Durability) -> Seq:
        return 0

    patch.setattr(Durability, "seq_of_hard_state", seq_of_hard_state)


def ack_before_write(patch: pytest.MonkeyPatch) -> None:
    """S4: a reply does not wait for the entries it vouches for."""

    def seq_of(self: Durability, _index: Index) -> Seq:
        return self.seq_of_hard_state()

    patch.setattr(Durability, "seq_of", seq_of)


def unclipped_writes(patch: pytest.MonkeyPatch) -> None:
    """Decision 5, S11: a truncation leaves the writes in flight as they are."""
    original = Durability.truncate_from

    def truncate_from(self: Durability, index: Index) -> None:
        writes = self._writes  # pyright: ignore[reportPrivateUsage] # a bug is planted inside
        lasts = [write.last for write in writes]
        original(self, index)
        for write, last in zip(writes, lasts, strict=True):
            write.last = last

    patch.setattr(Durability, "truncate_from", truncate_from)


def early_configuration(patch: pytest.MonkeyPatch) -> None:
    """S50: a configuration is changed before a commit of the own term."""

    def has_committed(_self: Leadership) -> bool:
        return True

    patch.setattr(Leadership, "has_committed", property(has_committed))


def no_rollback(patch: pytest.MonkeyPatch) -> None:
    """S52: a truncated configuration goes on counting."""

    def truncate_from(_self: Membership, _index: Index) -> None:
        pass

    patch.setattr(Membership, "truncate_from", truncate_from)


def stale_rounds(patch: pytest.MonkeyPatch) -> None:
    """S70: an answer to an older round confirms a read."""
    original = ReadRounds.answered

    def answered(self: ReadRounds, peer: ServerID, _round_number: int) -> None:
        original(self, peer, self.number)

    patch.setattr(ReadRounds, "answered", answered)


def minority(patch: pytest.MonkeyPatch) -> None:
    """S24: one voter less than a majority elects."""

    def is_won(self: Campaign, server: Server) -> bool:
        votes = sum(v in self.granted for v in server.members.voters)
        return votes >= server.members.quorum - 1

    patch.setattr(Campaign, "is_won", is_won)


def undurable_leader(patch: pytest.MonkeyPatch) -> None:
    """Thesis §10.2.1: the leader counts itself for what is not on its disk yet."""

    def advance_commit(self: Leadership) -> None:
        disk = self._server.disk  # pyright: ignore[reportPrivateUsage] # a bug is planted inside
        durable, disk.durable_index = disk.durable_index, disk.submitted_index
        original(self)
        disk.durable_index = durable

    original = Leadership.advance_commit
    patch.setattr(Leadership, "advance_commit", advance_commit)


def two_votes(patch: pytest.MonkeyPatch) -> None:
    """A vote is not remembered."""

    def vote_for(_self: Server, _candidate: ServerID) -> None:
        pass

    patch.setattr(Server, "vote_for", vote_for)


def short_logs_win(patch: pytest.MonkeyPatch) -> None:
    """Raft §5.4.1: votes are given whatever the candidate's log."""

    def is_up_to_date(_self: Server, _last_index: Index, _last_term: Term) -> bool:
        return True

    patch.setattr(Server, "is_up_to_date", is_up_to_date)


def lease_through_transfer(patch: pytest.MonkeyPatch) -> None:
    """Decision 7: the lease is not dropped before TimeoutNow leaves."""

    def tell_to_campaign(self: Server, target: ServerID) -> None:
        self.out.timeout_now = target

    patch.setattr(Server, "tell_to_campaign", tell_to_campaign)


def forgotten_promise(patch: pytest.MonkeyPatch) -> None:
    """A voter that knows of no leader votes, whatever a lease rests on."""

    def is_promised_to_another(_self: Server, _candidate: ServerID) -> bool:
        return False

    patch.setattr(Server, "is_promised_to_another", is_promised_to_another)


def lease_from_reception(patch: pytest.MonkeyPatch) -> None:
    """S70: a lease counts from when an answer came, not from when the heartbeat was sent."""
    original = Consensus.on_heartbeat_response

    def on_heartbeat_response(
        self: Consensus, heartbeat: Heartbeat, term: Term, success: bool, now_ns: int
    ) -> None:
        original(self, heartbeat._replace(at_ns=now_ns), term, success, now_ns)

    patch.setattr(Consensus, "on_heartbeat_response", on_heartbeat_response)


def endless_lease(patch: pytest.MonkeyPatch) -> None:
    """S73: a lease once taken does not end."""

    def holds(self: ReadLease, _now_ns: int, others: Sequence[ServerID], needed: int) -> bool:
        return original(self, 0, others, needed)

    original = ReadLease.holds
    patch.setattr(ReadLease, "holds", holds)


@pytest.mark.parametrize(
    ("mutation", "dialogue"),
    [
        (unclamped_commit, "go_follower"),
        (go_commit, "commit_rule"),
        (commit_by_counting, "figure8"),
        (vote_before_write, "vote_durability"),
        (ack_before_write, "truncation_race"),
        (unclipped_writes, "truncation_race"),
        (early_configuration, "concurrent_removals"),
        (no_rollback, "truncated_configuration"),
        (stale_rounds, "reads"),
        (lease_through_transfer, "lease_transfer"),
        (forgotten_promise, "lease_promise"),
        (forgotten_promise, "lease_glimpse"),
        (lease_from_reception, "leases"),
        (endless_lease, "leases"),
    ],
)
def test_dialogues_catch(
    mutation: Mutation, dialogue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (TESTDATA / f"{dialogue}.txt").read_text()
    assert run_dialogue(told) == told
    mutation(monkeypatch)
    try:
        answered = run_dialogue(told)
    except (AssertionError, IndexError):
        return
    assert answered != told


@pytest.mark.parametrize(
    "mutation",
    [
        ack_before_write,
        minority,
        no_rollback,
        short_logs_win,
        two_votes,
        unclipped_writes,
        undurable_leader,
    ],
)
def test_histories_catch(
    mutation: Mutation,
    monkeypatch: pytest.MonkeyPatch,
    history: Callable[[int], object],
) -> None:
    """Not all: S1, S28 and S70 survive hundreds of histories, which is why they are scripted."""
    mutation(monkeypatch)
    for seed in range(300):
        try:
            history(seed)
        except (AssertionError, IndexError):
            return
    raise AssertionError("300 histories did not notice")


def test_lease_histories_catch(
    monkeypatch: pytest.MonkeyPatch, lease_history: Callable[[int], object]
) -> None:
    """A lease that goes on for ever; the finer bugs need a script (`testdata/lease*.txt`)."""
    endless_lease(monkeypatch)
    for seed in range(300):
        try:
            lease_history(seed)
        except AssertionError:
            return
    raise AssertionError("300 histories did not notice")
