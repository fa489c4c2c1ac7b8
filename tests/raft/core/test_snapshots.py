"""Snapshots in the core, step by step: what may come between two steps, and what may not."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    CoreConfig,
    HardState,
    InitialState,
    InstallSnapshotReply,
    Ready,
    VoteReply,
)
from rafthttp.raft.errors import ConfigurationChangeError, LeadershipTransferError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, State

SECOND = 1_000_000_000
A, B, C = ServerID("a"), ServerID("b"), ServerID("c")
THREE = Configuration(tuple(Server(i, ServerAddress(f"{i}:1")) for i in (A, B, C)))


def started() -> Consensus:
    state = InitialState(
        hard_state=HardState(1, None),
        last_index=5,
        term_runs=((1, 1),),
        configurations=((1, THREE),),
    )
    return Consensus(CoreConfig(A, pre_vote=False), state, random.Random(1), 0)


def take(core: Consensus) -> list[Ready]:
    """Everything there is to do; writes are durable at once."""
    taken: list[Ready] = []
    while (ready := core.ready()) is not None:
        taken.append(ready)
        if ready.persist is not None:
            core.on_persisted(ready.persist.seq, SECOND)
    return taken


def reply_of(core: Consensus, rpc: int) -> AppendEntriesReply | InstallSnapshotReply:
    (reply,) = (r for ready in take(core) for r in ready.replies if r.rpc == rpc)
    assert isinstance(reply, AppendEntriesReply | InstallSnapshotReply)
    return reply


def append(
    core: Consensus, rpc: int, prev: tuple[int, int], terms: list[int], term: int = 2
) -> bool:
    """Whether entries behind `prev`, an index and its term, are acknowledged."""
    core.on_append_entries(rpc, B, term, *prev, terms, [10] * len(terms), 0, (), SECOND)
    return reply_of(core, rpc).success


def arriving() -> Consensus:
    """B's snapshot of 10 has come whole, and is being made visible."""
    core = started()
    assert core.on_install_snapshot(1, B, 2, 10, 2, SECOND)
    assert append(core, 2, (5, 1), [2]), "while it streams, entries are taken"
    assert core.on_snapshot_arrived(1, 2, 10, 2, SECOND)
    take(core)
    return core


def test_no_entry_is_acknowledged_while_a_snapshot_becomes_visible() -> None:
    """A restart at this moment might begin from the snapshot, and lose the entry."""
    core = arriving()
    assert not append(core, 3, (6, 2), [2])
    assert not append(core, 4, (6, 2), [])
    assert append(core, 5, (0, 0), []), "a heartbeat acknowledges nothing"
    assert core.on_snapshot_installed(1, 10, 2, THREE, 1, SECOND)
    reply = reply_of(core, 1)
    assert isinstance(reply, InstallSnapshotReply)
    assert reply.success
    core.on_append_entries(6, B, 2, 10, 2, [2], [10], 0, (), SECOND)
    assert reply_of(core, 6).success


def test_no_election_begins_while_a_snapshot_becomes_visible() -> None:
    """Were it won, the new leader's log would be gone with a crash."""
    core = arriving()
    core.tick(100 * SECOND)
    assert not [vote for ready in take(core) for vote in ready.votes]
    core.on_timeout_now(7, B, 100 * SECOND)
    take(core)
    assert core.state is State.FOLLOWER
    core.on_snapshot_failed(1, 100 * SECOND)
    take(core)
    core.tick(200 * SECOND)
    assert [vote for ready in take(core) for vote in ready.votes]


def test_a_vote_is_given_meanwhile() -> None:
    core = arriving()
    core.on_request_vote(8, C, 3, 20, 2, True, SECOND)
    (reply,) = (r for ready in take(core) for r in ready.replies)
    assert isinstance(reply, VoteReply)
    assert reply.granted


def test_a_snapshot_of_an_older_term_is_dropped_before_it_counts() -> None:
    core = started()
    assert core.on_install_snapshot(1, B, 2, 10, 2, SECOND)
    core.on_request_vote(2, C, 3, 20, 2, True, SECOND)
    take(core)
    assert not core.on_snapshot_arrived(1, 2, 10, 2, SECOND)
    reply = reply_of(core, 1)
    assert (reply.success, reply.term) == (False, 3)


def test_the_end_of_another_install_does_not_let_entries_in() -> None:
    core = arriving()
    assert core.on_install_snapshot(9, B, 2, 12, 2, SECOND)
    core.on_snapshot_failed(9, SECOND)
    assert not reply_of(core, 9).success
    assert not append(core, 3, (6, 2), [2])


def leading() -> Consensus:
    core = started()
    core.tick(100 * SECOND)
    for ready in take(core):
        for vote in ready.votes:
            core.on_vote_response(vote, 2, True, SECOND)
    for ready in take(core):
        for send in ready.sends:
            core.on_append_entries_response(send, 2, True, 5, False, SECOND)
    take(core)
    for ready in take(core):
        for send in ready.sends:
            core.on_append_entries_response(send, 2, True, 5, False, SECOND)
    take(core)
    return core


def test_a_restore_begins_the_log_anew_and_sends_everybody_the_snapshot() -> None:
    core = leading()
    assert core.commit_index == core.last_index == 6
    index = core.begin_restore(3, SECOND)
    assert index == 7
    assert core.restoring
    assert not core.accepts_proposals
    assert core.on_restore_arrived(index, 2, SECOND)
    core.on_restored(index, 2, THREE, 1, SECOND)
    readies = take(core)
    assert [r.persist.reset_to for r in readies if r.persist is not None] == [7]
    assert {s.peer for r in readies for s in r.snapshots} == {B, C}
    assert (core.first_index, core.last_index, core.commit_index) == (8, 7, 7)
    assert core.accepts_proposals


def test_a_restore_that_lost_its_leadership_does_not_count() -> None:
    core = leading()
    index = core.begin_restore(100, SECOND)
    assert index == 101
    core.on_request_vote(2, C, 3, 20, 2, True, SECOND)
    take(core)
    assert not core.on_restore_arrived(index, 2, SECOND)
    core.on_restore_failed(SECOND)
    assert append(core, 3, (5, 1), [2], term=3)


def test_leadership_is_not_handed_over_during_a_restore() -> None:
    """The other would lead without the snapshot that is about to count here."""
    core = leading()
    index = core.begin_restore(3, SECOND)
    with pytest.raises(LeadershipTransferError, match="restore"):
        core.transfer_leadership(B, SECOND)
    assert core.on_restore_arrived(index, 2, SECOND)
    with pytest.raises(LeadershipTransferError, match="restore"):
        core.transfer_leadership(B, SECOND)
    assert not [r for r in take(core) if r.timeout_now is not None]
    core.on_restored(index, 2, THREE, 1, SECOND)
    core.transfer_leadership(B, SECOND)
    assert not [r for r in take(core) if r.timeout_now is not None]  # it has to catch up first


def test_a_restore_waits_for_the_configuration() -> None:
    core = leading()
    core.propose_configuration(THREE.without(C), 10, SECOND)
    with pytest.raises(ConfigurationChangeError, match="not committed"):
        core.begin_restore(1, SECOND)


def test_a_snapshot_that_fails_again_and_again_is_tried_less_and_less_often() -> None:
    """Though each probe in between is answered: an answer says nothing about snapshots."""
    core = leading()
    core.on_compacted(6, 2, 7)
    core.propose([10], SECOND)
    now = SECOND
    tries: list[int] = []
    while len(tries) < 12:
        now += 1_000_000
        core.tick(now)
        while (ready := core.ready()) is not None:
            for beat in ready.heartbeats:
                core.on_heartbeat_response(beat, 2, True, now)
            for send in ready.sends:
                refused = send.peer == C
                core.on_append_entries_response(send, 2, not refused, 0, refused, now)
            for ask in ready.snapshots:
                tries.append(now)
                core.on_snapshot_send_failed(ask.peer, ask.epoch, now)
            if ready.persist is not None:
                core.on_persisted(ready.persist.seq, now)
    waits = [(later - one) // 1_000_000 for one, later in pairwise(tries)]
    assert waits == sorted(waits)
    assert waits[0] < 30
    assert 4_000 < waits[-1] < 6_000
