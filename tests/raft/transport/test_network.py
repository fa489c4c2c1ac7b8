"""`NetworkTransport` between two ends: each RPC, and the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import (
    PeerUnreachableError,
    ProtocolError,
    RemoteError,
    TransportError,
)
from rafthttp.raft.wire.limits import DEFAULT_LIMITS
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
    TimeoutNowResponse,
)
from rafthttp.raft.wire.rpc import encode_request, encode_response, is_heartbeat
from rafthttp.raft.wire.stream import RequestDecoder
from rafthttp.testing.sources import FileSource

Make = Callable[..., Any]
Until = Callable[..., Any]


def _vote(header: RPCHeader, term: int = 7) -> RequestVoteRequest:
    return RequestVoteRequest(header, term, header.address, 5, 6, False)


def _snapshot(header: RPCHeader, size: int) -> InstallSnapshotRequest:
    return InstallSnapshotRequest(header, 1, 7, header.address, 9, 6, None, b"", 3, size)


# -- each RPC


def test_every_rpc(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            transport, target, header = one.transport, two.as_target, one.header
            vote = _vote(header)
            assert await transport.request_vote(target, vote, 5) == RequestVoteResponse(
                two.header, 7, True
            )
            pre = RequestPreVoteRequest(header, 8, 5, 6)
            assert await transport.request_pre_vote(target, pre, 5) == RequestPreVoteResponse(
                two.header, 8, True
            )
            now = TimeoutNowRequest(header)
            assert await transport.timeout_now(target, now, 5) == TimeoutNowResponse(two.header)
            beat = await transport.heartbeat(target, 7, 5)
            assert beat == AppendEntriesResponse(two.header, 7, 0, True, False)
            assert two.server.requests[:3] == [vote, pre, now]
            assert isinstance(two.server.requests[3], AppendEntriesRequest)
            assert is_heartbeat(two.server.requests[3])
            assert transport.local_address == header.address

    asyncio.run(main())


def test_a_snapshot(two_nodes: Make, kind: str) -> None:
    size = 20_000 if "byte" in kind else 5_000_000

    async def main() -> None:
        async with two_nodes() as (one, two):
            data = bytes(range(256)) * (size // 256 + 1)
            request = _snapshot(one.header, size)
            answer = await one.transport.install_snapshot(
                two.as_target, request, FileSource(data), 10
            )
            assert answer == InstallSnapshotResponse(two.header, 7, True)
            assert two.server.requests == [request]
            assert two.server.snapshots == [data[:size]]
            empty = _snapshot(one.header, 0)
            await one.transport.install_snapshot(two.as_target, empty, FileSource(data), 10)
            assert two.server.snapshots[1] == b""

    asyncio.run(main())


def test_a_snapshot_shorter_than_it_says(two_nodes: Make) -> None:
    """S41: the peer sees the stream end, never a short snapshot taken for a whole one."""

    async def main() -> None:
        async with two_nodes() as (one, two):
            request = _snapshot(one.header, 1000)
            failed: list[Exception] = []

            async def read(body: Any, rpc: Any) -> None:
                del rpc
                try:
                    async for _ in body:
                        pass
                except TransportError as error:
                    failed.append(error)

            two.server.on_snapshot = read
            with pytest.raises(TransportError, match="short"):
                await one.transport.install_snapshot(
                    two.as_target, request, FileSource(bytes(999)), 5
                )
            while two.server.tasks:
                await asyncio.wait(two.server.tasks)
            assert not failed or isinstance(failed[0], PeerUnreachableError)

    asyncio.run(main())


def test_identify_and_probe(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            assert await one.transport.identify(two.layer.address, 5) == two.header
            seen = two.server.requests[0]
            assert seen == RequestPreVoteRequest(one.header, 0, 0, 0)
            assert await one.transport.probe(two.layer.address, 5)
            await two.transport.close()
            assert not await one.transport.probe(two.layer.address, 5)
            with pytest.raises(PeerUnreachableError):
                await one.transport.identify(two.layer.address, 5)

    asyncio.run(main())


def test_identify_wants_an_id(node_and_raw: Make, until: Until) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            for octets, expected in (
                (encode_response(RequestPreVoteResponse(RPCHeader(0), 0, False)), RemoteError),
                (b"\xa4boom\xc0", RemoteError),
                (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError),
            ):
                count = len(raw.ends)
                call = asyncio.ensure_future(node.transport.identify(raw.layer.address, 5))
                await until(lambda count=count: len(raw.ends) > count and raw.ends[-1].data)
                raw.ends[-1].stream.write(octets)
                with pytest.raises(expected):
                    await call
                await until(lambda: raw.ends[-1].is_closed)

    asyncio.run(main())


def test_an_error_text(two_nodes: Make) -> None:
    """The stream stays in step: the next RPC uses it."""

    async def main() -> None:
        async with two_nodes() as (one, two):
            two.server.error = "boom: something failed"
            for _ in range(2):
                with pytest.raises(RemoteError, match="boom: something failed"):
                    await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            with pytest.raises(RemoteError):
                await one.transport.heartbeat(two.as_target, 7, 5)
            with pytest.raises(RemoteError):
                await one.transport.timeout_now(two.as_target, TimeoutNowRequest(one.header), 5)
            two.server.error = ""
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            await one.transport.heartbeat(two.as_target, 7, 5)
            # One for votes, one for heartbeats, one for TimeoutNow.
            assert one.layer.dials == 3

    asyncio.run(main())


# -- the pool


def test_votes_share_a_stream(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            for term in range(20):
                await one.transport.request_vote(two.as_target, _vote(one.header, term), 5)
            assert one.layer.dials == 1
            for _ in range(20):
                await one.transport.heartbeat(two.as_target, 7, 5)
            assert one.layer.dials == 2

    asyncio.run(main())


def test_calls_at_once_take_a_stream_each_and_few_are_kept(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes(max_pool=2) as (one, two):
            two.server.hold = True
            calls = [
                asyncio.ensure_future(
                    one.transport.request_vote(two.as_target, _vote(one.header, term), 5)
                )
                for term in range(5)
            ]
            await until(lambda: len(two.server.held) == 5)
            two.server.hold = False
            two.server.answer_held()
            answers = await asyncio.gather(*calls)
            assert [answer.term for answer in answers] == list(range(5))
            assert one.layer.dials == 5
            two.server.gone.clear()
            # Two are idle in the pool; the next five calls need three more.
            two.server.hold = True
            calls = [
                asyncio.ensure_future(
                    one.transport.request_vote(two.as_target, _vote(one.header, term), 5)
                )
                for term in range(5)
            ]
            await until(lambda: len(two.server.held) == 5)
            assert one.layer.dials == 8
            two.server.answer_held()
            await asyncio.gather(*calls)

    asyncio.run(main())


def test_nothing_is_pooled_with_max_pool_0(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes(max_pool=0) as (one, two):
            for _ in range(3):
                await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            assert one.layer.dials == 3

    asyncio.run(main())


def test_a_stream_that_closed_while_idle_is_not_used(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            two.layer.accepted[0].close()
            await until(lambda: two.server.gone)
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            assert len(two.server.requests) == 2
            assert one.layer.dials == 2

    asyncio.run(main())


def _is_whole(request: bytes) -> bool:
    decoder = RequestDecoder(DEFAULT_LIMITS)
    decoder.feed(bytes(request))
    return decoder.next() is not None


@pytest.mark.parametrize("rpc", ["vote", "pre-vote", "heartbeat"])
def test_an_idempotent_rpc_is_sent_again_once(rpc: str, node_and_raw: Make, until: Until) -> None:
    """A proxy cuts the idle stream just as it is used: one redial, and only one."""

    async def main() -> None:
        async with node_and_raw() as (node, raw):
            transport, target, header = node.transport, raw.as_target, node.header
            calls: dict[str, Callable[[], Any]] = {
                "vote": lambda: transport.request_vote(target, _vote(header), 5),
                "pre-vote": lambda: transport.request_pre_vote(
                    target, RequestPreVoteRequest(header, 8, 5, 6), 5
                ),
                "heartbeat": lambda: transport.heartbeat(target, 7, 5),
            }
            responses: dict[str, Any] = {
                "vote": RequestVoteResponse(header, 7, True),
                "pre-vote": RequestPreVoteResponse(header, 8, True),
                "heartbeat": AppendEntriesResponse(header, 7, 0, True, False),
            }
            octets = encode_response(responses[rpc])
            call = asyncio.ensure_future(calls[rpc]())
            await until(lambda: raw.ends and _is_whole(raw.ends[0].data))
            raw.ends[0].stream.write(octets)
            assert await call == responses[rpc]
            size = len(raw.ends[0].data)

            call = asyncio.ensure_future(calls[rpc]())
            await until(lambda: len(raw.ends[0].data) == 2 * size)
            raw.ends[0].stream.abort()
            await until(lambda: len(raw.ends) == 2 and len(raw.ends[1].data) == size)
            raw.ends[1].stream.write(octets)
            assert await call == responses[rpc]

            call = asyncio.ensure_future(calls[rpc]())
            await until(lambda: len(raw.ends[1].data) == 2 * size)
            raw.ends[1].stream.abort()
            await until(lambda: len(raw.ends) == 3 and len(raw.ends[2].data) == size)
            raw.ends[2].stream.abort()
            with pytest.raises(PeerUnreachableError):
                await call
            assert node.layer.dials == 3

    asyncio.run(main())


def test_timeout_now_is_never_sent_again(node_and_raw: Make, until: Until) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            request = TimeoutNowRequest(node.header)
            # A pooled stream is there; TimeoutNow must not use it: it may be dead.
            vote = asyncio.ensure_future(
                node.transport.request_vote(raw.as_target, _vote(node.header), 5)
            )
            await until(lambda: raw.ends and raw.ends[0].data)
            raw.ends[0].stream.write(encode_response(RequestVoteResponse(node.header, 7, True)))
            await vote
            call = asyncio.ensure_future(node.transport.timeout_now(raw.as_target, request, 5))
            octets = encode_request(request)
            await until(lambda: len(raw.ends) == 2 and raw.ends[1].data == octets)
            raw.ends[1].stream.abort()
            with pytest.raises(PeerUnreachableError):
                await call
            assert node.layer.dials == 2

    asyncio.run(main())
