"""One `Consensus` alone, called as a driver calls it."""

from __future__ import annotations

import random

import pytest

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    CoreConfig,
    HardState,
    InitialState,
    InstallSnapshotReply,
    Persist,
    ProgressState,
    Ready,
    SendSnapshot,
)
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, State

A, B, C = ServerID("a"), ServerID("b"), ServerID("c")
THREE = Configuration(tuple(Server(i, ServerAddress(f"{i}:1")) for i in (A, B, C)))
SECOND = 1_000_000_000


def started(
    *,
    last: int = 1,
    term: int = 1,
    runs: tuple[tuple[int, int], ...] = ((1, 1),),
    snapshot: tuple[int, int] = (0, 0),
) -> Consensus:
    """Server `a` with entries 1..last on its disk."""
    state = InitialState(
        HardState(term, None),
        snapshot_index=snapshot[0],
        snapshot_term=snapshot[1],
        last_index=last,
        term_runs=runs,
        configurations=((1, THREE),),
    )
    return Consensus(CoreConfig(local_id=A), state, random.Random(3), 0)


def take(core: Consensus) -> Ready:
    ready = core.ready()
    assert ready is not None
    return ready


def persisted(core: Consensus, now: int) -> None:
    """Complete whatever is to be written."""
    ready = core.ready()
    if ready is not None and ready.persist is not None:
        core.on_persisted(ready.persist.seq, now)


def elected() -> tuple[Consensus, int]:
    """Server `a` as the leader of term 2; its no-op, entry 2, is committed through `b`."""
    core = started()
    now = 2 * SECOND
    core.tick(now)
    for vote in take(core).votes:
        core.on_vote_response(vote, vote.term, granted=True, now_ns=now)
    persisted(core, now)
    for vote in take(core).votes:
        core.on_vote_response(vote, vote.term, granted=True, now_ns=now)
    ready = take(core)
    assert ready.noop == 2
    assert ready.persist is not None
    core.on_persisted(ready.persist.seq, now)
    for send in ready.sends:
        core.on_append_entries_response(
            send, 2, success=True, last_log=1, no_retry_backoff=False, now_ns=now
        )
    assert take(core).apply == (1, 2)
    return core, now


def append(core: Consensus, rpc: int, term: int, prev: tuple[int, int], *terms: int) -> int | None:
    return core.on_append_entries(
        rpc, B, term, prev[0], prev[1], terms, [10] * len(terms), 0, (), SECOND
    )


def test_a_snapshot_that_ends_inside_a_matching_log_keeps_what_follows() -> None:
    """S40."""
    core = started(last=9, term=2, runs=((1, 1), (6, 2)))
    assert core.on_install_snapshot(1, B, 2, 7, 2, SECOND)
    assert core.on_snapshot_installed(1, 7, 2, THREE, 1, SECOND), "the state machine is restored"
    ready = take(core)
    assert (core.last_index, core.commit_index, core.first_index) == (9, 7, 1)
    assert ready.persist is None
    assert ready.apply is None, "entries up to 7 come with the snapshot"
    assert ready.replies == [InstallSnapshotReply(1, 0, 2, success=True)]


def test_a_snapshot_beyond_a_divergent_log_replaces_it() -> None:
    """S38, S45: the term is the leader's, not the snapshot's."""
    core = started(last=9, term=2, runs=((1, 1), (6, 2)))
    assert core.on_install_snapshot(1, B, 5, 8, 4, SECOND)
    assert core.on_snapshot_installed(1, 8, 4, THREE, 3, SECOND)
    ready = take(core)
    assert (core.first_index, core.last_index, core.last_term) == (9, 8, 4)
    assert (core.commit_index, core.configuration_index, core.term) == (8, 3, 5)
    assert ready.persist == Persist(1, HardState(5, None), 8, None, 9, 8, ((3, THREE),))
    assert ready.replies == [InstallSnapshotReply(1, 1, 5, success=True)], "after the reset"
    assert append(core, 2, 5, (8, 4), 5) == 9


def test_an_old_snapshot_leaves_the_state_machine_alone() -> None:
    """S39, S43: refused before it is read, and after, when entries overtook it."""
    core = started(last=9)
    core.on_append_entries(1, B, 1, 9, 1, (), (), 6, (), SECOND)
    assert take(core).apply == (1, 6)
    assert not core.on_install_snapshot(2, B, 1, 6, 1, SECOND)
    assert take(core).replies == [InstallSnapshotReply(2, 0, 1, success=True)]
    assert core.on_install_snapshot(3, B, 1, 8, 1, SECOND)
    core.on_append_entries(4, B, 1, 9, 1, (), (), 9, (), SECOND)
    assert not core.on_snapshot_installed(3, 8, 1, THREE, 1, SECOND)
    assert take(core).apply == (7, 9)
    assert not core.on_install_snapshot(5, B, 0, 99, 1, SECOND), "a leader of an old term"


def test_a_snapshot_that_breaks_off_changes_nothing() -> None:
    """S41, S42."""
    core = started(last=3)
    assert core.on_install_snapshot(1, B, 1, 7, 1, SECOND)
    core.on_snapshot_failed(1, SECOND)
    ready = take(core)
    assert ready.replies == [InstallSnapshotReply(1, 0, 1, success=False)]
    assert ready.persist is None
    assert (core.last_index, core.commit_index) == (3, 0)


def test_a_candidate_takes_a_snapshot_as_a_follower() -> None:
    """S27."""
    core = started()
    core.tick(2 * SECOND)
    assert take(core).soft_state is not None
    assert core.state is State.CANDIDATE
    assert core.on_install_snapshot(1, B, 1, 7, 1, 2 * SECOND)
    assert (core.state, core.leader) == (State.FOLLOWER, B)


def test_restart_on_a_snapshot_and_a_log_behind_it() -> None:
    """S48, S63: the log begins at the snapshot, never at an assumed 1; its configuration wins."""
    core = started(last=12, term=4, runs=((11, 4),), snapshot=(10, 3))
    assert [core.term_at(i) for i in (9, 10, 11, 12, 13)] == [None, 3, 4, 4, None]
    assert (core.commit_index, core.first_index) == (10, 11)
    # S37: from the very beginning, through what is compacted, to one that is new.
    assert append(core, 1, 4, (0, 0), *[1] * 9, 3, 4, 4, 4) == 13
    with pytest.raises(ProtocolError, match="committed entry 10"):
        append(core, 2, 4, (0, 0), *[1] * 12)
    empty = started(last=10, term=4, runs=(), snapshot=(10, 3))
    assert append(empty, 1, 4, (10, 3), 4) == 11


def test_a_leader_feeds_a_snapshot_once_and_again_after_a_wait() -> None:
    """S44, S56: the success moves match; what fails is tried again, after a while."""
    core, now = elected()
    core.propose([10] * 8, now)
    ready = take(core)
    to_b = next(s for s in ready.sends if s.peer == B)
    to_c = next(s for s in ready.sends if s.peer == C)
    core.on_append_entries_response(to_b, 2, True, 2, False, now)
    assert ready.persist is not None
    core.on_persisted(ready.persist.seq, now)
    assert take(core).apply == (3, 10)
    core.on_compacted(10, 2, 11)
    core.on_append_entries_failed(C, to_c.epoch, now)
    (ask,) = take(core).snapshots
    assert ask == SendSnapshot(C, ask.epoch, 2)
    core.on_append_entries_failed(C, to_c.epoch, now)
    core.on_snapshot_send_failed(C, ask.epoch, now)
    assert core.ready() is None, "not at once"
    now = core.deadline_ns
    core.tick(now)
    (probe,) = [s for s in take(core).sends if s.peer == C]
    core.on_append_entries_response(probe, 2, False, 2, True, now)
    (again,) = take(core).snapshots
    assert again.epoch != ask.epoch
    core.on_snapshot_sent(C, ask.epoch, 10, 2, True, now)
    assert core.match_index(C) < 10, "an answer to the old one is void"
    core.on_snapshot_sent(C, again.epoch, 10, 2, True, now)
    assert core.match_index(C) == 10
    (behind,) = [s for s in take(core).sends if s.peer == C]
    assert (behind.prev_index, behind.last) == (10, 10)
    core.on_append_entries_response(behind, 2, True, 10, False, now)
    assert core.progress(C) is ProgressState.REPLICATE


def test_a_follower_that_lost_what_it_acknowledged_counts_no_more() -> None:
    """S62: an acknowledged place is refused; until it is accepted again, the peer holds nothing."""
    core, now = elected()
    core.propose([10], now)
    (to_b, _) = take(core).sends
    core.on_append_entries_response(to_b, 2, True, 2, False, now)
    assert core.match_index(B) == 3
    core.propose([10], now)
    to_b = next(s for s in take(core).sends if s.peer == B)
    core.on_append_entries_response(to_b, 2, False, 0, True, now)
    assert (core.match_index(B), core.progress(B)) == (0, ProgressState.PROBE)


def test_notify_commit_tells_idle_followers_now() -> None:
    core, now = elected()
    assert core.ready() is None
    core.notify_commit(now)
    assert [(s.peer, s.prev_index, s.last, s.leader_commit) for s in take(core).sends] == [
        (B, 2, 2, 2),
        (C, 2, 2, 2),
    ]
    core.notify_commit(now)
    assert core.ready() is None, "they know"


def test_a_turn_is_one_ready() -> None:
    """Decision 2: whatever came in since, one write and one frame a peer."""
    core, now = elected()
    assert core.propose([10, 10], now) == 3
    assert core.propose([10], now) == 5
    ready = take(core)
    assert ready.persist == Persist(2 + 1, None, None, None, 3, 5, None)
    assert [(s.peer, s.prev_index, s.last) for s in ready.sends] == [(B, 2, 5), (C, 2, 5)]
    assert core.ready() is None


def test_completions_move_the_durable_index_up_only() -> None:
    """S36: one completion stands for all before it, and a late one changes nothing."""
    core, now = elected()
    for _ in range(3):
        core.propose([10], now)
        assert take(core).persist is not None
    core.on_persisted(5, now)
    assert core.durable_index == 5
    core.on_persisted(4, now)
    assert core.durable_index == 5


def test_frames_no_leader_sends_are_refused_and_change_nothing() -> None:
    core = started(last=3, term=2)
    with pytest.raises(ProtocolError, match="lower term"):
        append(core, 1, 9, (3, 1), 5, 4)
    with pytest.raises(ProtocolError, match="outside"):
        append(core, 2, 9, (3, 1), 10)
    assert core.ready() is None
    assert (core.term, core.last_index, core.leader) == (2, 3, None)


def test_a_follower_behind_refreshes_its_timer() -> None:
    """S22: every frame of the present term counts as contact, a refused one too."""
    core = started()
    deadline = core.deadline_ns
    append(core, 1, 1, (50, 1))
    ready = take(core)
    assert ready.replies == [AppendEntriesReply(1, 0, 1, False, 1, True)]
    assert core.deadline_ns > deadline
    assert core.last_contact_ns == SECOND


def test_a_refused_frame_of_an_old_term_shows_the_term() -> None:
    """S23."""
    core = started(term=7)
    append(core, 1, 6, (1, 1))
    (reply,) = take(core).replies
    assert (reply.rpc, reply.after) == (1, 0)
    assert isinstance(reply, AppendEntriesReply)
    assert (reply.term, reply.success) == (7, False)


def test_equal_inputs_give_equal_outputs() -> None:
    """One seed, one history."""
    assert [repr(elected()[0].ready()) for _ in range(2)] == ["None", "None"]
    one, two = started(), started()
    assert one.deadline_ns == two.deadline_ns


def test_a_busy_disk_that_makes_progress_is_not_a_hanging_one() -> None:
    """S74: each write's age counts from the end of the one before it."""
    single = Configuration((Server(A, ServerAddress("a:1")),))
    state = InitialState(
        HardState(1, None), last_index=1, term_runs=((1, 1),), configurations=((1, single),)
    )
    core = Consensus(CoreConfig(local_id=A), state, random.Random(3), 0)
    core.tick(0)
    persisted(core, 0)
    persisted(core, 0)
    assert core.leader == A
    now = SECOND
    seqs: list[int] = []
    for _ in range(5):
        core.propose([10], now)
        persist = take(core).persist
        assert persist is not None
        seqs.append(persist.seq)
    for seq in seqs[:4]:
        now += SECOND * 9 // 10
        core.tick(now)
        core.on_persisted(seq, now)
        core.ready()
    assert core.leader == A, "3.6 s behind, but never a second without progress"
    core.tick(now + SECOND)
    assert core.leader == A
    core.tick(now + SECOND + 1)
    assert core.leader is None
