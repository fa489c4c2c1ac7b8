"""A `Ready` and the messages of bare cores as lines of text, for dialogues.

Knows words only.
"""

from __future__ import annotations

from collections.abc import Iterator

from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    Heartbeat,
    InstallSnapshotReply,
    Persist,
    Ready,
    Reply,
    Send,
    VoteReply,
    VoteRequest,
)
from rafthttp.testing.coremember import (
    Answer,
    Frame,
    Member,
    Message,
    Request,
    SnapshotFrame,
    TimeoutNow,
)


def ready_lines(member: Member, ready: Ready) -> Iterator[str]:
    """Everything in a `Ready`, in the order in which it is carried out."""
    yield from _state_lines(member, ready)
    yield from _network_lines(member, ready)
    yield from _client_lines(member, ready)


def _state_lines(member: Member, ready: Ready) -> Iterator[str]:
    name = member.id
    if ready.soft_state is not None:
        state, term, leader = ready.soft_state
        yield (f"{name}  {state.value}, term {term}, leader {leader or '-'}")
    if ready.configuration_changed:
        core = member.live
        ids = " ".join(s.id for s in core.configuration)
        yield (f"{name}  configuration {core.configuration_index}: {ids}")
    if ready.noop is not None:
        yield (f"{name}  no-op {ready.noop}")
    if ready.persist is not None:
        yield _persist_line(member, ready.persist)


def _network_lines(member: Member, ready: Ready) -> Iterator[str]:
    name = member.id
    for send in ready.sends:
        yield (f"{name} -> {send.peer} {request_text(Frame(send, ()))}")
    for beat in ready.heartbeats:
        yield (f"{name} -> {beat.peer} heartbeat {beat.round}")
    for vote in ready.votes:
        yield (f"{name} -> {vote.peer} {request_text(vote)}")
    for ask in ready.snapshots:
        yield (f"{name} -> {ask.peer} snapshot")
    if ready.timeout_now is not None:
        yield (f"{name} -> {ready.timeout_now} timeout-now")
    if ready.probe_leader is not None:
        yield (f"{name}  dials {ready.probe_leader}")
    for reply in ready.replies:
        gate = f" after write {reply.after}" if reply.after > member.durable_seq else ""
        yield (f"{name} => {member.rpcs[reply.rpc].source} {_reply(reply)}{gate}")


def _client_lines(member: Member, ready: Ready) -> Iterator[str]:
    name = member.id
    if ready.aborted_from is not None:
        yield (f"{name}  unknown from {ready.aborted_from}")
    if ready.apply is not None:
        yield (f"{name}  applies {_range(*ready.apply)}")
    for read in ready.reads:
        yield (f"{name}  read {read.read} at {read.read_index}")
    for aborted in ready.reads_aborted:
        yield (f"{name}  read {aborted} refused")
    if ready.transfer_ended is not None:
        yield (f"{name}  transfer {'done' if ready.transfer_ended else 'given up'}")


def _persist_line(member: Member, persist: Persist) -> str:
    parts: list[str] = []
    if persist.hard_state is not None:
        parts.append(f"term {persist.hard_state.term} vote {persist.hard_state.voted_for or '-'}")
    if persist.reset_to is not None:
        parts.append(f"reset to {persist.reset_to}")
    if persist.truncate_from is not None:
        parts.append(f"truncate from {persist.truncate_from}")
    if persist.first <= persist.last:
        parts.append(f"entries {_range(persist.first, persist.last)}")
    if persist.configurations is not None:
        indexes = " ".join(str(index) for index, _ in persist.configurations)
        parts.append(f"configurations {indexes}")
    return f"{member.id}  write {persist.seq}: {', '.join(parts)}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


def kind_of(message: Message) -> str:
    """The word for a message, in a command."""
    body = message.body.request if isinstance(message.body, Answer) else message.body
    match body:
        case Frame(Heartbeat(), _):
            kind = "heartbeat"
        case Frame():
            kind = "append"
        case VoteRequest():
            kind = "pre-vote" if body.pre_vote else "vote"
        case SnapshotFrame():
            kind = "snapshot"
        case TimeoutNow():
            kind = "timeout-now"
        case _:
            kind = "dial"
    return kind


def request_text(body: Request) -> str:
    """A request in words."""
    match body:
        case Frame(Send() as send, _):
            what = f"append {send.prev_index}/{send.prev_term}"
            if send.last > send.prev_index:
                what += f" + {_range(send.prev_index + 1, send.last)}"
            return f"{what} commit {send.leader_commit}"
        case Frame(Heartbeat() as beat, _):
            return f"heartbeat {beat.round}"
        case VoteRequest():
            what = "pre-vote" if body.pre_vote else "vote"
            transfer = " transfer" if body.leadership_transfer else ""
            return f"{what} term {body.term} log {body.last_index}/{body.last_term}{transfer}"
        case SnapshotFrame():
            return "snapshot"
        case TimeoutNow():
            return "timeout-now"
        case _:
            return "dial"


def _reply(reply: Reply) -> str:
    match reply:
        case AppendEntriesReply():
            verdict = "ok" if reply.success else f"refused, last log {reply.last_log}"
            return f"{verdict}, term {reply.term}"
        case VoteReply():
            return f"{'granted' if reply.granted else 'refused'}, term {reply.term}"
        case InstallSnapshotReply():
            return f"snapshot {'ok' if reply.success else 'refused'}, term {reply.term}"
        case _:
            return "campaigns" if reply.accepted else "does not campaign"
