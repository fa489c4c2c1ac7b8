"""No acknowledgement before durability (Raft Figure 2).

"Persistent state … updated on stable storage before responding to RPCs."
"""

from __future__ import annotations

from rafthttp.raft.core.ready import AppendEntriesReply, Reply, Send, VoteReply, VoteRequest
from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import Disk, Frame, Request
from rafthttp.testing.invariants.error import InvariantError


def check_reply(server: ServerID, disk: Disk, request: Request, reply: Reply) -> None:
    """A server sends an answer."""
    hard = disk.hard_state
    if isinstance(reply, VoteReply):
        assert isinstance(request, VoteRequest)
        if request.pre_vote and reply.granted:
            return  # a promise of nothing
        _check_term(server, disk, reply.term)
    elif isinstance(reply, AppendEntriesReply):
        _check_term(server, disk, reply.term)
        if (
            reply.success
            and isinstance(request, Frame)
            and isinstance(request.ask, Send)
            and reply.term == hard.term  # later terms may have overwritten it meanwhile
        ):
            ask = request.ask
            last = max(ask.last, ask.prev_index)
            term = request.entries[-1].term if request.entries else ask.prev_term
            _check_held(server, disk, last, term)


def check_vote(server: ServerID, disk: Disk, candidate: ServerID, reply: VoteReply) -> None:
    """A server grants its vote; `candidate` gets it."""
    hard = disk.hard_state
    # A later term may have been written meanwhile; it does not take the vote back.
    if reply.granted and hard.term <= reply.term and hard != (reply.term, candidate):
        raise InvariantError(
            f"acknowledged: {server} votes for {candidate} in term {reply.term},"
            f" and {hard.voted_for} stands on its disk"
        )


def check_request(server: ServerID, disk: Disk, term: Term) -> None:
    """A server asks for a vote, or leads: its term is durable."""
    _check_term(server, disk, term)


def _check_term(server: ServerID, disk: Disk, shown: Term) -> None:
    durable = disk.hard_state.term
    if shown > durable:
        # A restart infers the term from a snapshot or an entry that came before it was written.
        durable = disk.initial_state().hard_state.term
    if shown > durable:
        raise InvariantError(f"acknowledged: {server} shows term {shown}, durable is {durable}")


def _check_held(server: ServerID, disk: Disk, last: Index, term: Term) -> None:
    snapshot = disk.snapshot
    if last <= disk.base or (snapshot is not None and snapshot.last_index >= last):
        return
    held = disk.get(last)
    if held is None or held.term != term:
        raise InvariantError(f"acknowledged: {server} vouches for {last}/{term}, not on its disk")
