"""Two transports over each kind of stream layer, a server that answers as told, raw ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import pytest

from rafthttp.raft.errors import TransportError
from rafthttp.raft.transport.memory import InmemNetwork, MemoryStreamLayer
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.transport.protocols import InboundRpc, SnapshotReader, Stream, StreamLayer
from rafthttp.raft.transport.tcp import TCPStreamLayer
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Request,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)

DEADLINE_SECONDS = 20.0


class FakeServer:
    """An `RpcHandler`: answers at once, or holds requests for the test to answer."""

    def __init__(self, header: RPCHeader) -> None:
        self.header = header
        self.hold = False
        self.error = ""
        self.requests: list[Request] = []
        self.held: list[tuple[Request, InboundRpc]] = []
        self.gone: list[ServerID] = []
        self.snapshots: list[bytes] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.on_snapshot: Callable[[SnapshotReader, InboundRpc], Awaitable[None]] | None = None

    def answer(self, request: Request, rpc: InboundRpc) -> None:
        if self.error:
            rpc.fail(self.error)
        elif isinstance(request, AppendEntriesRequest):
            last = request.prev_log_index + len(request.entries.records)
            rpc.respond(AppendEntriesResponse(self.header, request.term, last, True, False))
        elif isinstance(request, RequestVoteRequest):
            rpc.respond(RequestVoteResponse(self.header, request.term, True))
        elif isinstance(request, RequestPreVoteRequest):
            rpc.respond(RequestPreVoteResponse(self.header, request.term, True))
        elif isinstance(request, InstallSnapshotRequest):
            rpc.respond(InstallSnapshotResponse(self.header, request.term, True))
        else:
            rpc.respond(TimeoutNowResponse(self.header))

    def answer_held(self) -> None:
        held, self.held = self.held, []
        for request, rpc in held:
            self.answer(request, rpc)

    def _take(self, request: Request, rpc: InboundRpc) -> None:
        self.requests.append(request)
        if self.hold:
            self.held.append((request, rpc))
        else:
            self.answer(request, rpc)

    def on_append_entries(self, request: AppendEntriesRequest, rpc: InboundRpc) -> None:
        self._take(request, rpc)

    def on_request_vote(self, request: RequestVoteRequest, rpc: InboundRpc) -> None:
        self._take(request, rpc)

    def on_request_pre_vote(self, request: RequestPreVoteRequest, rpc: InboundRpc) -> None:
        self._take(request, rpc)

    def on_timeout_now(self, request: TimeoutNowRequest, rpc: InboundRpc) -> None:
        self._take(request, rpc)

    def on_install_snapshot(
        self, request: InstallSnapshotRequest, body: SnapshotReader, rpc: InboundRpc
    ) -> None:
        self.requests.append(request)

        async def install() -> None:
            if self.on_snapshot is not None:
                await self.on_snapshot(body, rpc)
                return
            self.snapshots.append(b"".join([chunk async for chunk in body]))
            self.answer(request, rpc)

        task = asyncio.get_running_loop().create_task(install())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        self.gone.append(peer)


class Node:
    """One end: its transport and the server behind it."""

    def __init__(self, name: str, layer: StreamLayer, **options: Any) -> None:
        self.layer = CountingLayer(layer)
        self.transport = NetworkTransport(self.layer, **options)
        self.header = RPCHeader(3, ServerID(name), layer.address)
        self.server = FakeServer(self.header)
        self.as_target = Server(self.header.id, layer.address)

    def start(self) -> None:
        self.transport.start(self.header, self.server)


class CountingLayer:
    """A stream layer that keeps what it dialed and accepted, and can fail or hold dials."""

    def __init__(self, inner: StreamLayer) -> None:
        self.inner = inner
        self.dialed: list[Stream] = []
        self.accepted: list[Stream] = []
        self.dials = 0
        self.dial_error: Exception | None = None
        self.dial_gate: asyncio.Event | None = None

    @property
    def address(self) -> ServerAddress:
        return self.inner.address

    async def accept(self) -> Stream:
        stream = await self.inner.accept()
        self.accepted.append(stream)
        return stream

    async def dial(self, address: ServerAddress, timeout: float) -> Stream:
        self.dials += 1
        if self.dial_gate is not None:
            await self.dial_gate.wait()
        if self.dial_error is not None:
            raise self.dial_error
        stream = await self.inner.dial(address, timeout)
        self.dialed.append(stream)
        return stream

    async def close(self) -> None:
        await self.inner.close()


class RawEnd:
    """A receiver that collects bytes: the far end of a stream, without any transport."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data = b""
        self.is_closed = False
        stream.start(self)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def closed(self, error: Exception | None) -> None:
        del error
        self.is_closed = True

    def pause_writing(self) -> None:
        """Not heeded: tests write little."""

    def resume_writing(self) -> None:
        """Not heeded."""


class RawServer:
    """Accepts streams and leaves all else to the test."""

    def __init__(self, layer: StreamLayer) -> None:
        self.layer = layer
        self.ends: list[RawEnd] = []
        self._task = asyncio.get_running_loop().create_task(self._accept())

    @property
    def as_target(self) -> Server:
        return Server(ServerID("raw"), self.layer.address)

    async def _accept(self) -> None:
        with contextlib.suppress(TransportError):
            while True:
                self.ends.append(RawEnd(await self.layer.accept()))

    async def close(self) -> None:
        for end in self.ends:
            end.stream.abort()
        await self.layer.close()
        await self._task
        await until(lambda: all(end.is_closed for end in self.ends))


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Let the loop run until `condition()` holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"{what} did not come true within {DEADLINE_SECONDS:g} s")
        await asyncio.sleep(0.001)


Wait: TypeAlias = Callable[..., Awaitable[None]]
MakeLayer: TypeAlias = Callable[[str], Awaitable[StreamLayer]]


@pytest.fixture(name="until")
def _until() -> Wait:
    return until


@pytest.fixture(params=["memory", "memory, byte by byte", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    """How bytes travel."""
    carrier: str = request.param
    return carrier


@pytest.fixture
def make_layer(kind: str) -> MakeLayer:
    """A stream layer by name; those of one test reach each other."""
    network = InmemNetwork(piece_bytes=1 if "byte" in kind else None)

    async def make(name: str) -> StreamLayer:
        if kind == "tcp":
            return await TCPStreamLayer.listen("127.0.0.1")
        return MemoryStreamLayer(network, ServerAddress(name))

    return make


@pytest.fixture
def two_nodes(make_layer: MakeLayer) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Two started nodes; at the end both are closed, and no task is left."""

    @contextlib.asynccontextmanager
    async def make(**options: Any) -> AsyncGenerator[tuple[Node, Node], None]:
        before = asyncio.all_tasks()
        one = Node("n1", await make_layer("n1"), **options)
        two = Node("n2", await make_layer("n2"), **options)
        one.start()
        two.start()
        try:
            yield one, two
        finally:
            await one.transport.close()
            await two.transport.close()
        await until(lambda: asyncio.all_tasks() <= before, "every task to end")

    return make


@pytest.fixture
def node_and_raw(make_layer: MakeLayer) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """A started node, and a server that only accepts."""

    @contextlib.asynccontextmanager
    async def make(**options: Any) -> AsyncGenerator[tuple[Node, RawServer], None]:
        before = asyncio.all_tasks()
        node = Node("n1", await make_layer("n1"), **options)
        raw = RawServer(await make_layer("raw"))
        node.start()
        try:
            yield node, raw
        finally:
            await node.transport.close()
            await raw.close()
        await until(lambda: asyncio.all_tasks() <= before, "every task to end")

    return make


@pytest.fixture
def raw_client(make_layer: MakeLayer) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """A started node, and a function that dials it and gives the bare stream."""

    @contextlib.asynccontextmanager
    async def make(
        **options: Any,
    ) -> AsyncGenerator[tuple[Node, Callable[[], Awaitable[RawEnd]]], None]:
        before = asyncio.all_tasks()
        node = Node("n1", await make_layer("n1"), **options)
        layer = await make_layer("client")
        node.start()
        ends: list[RawEnd] = []

        async def dial() -> RawEnd:
            end = RawEnd(await layer.dial(node.layer.address, 5.0))
            ends.append(end)
            return end

        try:
            yield node, dial
        finally:
            await node.transport.close()
            for end in ends:
                end.stream.abort()
            await layer.close()
            await until(lambda: all(end.is_closed for end in ends))
        await until(lambda: asyncio.all_tasks() <= before, "every task to end")

    return make
