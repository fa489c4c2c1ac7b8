"""A leader played by hand, for one server under test: it says what a test wants, when it wants.

Real wire bytes over memory streams; no core.
"""

from __future__ import annotations

import asyncio
from typing import Any, BinaryIO, cast

from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import InboundRpc, SnapshotReader
from rafthttp.raft.types import Configuration, Index, LogType, Server, ServerID, Term
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import encode_log
from rafthttp.raft.wire.records import (
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Request,
    RequestVoteRequest,
    RPCHeader,
)
from rafthttp.testing.sources import FileSource


class PlayedLeader:
    """Another server's transport, that says what it is told to.

    Args:
        network: where the servers are.
        server: who it is.
        target: to whom it speaks.
        configuration: what its snapshots say of the cluster.
        term: of all it says; may be changed.
    """

    def __init__(
        self,
        network: InmemNetwork,
        server: Server,
        target: Server,
        configuration: Configuration,
        term: Term,
    ) -> None:
        self.term = term
        self._server = server
        self._target = target
        self._configuration = configuration
        self._transport = InmemTransport(network, server.address)
        self._transport.start(RPCHeader(id=server.id, address=server.address), _Deaf())

    async def heartbeat(self) -> AppendEntriesResponse:
        """An AppendEntries with nothing in it."""
        return await self._transport.heartbeat(self._target, self.term, 5)

    async def append(
        self, prev: Index, prev_term: Term, commands: list[bytes], commit: Index = 0
    ) -> AppendEntriesResponse:
        """Commands behind the entry at `prev`, on a stream of their own."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[AppendEntriesResponse] = loop.create_future()

        def lost(error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

        pipeline = self._transport.pipeline(self._target, answer.set_result, lost)
        records = [
            encode_log(index, self.term, LogType.COMMAND, data, b"", None)
            for index, data in enumerate(commands, prev + 1)
        ]
        pipeline.send(AppendFrame(self.term, prev, prev_term, records, commit))
        try:
            return await answer
        finally:
            pipeline.close()

    def install(
        self,
        index: Index,
        term: Term,
        data: bytes | BinaryIO,
        size: int | None = None,
        **changes: Any,
    ) -> asyncio.Task[InstallSnapshotResponse]:
        """Begin to send a snapshot; `changes` are made to the request.

        Args:
            index: its last entry.
            term: of that.
            data: its bytes, or a file of `size` bytes.
            size: where `data` is a file.
            changes: fields of the request.
        """
        source = FileSource(data)
        request = InstallSnapshotRequest(
            RPCHeader(id=self._server.id, address=self._server.address),
            1,
            self.term,
            self._server.address,
            index,
            term,
            None,
            encode_configuration(self._configuration),
            1,
            len(data) if isinstance(data, bytes) else cast("int", size),
        )._replace(**changes)
        return asyncio.create_task(
            self._transport.install_snapshot(self._target, request, source, 30)
        )

    async def vote(self, last_index: Index, last_term: Term) -> bool:
        """Ask for a vote, as one told to by the present leader; whether it was given."""
        answer = await self._transport.request_vote(
            self._target,
            RequestVoteRequest(
                RPCHeader(id=self._server.id, address=self._server.address),
                self.term,
                self._server.address,
                last_index,
                last_term,
                leadership_transfer=True,
            ),
            5,
        )
        return answer.granted

    async def close(self) -> None:
        """Close its transport."""
        await self._transport.close()


class _Deaf:
    """Answers nothing anybody asks."""

    def _fail(self, request: Request, rpc: InboundRpc) -> None:
        del request
        rpc.fail("not here")

    on_append_entries = on_request_vote = on_request_pre_vote = on_timeout_now = _fail

    def on_install_snapshot(
        self, request: InstallSnapshotRequest, body: SnapshotReader, rpc: InboundRpc
    ) -> None:
        del body
        self._fail(request, rpc)

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        del peer
