"""Answers between the servers of a `CoreNet`: a Go follower's, and their way into a core.

Knows the messages' shapes; not the network.
"""

from __future__ import annotations

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    Heartbeat,
    InstallSnapshotReply,
    Reply,
    Send,
    TimeoutNowReply,
    VoteReply,
    VoteRequest,
)
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import (
    Answer,
    Frame,
    InstallStep,
    Message,
    Probe,
    Request,
    SnapshotFrame,
    TimeoutNow,
)
from rafthttp.testing.gofollower import GoFollower


def answer_as_go(go: GoFollower, message: Message, body: Request) -> Reply | None:
    """What a follower in Go answers; None to a dial."""
    source = message.source
    reply: Reply | None = None
    match body:
        case Frame(Send() as ask, entries):
            answer = go.append_entries(
                source, ask.term, ask.prev_index, ask.prev_term, entries, ask.leader_commit
            )
            reply = AppendEntriesReply(message.number, 0, *_in_order(answer))
        case Frame(ask, _):
            answer = go.append_entries(source, ask.term, 0, 0, (), 0)
            reply = AppendEntriesReply(message.number, 0, *_in_order(answer))
        case VoteRequest():
            term, granted = go.request_vote(
                source, body.term, body.last_index, body.last_term, pre=body.pre_vote
            )
            reply = VoteReply(message.number, 0, term, granted)
        case SnapshotFrame(ask, snapshot):
            granted = go.install_snapshot(source, ask.term, snapshot.last_index, snapshot.last_term)
            reply = InstallSnapshotReply(message.number, 0, go.term, granted)
        case TimeoutNow():
            reply = TimeoutNowReply(message.number, 0, accepted=False)
        case Probe() | InstallStep():
            pass
    return reply


def is_of_transfer(message: Message, leader: ServerID) -> bool:
    """Whether it is a TimeoutNow of this leader, or the answer to one."""
    body = message.body
    if isinstance(body, Answer):
        return isinstance(body.request, TimeoutNow) and message.target == leader
    return isinstance(body, TimeoutNow) and message.source == leader


def hand_over_answer(core: Consensus, message: Message, answer: Answer, now: int) -> None:
    """Give an answer to the core that asked."""
    reply = answer.reply
    match answer.request:
        case Frame(Send() as ask, _):
            assert isinstance(reply, AppendEntriesReply)
            core.on_append_entries_response(
                ask, reply.term, reply.success, reply.last_log, reply.no_retry_backoff, now
            )
        case Frame(Heartbeat() as ask, _):
            assert isinstance(reply, AppendEntriesReply)
            core.on_heartbeat_response(ask, reply.term, reply.success, now)
        case VoteRequest() as vote:
            assert isinstance(reply, VoteReply)
            core.on_vote_response(vote, reply.term, reply.granted, now)
        case SnapshotFrame(ask, snapshot):
            assert isinstance(reply, InstallSnapshotReply)
            core.on_snapshot_sent(
                ask.peer, ask.epoch, snapshot.last_index, reply.term, reply.success, now
            )
        case Probe():
            core.on_leader_probed(message.source, alive=True, now_ns=now)
        case TimeoutNow():
            assert isinstance(reply, TimeoutNowReply)
            core.on_timeout_now_answered(message.source, accepted=reply.accepted, now_ns=now)
        case _:
            pass


def _in_order(answer: tuple[Term, Index, bool, bool]) -> tuple[Term, bool, Index, bool]:
    term, last_log, success, no_retry_backoff = answer
    return term, success, last_log, no_retry_backoff
