"""`NetworkTransport`: RPCs over any `StreamLayer` (hashicorp/raft's net_transport.go).

Owns every stream, dialed and accepted, and decides which one an RPC takes: pooled ones for votes,
one a peer for heartbeats, one a pipeline, a fresh one for TimeoutNow, snapshots and `identify`.
Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from rafthttp.raft.errors import (
    ConfigError,
    PeerUnreachableError,
    RaftHttpError,
    RemoteError,
    TransportError,
)
from rafthttp.raft.transport.client import CallStream
from rafthttp.raft.transport.inbound import InboundStream
from rafthttp.raft.transport.pipeline import Pipeline
from rafthttp.raft.transport.protocols import (
    AppendPipeline,
    RpcHandler,
    ServerAddressProvider,
    SnapshotSource,
    Stream,
    StreamLayer,
)
from rafthttp.raft.types import Leader, LogPosition, Server, ServerAddress, ServerID
from rafthttp.raft.wire.limits import DEFAULT_LIMITS, WireLimits
from rafthttp.raft.wire.records import (
    APPEND_ENTRIES,
    INSTALL_SNAPSHOT,
    REQUEST_PRE_VOTE,
    REQUEST_VOTE,
    TIMEOUT_NOW,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from rafthttp.raft.wire.rpc import AppendEncoder, encode_request
from rafthttp.raft.wire.stream import Answer

_log = logging.getLogger("rafthttp.transport")
_R = TypeVar("_R")

# A cluster of nine keeps some fifty streams open to a member; beyond this a peer leaks them.
_INBOUND_STREAMS_MAX: Final = 1024
# One read of a snapshot's file; 256 MiB/s at a read a millisecond.
_SNAPSHOT_CHUNK_BYTES: Final = 256 << 10
# How long `close` lets answers go out, and then waits for aborted streams to report.
_CLOSE_SECONDS: Final = 0.5


class NetworkTransport:
    """Implements `Transport`.

    Args:
        layer: dials and accepts; closed by `close`.
        max_pool: idle streams kept for each address.
        timeout: seconds for a pipeline's dial, and without an answer while it has frames in flight.
        limits: caps on what a peer may send.
        address_provider: where to reach a server, in place of the address in the configuration.
    """

    def __init__(
        self,
        layer: StreamLayer,
        max_pool: int = 3,
        timeout: float = 10.0,
        limits: WireLimits = DEFAULT_LIMITS,
        address_provider: ServerAddressProvider | None = None,
    ) -> None:
        if max_pool < 0:
            raise ConfigError(f"max_pool is {max_pool}; it must not be negative")
        if timeout <= 0:
            raise ConfigError(f"timeout is {timeout}; it must be above 0 seconds")
        self._layer = layer
        self._max_pool = max_pool
        self._timeout = timeout
        self._limits = limits
        self._address_provider = address_provider
        self._header = RPCHeader()
        self._encoder = AppendEncoder(self._header)
        self._handler: RpcHandler | None = None
        self._pool: dict[ServerAddress, list[CallStream]] = {}
        self._heartbeats: dict[ServerAddress, _HeartbeatLane] = {}
        # In the order of their opening, which is the order they are closed in.
        self._calls: dict[CallStream, None] = {}
        self._pipelines: dict[Pipeline, None] = {}
        self._inbound: dict[InboundStream, None] = {}
        self._named: dict[ServerID, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._quiet: asyncio.Event | None = None
        # Counts `close_streams`: a stream dialed before must not come to life after it.
        self._generation = 0
        self._closing: asyncio.Future[None] | None = None

    @property
    def local_address(self) -> ServerAddress:
        """This server's own address (`Transport`)."""
        return self._layer.address

    def start(self, header: RPCHeader, handler: RpcHandler) -> None:
        """Begin to accept; called once, on the event loop (`Transport`)."""
        assert self._handler is None, "started once"
        self._header = header
        self._encoder = AppendEncoder(header)
        self._handler = handler
        self._own(asyncio.get_running_loop().create_task(self._accept(handler)))

    # -- outbound

    def address_of(self, target: Server | Leader) -> ServerAddress:
        """Where to dial a server: asked for each time, for it may move."""
        if self._address_provider is not None:
            try:
                address = self._address_provider.server_address(target.id)
            except Exception:  # noqa: BLE001 - the application's; the configuration still has one
                _log.exception("no address for %s from the provider", target.id)
                return target.address
            if address is not None:
                return address
        return target.address

    def pipeline(
        self,
        target: Server,
        on_response: Callable[[AppendEntriesResponse], None],
        on_closed: Callable[[Exception], None],
    ) -> AppendPipeline:
        """Open a replication stream at once (`Transport`)."""
        address = self.address_of(target)
        pipeline = Pipeline(
            address,
            self._encoder,
            self._limits,
            self._timeout,
            on_response,
            on_closed,
            lambda ended: self._pipelines.pop(ended, None),
        )
        self._pipelines[pipeline] = None
        self._own(pipeline.open(lambda: self._dial(address, self._timeout)))
        return pipeline

    async def heartbeat(self, target: Server, term: int, timeout: float) -> AppendEntriesResponse:
        """One heartbeat on the peer's heartbeat stream (`Transport`)."""
        address = self.address_of(target)
        lane = self._heartbeats.get(address)
        if lane is None:
            lane = self._heartbeats[address] = _HeartbeatLane()
        frame = self._encoder.encode(term, 0, 0, (), 0)
        try:
            async with asyncio.timeout(timeout), lane.lock:
                stream, lane.stream = lane.stream, None
                answer, lane.stream = await self._exchange(
                    stream, address, APPEND_ENTRIES, frame, timeout
                )
        except TimeoutError as error:
            raise _silent(address, timeout) from error
        return _response(answer, AppendEntriesResponse)

    async def request_vote(
        self, target: Server, request: RequestVoteRequest, timeout: float
    ) -> RequestVoteResponse:
        """RequestVote on a pooled stream (`Transport`)."""
        frame = encode_request(request)
        answer = await self._pooled_call(self.address_of(target), REQUEST_VOTE, frame, timeout)
        return _response(answer, RequestVoteResponse)

    async def request_pre_vote(
        self, target: Server, request: RequestPreVoteRequest, timeout: float
    ) -> RequestPreVoteResponse:
        """RequestPreVote on a pooled stream (`Transport`)."""
        frame = encode_request(request)
        answer = await self._pooled_call(self.address_of(target), REQUEST_PRE_VOTE, frame, timeout)
        return _response(answer, RequestPreVoteResponse)

    async def timeout_now(
        self, target: Server, request: TimeoutNowRequest, timeout: float
    ) -> TimeoutNowResponse:
        """TimeoutNow on a fresh stream: sent twice, it could start two elections (`Transport`)."""
        frame = encode_request(request)
        answer = await self._fresh_call(self.address_of(target), TIMEOUT_NOW, frame, timeout)
        return _response(answer, TimeoutNowResponse)

    async def install_snapshot(
        self, target: Server, request: InstallSnapshotRequest, data: SnapshotSource, timeout: float
    ) -> InstallSnapshotResponse:
        """Send a snapshot on a stream of its own, then close it (`Transport`)."""
        address = self.address_of(target)
        try:
            async with asyncio.timeout(timeout):
                stream = await self._dial_call(address, timeout)
                try:
                    answer = await self._send_snapshot(stream, request, data)
                finally:
                    stream.abort()
        except TimeoutError as error:
            raise _silent(address, timeout) from error
        return _response(answer, InstallSnapshotResponse)

    async def identify(self, address: ServerAddress, timeout: float) -> RPCHeader:
        """Who is at `address` (`Transport`)."""
        frame = encode_request(RequestPreVoteRequest(self._header, 0, 0, 0))
        answer = await self._fresh_call(address, REQUEST_PRE_VOTE, frame, timeout)
        header = None if answer.response is None else answer.response.header
        if header is None or not header.id:
            raise RemoteError(answer.error or f"{address} answered without an id")
        return header

    async def log_end(self, address: ServerAddress, timeout: float) -> LogPosition:
        """A server's term and last index, asked by an AppendEntries of term 0: all refuse it."""
        frame = self._encoder.encode(0, 0, 0, (), 0)
        answer = await self._fresh_call(address, APPEND_ENTRIES, frame, timeout)
        response = _response(answer, AppendEntriesResponse)
        return LogPosition(response.term, response.last_log)

    async def probe(self, address: ServerAddress, timeout: float) -> bool:
        """Whether a fresh dial ends in a stream (`Transport`)."""
        try:
            stream = await self._dial_call(address, timeout)
        except TransportError:
            return False
        stream.abort()
        return True

    # -- the end

    def close_streams(self) -> None:
        """Close all streams (`Transport`)."""
        self._generation += 1
        self._pool.clear()
        error = PeerUnreachableError("the streams of this transport were closed")
        for call in tuple(self._calls):
            call.abort()
        for inbound in tuple(self._inbound):
            inbound.close()
        for pipeline in tuple(self._pipelines):
            pipeline.fail(error)

    async def close(self) -> None:
        """Close everything; returns when all streams and tasks have ended (`Transport`)."""
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        self._closing = asyncio.get_running_loop().create_future()
        try:
            self._generation += 1
            self._pool.clear()
            for pipeline in tuple(self._pipelines):
                pipeline.close()
            for call in tuple(self._calls):
                call.abort()
            for inbound in tuple(self._inbound):
                inbound.close()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._layer.close()
            if not await self._all_closed():
                for inbound in tuple(self._inbound):
                    inbound.abort()
                await self._all_closed()
        finally:
            self._closing.set_result(None)

    async def _all_closed(self) -> bool:
        self._quiet = asyncio.Event()
        self._check_quiet()
        try:
            await asyncio.wait_for(self._quiet.wait(), _CLOSE_SECONDS)
        except TimeoutError:
            return False
        return True

    def _check_quiet(self) -> None:
        if self._quiet is not None and not self._inbound and not self._calls:
            self._quiet.set()

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- dialed streams

    async def _dial(self, address: ServerAddress, timeout: float) -> Stream:
        """A new stream.

        Raises:
            PeerUnreachableError: none within `timeout` seconds, or the transport is closed.
        """
        generation = self._generation
        if self._closing is not None:
            raise PeerUnreachableError("this transport is closed")
        try:
            async with asyncio.timeout(timeout):
                stream = await self._layer.dial(address, timeout)
        except PeerUnreachableError:
            raise
        except TimeoutError as error:
            raise PeerUnreachableError(f"no stream to {address} within {timeout:g} s") from error
        except (RaftHttpError, OSError) as error:
            raise PeerUnreachableError(f"cannot dial {address}: {error}") from error
        if generation != self._generation:
            stream.abort()
            raise PeerUnreachableError("the streams of this transport were closed")
        return stream

    async def _dial_call(self, address: ServerAddress, timeout: float) -> CallStream:
        try:
            stream = await self._dial(address, timeout)
        except PeerUnreachableError as error:
            error.never_sent = True
            raise
        call = CallStream(stream, address, self._limits, self._call_closed)
        self._calls[call] = None
        call.start()
        return call

    def _call_closed(self, call: CallStream) -> None:
        self._calls.pop(call, None)
        idle = self._pool.get(call.address)
        if idle is not None and call in idle:
            idle.remove(call)
        self._check_quiet()

    async def _pooled_call(
        self, address: ServerAddress, rpc: int, frame: bytes, timeout: float
    ) -> Answer:
        """An idempotent RPC on the stream that was used last, or a fresh one."""
        idle = self._pool.get(address)
        try:
            async with asyncio.timeout(timeout):
                answer, stream = await self._exchange(
                    idle.pop() if idle else None, address, rpc, frame, timeout
                )
        except TimeoutError as error:
            raise _silent(address, timeout) from error
        self._release(stream)
        return answer

    def _release(self, stream: CallStream) -> None:
        idle = self._pool.setdefault(stream.address, [])
        if stream.is_closed or len(idle) >= self._max_pool or stream not in self._calls:
            stream.abort()
        else:
            idle.append(stream)

    async def _exchange(
        self,
        used: CallStream | None,
        address: ServerAddress,
        rpc: int,
        frame: bytes,
        timeout: float,
    ) -> tuple[Answer, CallStream]:
        """One idempotent RPC on `used`; where that turns out to be dead, once more on a fresh one.

        A proxy cuts idle streams, and a peer that restarted has closed them: neither says anything
        about the peer now.
        """
        if used is not None:
            generation = self._generation
            try:
                return await self._call_on(used, rpc, frame), used
            except PeerUnreachableError as error:
                if generation != self._generation:
                    raise  # `close_streams` closed it
                _log.debug("redialing %s: %s", address, error)
        stream = await self._dial_call(address, timeout)
        return await self._call_on(stream, rpc, frame), stream

    async def _call_on(self, stream: CallStream, rpc: int, frame: bytes) -> Answer:
        try:
            return await stream.call(rpc, frame)
        except BaseException:
            # Cancelled or lost: an answer that comes late must not meet the next request.
            stream.abort()
            raise

    async def _fresh_call(
        self, address: ServerAddress, rpc: int, frame: bytes, timeout: float
    ) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                stream = await self._dial_call(address, timeout)
                try:
                    return await stream.call(rpc, frame)
                finally:
                    stream.abort()
        except TimeoutError as error:
            raise _silent(address, timeout) from error

    async def _send_snapshot(
        self, stream: CallStream, request: InstallSnapshotRequest, data: SnapshotSource
    ) -> Answer:
        answer = stream.begin(INSTALL_SNAPSHOT, encode_request(request))
        try:
            await self._send_body(stream, request.size, data, answer)
            return await answer
        finally:
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # seen, also where another error came first

    @staticmethod
    async def _send_body(
        stream: CallStream, left: int, data: SnapshotSource, answer: asyncio.Future[Answer]
    ) -> None:
        # An answer before the end is a refusal: no need to send the rest, the stream ends anyway.
        while left and not answer.done():
            chunk = await data.read(min(left, _SNAPSHOT_CHUNK_BYTES))
            if not chunk:
                raise TransportError(f"the snapshot is {left} bytes short of its size")
            left -= len(chunk)
            await stream.send(chunk)

    # -- accepted streams

    async def _accept(self, handler: RpcHandler) -> None:
        while True:
            try:
                stream = await self._layer.accept()
            except TransportError as error:
                if self._closing is None:
                    _log.warning("no more streams are accepted: %s", error)
                return
            except Exception:  # noqa: BLE001 - a task's top
                _log.exception("no more streams are accepted")
                return
            if len(self._inbound) >= _INBOUND_STREAMS_MAX:
                _log.warning("refusing a stream of %s: too many are open", stream.peer)
                stream.abort()
                continue
            inbound = InboundStream(stream, self._limits, handler, self)
            self._inbound[inbound] = None
            stream.start(inbound)

    def on_peer_named(self, old: ServerID, new: ServerID) -> None:
        """Count the streams of each id (`InboundOwner`)."""
        self._forget(old)
        self._named[new] = self._named.get(new, 0) + 1

    def on_inbound_closed(self, stream: InboundStream, peer: ServerID) -> None:
        """Tell the server when a peer's last stream is gone (`InboundOwner`)."""
        self._inbound.pop(stream, None)
        if self._forget(peer) and self._closing is None and self._handler is not None:
            self._handler.on_peer_streams_closed(peer)
        self._check_quiet()

    def _forget(self, peer: ServerID) -> bool:
        """Count one stream of `peer` less; whether it was the last."""
        if not peer:
            return False
        left = self._named[peer] - 1
        if left:
            self._named[peer] = left
            return False
        del self._named[peer]
        return True


class _HeartbeatLane:
    """A peer's heartbeat stream; one heartbeat at a time."""

    __slots__ = ("lock", "stream")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.stream: CallStream | None = None


def _silent(address: ServerAddress, timeout: float) -> PeerUnreachableError:
    return PeerUnreachableError(f"{address} did not answer within {timeout:g} s")


def _response(answer: Answer, kind: type[_R]) -> _R:
    """The record of an answer.

    Raises:
        RemoteError: the answer is an error text.
    """
    if answer.error:
        raise RemoteError(answer.error)
    response: Any = answer.response
    assert isinstance(response, kind), "the decoder was told what to expect"
    return response
