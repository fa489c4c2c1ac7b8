"""RPCs between two transports over WebSocket: votes, large entries, a snapshot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.listener import Listener
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import InboundRpc, SnapshotReader
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_logs
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
)
from rafthttp.testing.http import until, uvicorn_server
from rafthttp.testing.sources import FileSource

SNAPSHOT = bytes(range(256)) * (24 << 12)  # 24 MiB
ENTRY = bytes(range(255)) * 9_000  # 2.3 MB


class Answering:
    """Says yes to everything, and keeps what it was sent."""

    def __init__(self, header: RPCHeader) -> None:
        self.header = header
        self.entry_sizes: list[int] = []
        self.snapshot = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def on_append_entries(self, request: AppendEntriesRequest, rpc: InboundRpc) -> None:
        records = request.entries.records
        self.entry_sizes += [len(record) for record in records]
        last = request.prev_log_index + len(records)
        rpc.respond(AppendEntriesResponse(self.header, request.term, last, True, False))

    def on_request_vote(self, request: RequestVoteRequest, rpc: InboundRpc) -> None:
        rpc.respond(RequestVoteResponse(self.header, request.term, True))

    def on_request_pre_vote(self, request: RequestPreVoteRequest, rpc: InboundRpc) -> None:
        rpc.respond(RequestPreVoteResponse(self.header, request.term, True))

    def on_timeout_now(self, request: TimeoutNowRequest, rpc: InboundRpc) -> None:
        del request
        rpc.fail("not asked for")

    def on_install_snapshot(
        self, request: InstallSnapshotRequest, body: SnapshotReader, rpc: InboundRpc
    ) -> None:
        async def install() -> None:
            self.snapshot = b"".join([chunk async for chunk in body])
            rpc.respond(InstallSnapshotResponse(self.header, request.term, True))

        task = asyncio.get_running_loop().create_task(install())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        """Nothing depends on it."""


@pytest.mark.parametrize("server", ["listener", "uvicorn"])
def test_every_size_of_rpc(server: str) -> None:
    async def exchange(handler: Handler, port: int) -> None:
        address = ServerAddress(f"127.0.0.1:{port}")
        there = NetworkTransport(Layer("/raft", address, handler, dial_tcp()))
        peer = Server(ServerID("n2"), address)
        layer = Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp(), "websocket")
        here = NetworkTransport(layer)
        own, theirs = RPCHeader(3, ServerID("n1"), layer.address), RPCHeader(3, peer.id, address)
        answering = Answering(theirs)
        there.start(theirs, answering)
        here.start(own, Answering(own))
        try:
            for term in (7, 8):
                vote = RequestVoteRequest(own, term, own.address, 9, 6, False)
                assert (await here.request_vote(peer, vote, 5.0)).granted
            beat = await here.heartbeat(peer, 8, 5.0)
            assert beat.success
            answers: list[Any] = []
            closed: list[Exception] = []
            pipeline = here.pipeline(peer, answers.append, closed.append)
            for first in range(1, 11):
                records = encode_logs(first, 8, [ENTRY], 1_714_979_289_123_456_789)
                pipeline.send(AppendFrame(8, first - 1, 8, records, first - 1))
            await until(lambda: len(answers) == 10 or closed)
            assert [answer.last_log for answer in answers] == list(range(1, 11))
            assert len(answering.entry_sizes) == 10
            assert min(answering.entry_sizes) > len(ENTRY)
            pipeline.close()
            request = InstallSnapshotRequest(
                own, 1, 8, own.address, 9, 6, None, b"", 3, len(SNAPSHOT)
            )
            installed = await here.install_snapshot(peer, request, FileSource(SNAPSHOT), 20.0)
            assert installed.success
            assert answering.snapshot == SNAPSHOT
        finally:
            await here.close()
            await there.close()

    async def main() -> None:
        handler = Handler()
        if server == "listener":
            async with Listener(handler, "127.0.0.1", 0) as listener:
                await exchange(handler, listener.port)
        else:
            async with uvicorn_server(handler, "auto", ws="websockets-sansio") as (port, _):
                await exchange(handler, port)

    asyncio.run(main())
