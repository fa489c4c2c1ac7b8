"""`NetworkTransport` when things end: deadlines, dials that fail, garbage, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import (
    ConfigError,
    HandshakeError,
    PeerUnreachableError,
    ProtocolError,
    RemoteError,
    TransportError,
)
from rafthttp.raft.transport.memory import InmemNetwork, MemoryStreamLayer
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.records import (
    InstallSnapshotRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
    TimeoutNowRequest,
)
from rafthttp.raft.wire.rpc import encode_response
from rafthttp.testing.sources import FileSource

Make = Callable[..., Any]
Until = Callable[..., Any]


def _vote(header: RPCHeader, term: int = 7) -> RequestVoteRequest:
    return RequestVoteRequest(header, term, header.address, 5, 6, False)


def _snapshot(header: RPCHeader, size: int) -> InstallSnapshotRequest:
    return InstallSnapshotRequest(header, 1, 7, header.address, 9, 6, None, b"", 3, size)


# -- deadlines


def test_a_silent_peer(node_and_raw: Make, until: Until) -> None:
    """Every RPC ends at its deadline; the stream is closed, so a late answer meets no other RPC."""

    async def main() -> None:
        async with node_and_raw() as (node, raw):
            transport, target, header = node.transport, raw.as_target, node.header
            data = FileSource(bytes(10))
            calls = [
                transport.request_vote(target, _vote(header), 0.05),
                transport.request_pre_vote(target, RequestPreVoteRequest(header, 8, 5, 6), 0.05),
                transport.heartbeat(target, 7, 0.05),
                transport.timeout_now(target, TimeoutNowRequest(header), 0.05),
                transport.install_snapshot(target, _snapshot(header, 10), data, 0.05),
                transport.identify(target.address, 0.05),
            ]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, PeerUnreachableError)
                assert "within 0.05 s" in str(error)
            await until(lambda: len(raw.ends) == 6 and all(end.is_closed for end in raw.ends))

    asyncio.run(main())


def test_a_dial_that_hangs(node_and_raw: Make) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            node.layer.dial_gate = asyncio.Event()
            with pytest.raises(PeerUnreachableError):
                await node.transport.request_vote(raw.as_target, _vote(node.header), 0.05)
            assert not await node.transport.probe(raw.layer.address, 0.05)

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [HandshakeError("403", status=403), OSError("no route"), TransportError("closed")]
)
def test_a_dial_that_fails(error: Exception, node_and_raw: Make) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            node.layer.dial_error = error
            with pytest.raises(PeerUnreachableError, match=str(error)) as caught:
                await node.transport.request_vote(raw.as_target, _vote(node.header), 5)
            assert caught.value.__cause__ is error

    asyncio.run(main())


def test_a_heartbeat_waits_for_the_one_before(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            two.server.hold = True
            first = asyncio.ensure_future(one.transport.heartbeat(two.as_target, 7, 5))
            await until(lambda: two.server.held)
            second = asyncio.ensure_future(one.transport.heartbeat(two.as_target, 8, 5))
            third = asyncio.ensure_future(one.transport.heartbeat(two.as_target, 9, 0.05))
            with pytest.raises(PeerUnreachableError):
                await third
            assert len(two.server.requests) == 1
            two.server.hold = False
            two.server.answer_held()
            assert (await first).term == 7
            assert (await second).term == 8
            assert one.layer.dials == 1

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_stream_behind(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            two.server.hold = True
            call = asyncio.ensure_future(
                one.transport.request_vote(two.as_target, _vote(one.header), 5)
            )
            await until(lambda: two.server.held)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: two.server.gone == ["n1"])
            two.server.hold = False
            # An answer nobody can receive any more is no error.
            two.server.answer_held()
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)

    asyncio.run(main())


# -- garbage from the far end


def test_a_garbage_answer_ends_the_call_and_its_stream(
    node_and_raw: Make, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            call = asyncio.ensure_future(
                node.transport.request_vote(raw.as_target, _vote(node.header), 5)
            )
            await until(lambda: raw.ends and raw.ends[0].data)
            raw.ends[0].stream.write(b"\xa0\x81\xa4Term\xff")
            with pytest.raises(ProtocolError, match="negative"):
                await call
            await until(lambda: raw.ends[0].is_closed)
            assert node.layer.dials == 1

    asyncio.run(main())
    warnings = [r for r in caplog.records if r.name == "rafthttp.transport"]
    assert len(warnings) == 1


def test_bytes_nobody_asked_for_close_an_idle_stream(node_and_raw: Make, until: Until) -> None:
    async def main() -> None:
        async with node_and_raw() as (node, raw):
            octets = encode_response(RequestVoteResponse(node.header, 7, True))
            call = asyncio.ensure_future(
                node.transport.request_vote(raw.as_target, _vote(node.header), 5)
            )
            await until(lambda: raw.ends and raw.ends[0].data)
            raw.ends[0].stream.write(octets + octets)
            await call
            await until(lambda: raw.ends[0].is_closed)

    asyncio.run(main())


# -- the end


def test_close_streams_and_go_on(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            await one.transport.heartbeat(two.as_target, 7, 5)
            await two.transport.request_vote(one.as_target, _vote(two.header), 5)
            two.server.hold = True
            pending = asyncio.ensure_future(
                one.transport.request_pre_vote(
                    two.as_target, RequestPreVoteRequest(one.header, 8, 5, 6), 5
                )
            )
            await until(lambda: two.server.held)
            one.transport.close_streams()
            with pytest.raises(PeerUnreachableError):
                await pending
            await until(lambda: two.server.gone == ["n1"] and one.server.gone == ["n2"])
            two.server.hold = False
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            await two.transport.request_vote(one.as_target, _vote(two.header), 5)

    asyncio.run(main())


def test_a_dial_under_way_does_not_survive_close_streams(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            one.layer.dial_gate = asyncio.Event()
            call = asyncio.ensure_future(
                one.transport.request_vote(two.as_target, _vote(one.header), 5)
            )
            await until(lambda: one.layer.dials == 1)
            one.transport.close_streams()
            one.layer.dial_gate.set()
            with pytest.raises(PeerUnreachableError, match="were closed"):
                await call
            assert two.server.requests == []

    asyncio.run(main())


def test_close_is_idempotent_and_final(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            await asyncio.gather(one.transport.close(), one.transport.close())
            await one.transport.close()
            with pytest.raises(PeerUnreachableError, match="closed"):
                await one.transport.request_vote(two.as_target, _vote(one.header), 5)
            assert not await one.transport.probe(two.layer.address, 5)
            with pytest.raises(TransportError):
                await one.layer.accept()

    asyncio.run(main())


def test_close_before_start(make_layer: Make) -> None:
    async def main() -> None:
        transport = NetworkTransport(await make_layer("n1"))
        await transport.close()

    asyncio.run(main())


def test_answers_written_before_close_go_out(two_nodes: Make, until: Until) -> None:
    """A server that shuts down fails what waits; the peers are told."""

    async def main() -> None:
        async with two_nodes() as (one, two):
            two.server.hold = True
            call = asyncio.ensure_future(
                one.transport.request_vote(two.as_target, _vote(one.header), 5)
            )
            await until(lambda: two.server.held)
            two.server.held[0][1].fail("raft is already shutdown")
            await two.transport.close()
            with pytest.raises(RemoteError, match="already shutdown"):
                await call

    asyncio.run(main())


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"max_pool": -1}])
def test_options_out_of_bounds(options: dict[str, Any]) -> None:
    async def main() -> None:
        layer = MemoryStreamLayer(InmemNetwork(), ServerAddress("a"))
        with pytest.raises(ConfigError):
            NetworkTransport(layer, **options)
        await layer.close()

    asyncio.run(main())


def test_nobody_at_the_address(two_nodes: Make) -> None:
    async def main() -> None:
        async with two_nodes() as (one, _):
            for address in ("127.0.0.1:1", "nowhere", "127.0.0.1:99999", "[::1"):
                target = Server(ServerID("x"), ServerAddress(address))
                with pytest.raises(PeerUnreachableError, match="dial"):
                    await one.transport.request_vote(target, _vote(one.header), 5)

    asyncio.run(main())
