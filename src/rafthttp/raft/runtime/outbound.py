"""What goes to the other servers: a lane to each while this one leads, votes, TimeoutNow, probes.

Carries out the outgoing half of a `Ready` and brings the answers back to the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import Heartbeat, Ready, Send, VoteRequest
from rafthttp.raft.errors import PeerUnreachableError, RemoteError, TransportError
from rafthttp.raft.observer import FailedHeartbeatObservation, ResumedHeartbeatObservation
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.runtime.notices import Notices
from rafthttp.raft.runtime.peers import PeerLane
from rafthttp.raft.runtime.plausible import is_plausible_term
from rafthttp.raft.runtime.send_snapshot import SnapshotSender
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import Index, Leader, ServerID, State, Term
from rafthttp.raft.wire.records import (
    AppendEntriesResponse,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RPCHeader,
    TimeoutNowRequest,
)

_log = logging.getLogger("rafthttp.raft")

# hashicorp/raft's text for a peer that does not know RequestPreVote; counts as granted.
_UNKNOWN_RPC: Final = "unexpected command"


class Owner(Protocol):
    """What the lanes ask of the driver."""

    @property
    def cache(self) -> LogCache:
        """The newest records."""
        ...

    @property
    def leader(self) -> Leader | None:
        """Who leads."""
        ...

    async def read(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from disk."""
        ...

    def now_ns(self) -> int:
        """The clock of every input."""
        ...

    def wake(self) -> None:
        """Schedule a turn."""
        ...

    def fail(self, error: Exception) -> None:
        """Something that must not happen did."""
        ...

    @property
    def notices(self) -> Notices:
        """Whom to tell."""
        ...


class Outbound:
    """The outgoing side of a server.

    Args:
        vote_timeout: seconds a vote request may take.
        snapshots: sends them.
    """

    def __init__(
        self,
        core: Consensus,
        transport: Transport,
        header: RPCHeader,
        vote_timeout: float,
        snapshots: SnapshotSender,
        owner: Owner,
    ) -> None:
        self._core = core
        self._transport = transport
        self._header = header
        self.vote_timeout = vote_timeout
        self._snapshots = snapshots
        self._owner = owner
        self._lanes: dict[ServerID, PeerLane] = {}
        self._failing: set[ServerID] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def sync_lanes(self) -> None:
        """One lane for each other server while this one leads, none otherwise."""
        core, owner = self._core, self._owner
        wanted = {}
        if core.state is State.LEADER:
            wanted = {s.id: s for s in core.configuration if s.id != self._header.id}
        self._snapshots.keep(wanted)
        for peer, lane in list(self._lanes.items()):
            server = wanted.get(peer)
            if server is None or server.address != lane.server.address:
                lane.close()
                del self._lanes[peer]
                self._failing.discard(peer)
                if server is not None:
                    core.on_append_entries_failed(peer, lane.epoch, owner.now_ns())
        for peer, server in wanted.items():
            if peer not in self._lanes:
                self._lanes[peer] = PeerLane(server, self._transport, owner.cache, owner.read, self)

    def execute(self, ready: Ready) -> None:
        """Send what this `Ready` has for others."""
        for send in ready.sends:
            self._lanes[send.peer].send(send)
        for heartbeat in ready.heartbeats:
            self._lanes[heartbeat.peer].heartbeat(heartbeat)
        for snapshot in ready.snapshots:
            self._snapshots.send(self._lanes[snapshot.peer].server, snapshot)
        for vote in ready.votes:
            self._spawn(self._request_vote(vote))
        if ready.timeout_now is not None:
            self._spawn(self._timeout_now(ready.timeout_now))
        if ready.probe_leader is not None:
            self._spawn(self._probe_leader(ready.probe_leader))

    async def close(self) -> None:
        """Close all lanes, end all tasks."""
        self._closed = True
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        await self._snapshots.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- answers

    def on_append_response(self, send: Send, response: AppendEntriesResponse) -> None:
        """The answer to an AppendEntries (from a `PeerLane`)."""
        plausible = self._is_plausible(send.peer, response.term)
        self._core.on_append_entries_response(
            send,
            response.term if plausible else 0,
            response.success and plausible,
            response.last_log,
            response.no_retry_backoff,
            self._owner.now_ns(),
        )
        self._owner.wake()

    def on_heartbeat_response(self, heartbeat: Heartbeat, response: AppendEntriesResponse) -> None:
        """The answer to a heartbeat (from a `PeerLane`)."""
        if heartbeat.peer in self._failing:
            self._failing.discard(heartbeat.peer)
            self._owner.notices.observe(ResumedHeartbeatObservation(heartbeat.peer))
        if not self._is_plausible(heartbeat.peer, response.term):
            return
        self._core.on_heartbeat_response(
            heartbeat, response.term, response.success, self._owner.now_ns()
        )
        self._owner.wake()

    def on_heartbeat_failed(self, peer: ServerID) -> None:
        """A heartbeat stream is gone (from a `PeerLane`)."""
        if peer not in self._failing:
            self._failing.add(peer)
            self._owner.notices.observe(FailedHeartbeatObservation(peer))

    def on_append_failed(self, peer: ServerID, epoch: int) -> None:
        """A replication stream is gone (from a `PeerLane`)."""
        self._core.on_append_entries_failed(peer, epoch, self._owner.now_ns())
        self._owner.wake()

    def _is_plausible(self, peer: ServerID, term: Term) -> bool:
        """Whether an answer's term can be; what shows another is no answer."""
        if is_plausible_term(self._core, term):
            return True
        _log.warning("%s answers with term %d, which is implausible", peer, term)
        return False

    async def _request_vote(self, vote: VoteRequest) -> None:
        server = self._core.configuration.get(vote.peer)
        if server is None:
            return
        timeout = self.vote_timeout
        try:
            if vote.pre_vote:
                request = RequestPreVoteRequest(
                    self._header, vote.term, vote.last_index, vote.last_term
                )
                pre = await self._transport.request_pre_vote(server, request, timeout)
                term, granted = pre.term, pre.granted
            else:
                answer = await self._transport.request_vote(
                    server,
                    RequestVoteRequest(
                        self._header,
                        vote.term,
                        self._header.address,
                        vote.last_index,
                        vote.last_term,
                        vote.leadership_transfer,
                    ),
                    timeout,
                )
                term, granted = answer.term, answer.granted
        except RemoteError as refusal:
            if not vote.pre_vote or _UNKNOWN_RPC not in str(refusal):
                return
            term, granted = vote.term, True
        except TransportError as error:
            _log.debug("no vote from %s: %s", vote.peer, error)
            return
        if not self._closed and self._is_plausible(vote.peer, term):
            self._core.on_vote_response(vote, term, granted, self._owner.now_ns())
            self._owner.wake()

    async def _timeout_now(self, peer: ServerID) -> None:
        server = self._core.configuration.get(peer)
        if server is None:
            return
        accepted = True
        try:
            await self._transport.timeout_now(
                server, TimeoutNowRequest(self._header), self.vote_timeout
            )
        except TransportError as error:
            _log.warning("TimeoutNow to %s: %s", peer, error)
            unsent = isinstance(error, PeerUnreachableError) and error.never_sent
            if not unsent and not isinstance(error, RemoteError):
                return  # it may have arrived, or may yet
            accepted = False
        if not self._closed:
            self._core.on_timeout_now_answered(peer, accepted=accepted, now_ns=self._owner.now_ns())
            self._owner.wake()

    async def _probe_leader(self, peer: ServerID) -> None:
        leader = self._owner.leader
        alive = False
        if leader is not None and leader.id == peer:
            alive = await self._transport.probe(leader.address, self.vote_timeout)
        if not self._closed:
            self._core.on_leader_probed(peer, alive, self._owner.now_ns())
            self._owner.wake()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            self._owner.fail(error)
