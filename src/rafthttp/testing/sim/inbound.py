"""A request arrives at a simulated server: here a message meets the core's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import Heartbeat, Send, VoteRequest
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration
from rafthttp.testing.coremember import (
    ENTRY_BYTES,
    Entry,
    Frame,
    InstallStep,
    Message,
    Probe,
    Request,
    SnapshotFrame,
    TimeoutNow,
)
from rafthttp.testing.invariants import InvariantError
from rafthttp.testing.sim.process import Process

if TYPE_CHECKING:
    from rafthttp.testing.sim.network import Network


def receive(
    network: Network, server: Process, core: Consensus, message: Message, body: Request
) -> None:
    """Hand a request to a running core."""
    number, source, now = message.number, message.source, server.local_ns()
    if isinstance(body, Probe):
        network.reply_to_probe(message)
        return
    server.rpcs[number] = message
    match body:
        case Frame(ask, entries):
            _on_frame(server, core, message, ask, entries)
        case VoteRequest() if body.pre_vote:
            core.on_request_pre_vote(
                number, source, body.term, body.last_index, body.last_term, now
            )
        case VoteRequest():
            core.on_request_vote(
                number,
                source,
                body.term,
                body.last_index,
                body.last_term,
                body.leadership_transfer,
                now,
            )
        case TimeoutNow():
            core.on_timeout_now(number, source, now)
        case SnapshotFrame(ask, snapshot):
            if core.on_install_snapshot(
                number, source, ask.term, snapshot.last_index, snapshot.last_term, now
            ):
                server.begin_install(number, ask, snapshot)
        case InstallStep():
            raise AssertionError("it does not travel")


def _on_frame(
    server: Process,
    core: Consensus,
    message: Message,
    ask: Send | Heartbeat,
    entries: tuple[Entry, ...],
) -> None:
    prev_index, prev_term, commit = 0, 0, 0
    if isinstance(ask, Send):
        prev_index, prev_term, commit = ask.prev_index, ask.prev_term, ask.leader_commit
    configurations = [
        (prev_index + 1 + at, entry.payload)
        for at, entry in enumerate(entries)
        if isinstance(entry.payload, Configuration)
    ]
    try:
        first = core.on_append_entries(
            message.number,
            message.source,
            ask.term,
            prev_index,
            prev_term,
            [entry.term for entry in entries],
            [ENTRY_BYTES] * len(entries),
            commit,
            configurations,
            server.local_ns(),
        )
    except ProtocolError as error:
        # Every leader here is a correct one of this cluster.
        raise InvariantError(f"refused a correct leader: {server.id}: {error}") from error
    if first is not None:
        server.cut_from(first)
        server.append(entries[first - prev_index - 1 :])
