"""Pending proposals: bounds, order, and who is told what."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.raft.errors import (
    EntryTooLargeError,
    LeadershipLostError,
    NotLeaderError,
    Outcome,
    OverloadedError,
)
from rafthttp.raft.runtime.proposals import Pending, Proposal
from rafthttp.raft.types import LogType
from rafthttp.testing.cluster import in_loop


def proposal(data: bytes = b"x") -> Proposal:
    return Proposal(LogType.COMMAND, data, b"", asyncio.get_running_loop().create_future())


def make(count: int = 10, size: int = 1000, entry: int = 100) -> Pending:
    return Pending(count, size, entry)


@in_loop
async def test_too_large_is_refused_and_nothing_is_kept() -> None:
    pending = make(entry=3)
    with pytest.raises(EntryTooLargeError) as caught:
        pending.add(proposal(b"four"))
    assert caught.value.outcome is Outcome.DEFINITE
    assert len(pending) == 0


@in_loop
async def test_count_bound() -> None:
    pending = make(count=2)
    pending.add(proposal())
    pending.proposed(1, pending.take(1 << 20))
    pending.add(proposal())
    with pytest.raises(OverloadedError):
        pending.add(proposal())
    pending.applied(1)
    pending.add(proposal())


@in_loop
async def test_byte_bound_counts_down_on_every_way_out() -> None:
    pending = make(count=1000, size=10)
    for _ in range(20):
        pending.add(proposal(b"12345"))
        pending.add(proposal(b"12345"))
        with pytest.raises(OverloadedError):
            pending.add(proposal(b"1"))
        # one is cancelled before it is proposed, one is applied
        cancelled, applied = pending.queued
        cancelled.future.cancel()
        taken = pending.take(1 << 20)
        assert taken == [applied]
        pending.proposed(1, taken)
        assert pending.applied(1) == [applied]
        # one is aborted, one refused
        pending.add(proposal(b"12345"))
        pending.proposed(2, pending.take(1 << 20))
        pending.abort(2, LeadershipLostError("lost"))
        pending.add(proposal(b"12345"))
        pending.refuse_queued(NotLeaderError("not leader"))
    assert len(pending) == 0


@in_loop
async def test_abort_fails_only_the_tail_as_unknown() -> None:
    """Leadership lost: what is above the commit index may yet be committed (S35)."""
    pending = make()
    proposals = [proposal() for _ in range(3)]
    for one in proposals:
        pending.add(one)
    pending.proposed(7, pending.take(1 << 20))
    pending.abort(8, LeadershipLostError("lost"))
    assert not proposals[0].future.done()
    for one in proposals[1:]:
        error = one.future.exception()
        assert isinstance(error, LeadershipLostError)
        assert error.outcome is Outcome.UNKNOWN
    assert pending.applied(9) == [proposals[0]]


@in_loop
async def test_applied_skips_entries_without_a_client() -> None:
    pending = make()
    pending.proposed(5, [None])
    one = proposal()
    pending.add(one)
    pending.proposed(6, pending.take(1 << 20))
    assert pending.applied(6) == [None, one]


@in_loop
async def test_a_cancelled_command_that_was_not_proposed_is_dropped() -> None:
    pending = make()
    one, two = proposal(), proposal()
    pending.add(one)
    pending.add(two)
    one.future.cancel()
    assert pending.is_queued(one.future)
    assert pending.take(1 << 20) == [two]
    assert not pending.is_queued(one.future)


@in_loop
async def test_a_turn_takes_a_bounded_number_of_bytes_and_at_least_one() -> None:
    pending = make(entry=100)
    proposals = [proposal(b"x" * size) for size in (60, 60, 60, 100)]
    for one in proposals:
        pending.add(one)
    assert pending.take(100) == proposals[:2]
    assert pending.take(1) == proposals[2:3]
    assert pending.take(100) == proposals[3:]
    assert pending.take(100) == []


@in_loop
async def test_a_second_leadership_begins_behind_another_leaders_entries() -> None:
    """The first one's are committed and still being applied when the second begins."""
    pending = make()
    one, two = proposal(), proposal()
    pending.add(one)
    pending.proposed(3, pending.take(1 << 20))
    pending.abort(4, LeadershipLostError("lost"))
    pending.proposed(6, [None])
    pending.add(two)
    pending.proposed(7, pending.take(1 << 20))
    assert pending.applied(5) == [one, None, None]
    assert pending.applied(7) == [None, two]
