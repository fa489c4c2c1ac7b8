"""The server's side of the transport: inbound RPCs into the core, its replies back.

Translates records to the core's words and decides nothing. A reply waits until the write it shows
is durable.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    AppendEntriesReply,
    InstallSnapshotReply,
    Reply,
    RpcId,
    Seq,
    TimeoutNowReply,
    VoteReply,
)
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.runtime.install import HeldRpc, Installer, check_snapshot_request
from rafthttp.raft.runtime.plausible import check_numbers
from rafthttp.raft.transport.protocols import NO_STATE, InboundRpc, SnapshotReader
from rafthttp.raft.types import Leader, ServerAddress, ServerID
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)

_log = logging.getLogger("rafthttp.raft")


class Inbound:
    """Implements `RpcHandler`.

    Args:
        now_ns: the clock every input is stamped with; where leases rest on what is promised here,
            one that is not late.
        wake: schedules a turn of the driver.
    """

    def __init__(
        self,
        core: Consensus,
        cache: LogCache,
        header: RPCHeader,
        now_ns: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self.leader: Leader | None = None
        """The last server that spoke as a leader; its address comes from its own header."""
        self.has_no_part = False
        """Whether every RPC is refused: no vote, no acknowledgement (S62)."""
        self.installer: Installer
        """Takes in snapshots."""
        self._core = core
        self._cache = cache
        self._header = header
        self._now_ns = now_ns
        self._wake = wake
        self._ids = itertools.count(1)
        self._waiting: dict[RpcId, tuple[InboundRpc, bool]] = {}
        self._held: defaultdict[Seq, list[Reply]] = defaultdict(list)
        self._durable: Seq = 0
        self._closed = False

    # -- requests

    def on_append_entries(self, request: AppendEntriesRequest, rpc: InboundRpc) -> None:
        """Hand an AppendEntries to the core, and its records to the cache.

        Raises:
            ProtocolError: no correct leader sends this; the transport closes the stream.
        """
        if self._refuses(rpc):
            return
        entries = request.entries
        check_numbers(
            self._core,
            request.term,
            request.prev_log_index + len(entries.records),
            request.prev_log_term,
            request.leader_commit,
        )
        leader = self._sender(request.header, request.leader)
        self._remember(leader, request.header.address or request.leader)
        number = self._accept(rpc)
        try:
            new = self._core.on_append_entries(
                number,
                leader,
                request.term,
                request.prev_log_index,
                request.prev_log_term,
                entries.terms,
                list(map(len, entries.records)),
                request.leader_commit,
                entries.configurations,
                self._now_ns(),
            )
        except ProtocolError:
            del self._waiting[number]
            raise
        if new is not None:
            skip = new - entries.first
            if skip:
                self._cache.replace_from(new, entries.records[skip:], entries.logs[skip:])
            else:
                self._cache.replace_from(new, entries.records, entries.logs)
        self._wake()

    def on_request_vote(self, request: RequestVoteRequest, rpc: InboundRpc) -> None:
        """Hand a RequestVote to the core.

        Raises:
            ProtocolError: no correct server sends this.
        """
        if self._refuses(rpc):
            return
        check_numbers(self._core, request.term, request.last_log_index, request.last_log_term)
        self._core.on_request_vote(
            self._accept(rpc),
            self._sender(request.header, request.candidate),
            request.term,
            request.last_log_index,
            request.last_log_term,
            request.leadership_transfer,
            self._now_ns(),
        )
        self._wake()

    def on_request_pre_vote(self, request: RequestPreVoteRequest, rpc: InboundRpc) -> None:
        """Hand a RequestPreVote to the core.

        Raises:
            ProtocolError: no correct server sends this.
        """
        if self._refuses(rpc):
            return
        check_numbers(self._core, request.term, request.last_log_index, request.last_log_term)
        self._core.on_request_pre_vote(
            self._accept(rpc, pre_vote=True),
            self._sender(request.header, ServerAddress("")),
            request.term,
            request.last_log_index,
            request.last_log_term,
            self._now_ns(),
        )
        self._wake()

    def on_timeout_now(self, request: TimeoutNowRequest, rpc: InboundRpc) -> None:
        """Hand a TimeoutNow to the core."""
        if self._refuses(rpc):
            return
        self._core.on_timeout_now(
            self._accept(rpc), self._sender(request.header, ServerAddress("")), self._now_ns()
        )
        self._wake()

    def on_install_snapshot(
        self, request: InstallSnapshotRequest, body: SnapshotReader, rpc: InboundRpc
    ) -> None:
        """Hand an InstallSnapshot to the core, and its body to who installs it.

        What is refused is drained by the transport (S42).

        Raises:
            ProtocolError: no correct leader sends this.
        """
        if self._refuses(rpc):
            return
        check_numbers(self._core, request.term, request.last_log_index, request.last_log_term)
        configuration = check_snapshot_request(request)
        if isinstance(configuration, str) or not self.installer.works:
            rpc.fail(configuration if isinstance(configuration, str) else "no snapshots are kept")
            return
        leader = self._sender(request.header, request.leader)
        self._remember(leader, request.header.address or request.leader)
        held = HeldRpc(rpc)
        number = self._accept(held)
        if self._core.on_install_snapshot(
            number,
            leader,
            request.term,
            request.last_log_index,
            request.last_log_term,
            self._now_ns(),
        ):
            self.installer.begin(number, request, configuration, body, held)
        else:
            held.release()
        self._wake()

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        """A closed stream of the leader is a signal (decision 7)."""
        if not self._closed:
            self._core.on_stream_closed(peer, self._now_ns())
            self._wake()

    # -- replies

    def reply(self, reply: Reply) -> None:
        """Send a reply, once the write it shows is durable."""
        if reply.after > self._durable:
            self._held[reply.after].append(reply)
        else:
            self._send(reply)

    def on_durable(self, seq: Seq) -> None:
        """All writes up to `seq` are durable: what waited for them goes out."""
        self._durable = seq
        if self._held:
            for after in sorted(s for s in self._held if s <= seq):
                for reply in self._held.pop(after):
                    self._send(reply)

    def close(self) -> None:
        """Answer nothing more; what waits is failed with Go's text."""
        self._closed = True
        self._held.clear()
        waiting, self._waiting = self._waiting, {}
        for rpc, _ in waiting.values():
            rpc.fail("raft is already shutdown")

    def _refuses(self, rpc: InboundRpc) -> bool:
        """Whether this server answers nothing any more: a refusal would look like a vote (S6)."""
        if self._closed or self._core.disk_failed:
            rpc.fail("raft is already shutdown" if self._closed else "the disk has failed")
            return True
        if self.has_no_part:
            rpc.fail(NO_STATE)
        return self.has_no_part

    def _accept(self, rpc: InboundRpc, *, pre_vote: bool = False) -> RpcId:
        number = next(self._ids)
        self._waiting[number] = (rpc, pre_vote)
        return number

    def _send(self, reply: Reply) -> None:
        rpc, pre_vote = self._waiting.pop(reply.rpc)
        response: Response
        match reply:
            case AppendEntriesReply():
                response = AppendEntriesResponse(
                    self._header, reply.term, reply.last_log, reply.success, reply.no_retry_backoff
                )
            case VoteReply() if pre_vote:
                response = RequestPreVoteResponse(self._header, reply.term, reply.granted)
            case VoteReply():
                response = RequestVoteResponse(self._header, reply.term, reply.granted)
            case InstallSnapshotReply():
                response = InstallSnapshotResponse(self._header, reply.term, reply.success)
            case TimeoutNowReply():
                if not reply.accepted:
                    rpc.fail("not from the leader of this server, or not a voter")
                    return
                response = TimeoutNowResponse(self._header)
        rpc.respond(response)

    # -- who speaks

    def _sender(self, header: RPCHeader, address: ServerAddress) -> ServerID:
        """The sender's id; nodes of protocol 2 may send only an address."""
        if header.id:
            return header.id
        server = self._core.configuration.by_address(header.address or address)
        return server.id if server is not None else ServerID(header.address or address)

    def _remember(self, leader: ServerID, address: ServerAddress) -> None:
        known = self.leader
        if known is None or known.id != leader or known.address != address:
            self.leader = Leader(leader, address)
