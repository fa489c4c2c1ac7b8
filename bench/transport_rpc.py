"""RPCs and pipelined entries a second, both ends in one process: `python bench/transport_rpc.py`.

Options: `--uvloop`, `--memory` (no sockets), `--seconds 2`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import time
from collections.abc import Callable
from typing import Any

from rafthttp.raft.transport.memory import InmemNetwork, MemoryStreamLayer
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import InboundRpc, StreamLayer
from rafthttp.raft.transport.tcp import TCPStreamLayer
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_logs
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    RPCHeader,
)

_NS = 1_714_979_289_123_456_789


class _Echo:
    """Answers every request at once."""

    def __init__(self, header: RPCHeader) -> None:
        self.header = header

    def on_append_entries(self, request: AppendEntriesRequest, rpc: InboundRpc) -> None:
        last = request.prev_log_index + len(request.entries.records)
        rpc.respond(AppendEntriesResponse(self.header, request.term, last, True, False))

    def on_request_vote(self, request: RequestVoteRequest, rpc: InboundRpc) -> None:
        rpc.respond(RequestVoteResponse(self.header, request.term, True))

    def on_request_pre_vote(self, request: Any, rpc: InboundRpc) -> None:
        del request
        rpc.fail("not measured")

    def on_timeout_now(self, request: Any, rpc: InboundRpc) -> None:
        del request
        rpc.fail("not measured")

    def on_install_snapshot(self, request: Any, body: Any, rpc: InboundRpc) -> None:
        del request, body
        rpc.fail("not measured")

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        """Not measured."""


async def _pipelined(
    transport: NetworkTransport,
    target: Server,
    seconds: float,
    batch: int,
    size_bytes: int,
    inflight: int,
) -> tuple[float, float]:
    """Entries and frames per second; a new frame for each answer."""
    datas = [b"x" * size_bytes] * batch
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    sent = answered = 0

    def send() -> None:
        nonlocal sent
        first = 70_001 + sent * batch
        sent += 1
        pipeline.send(AppendFrame(7, first - 1, 7, encode_logs(first, 7, datas, _NS), first - 1))

    def on_response(response: AppendEntriesResponse) -> None:
        nonlocal answered
        del response
        answered += 1
        if time.perf_counter() - began < seconds:
            send()
        elif answered == sent and not done.done():
            done.set_result(None)

    pipeline = transport.pipeline(target, on_response, done.set_exception)
    for _ in range(inflight):
        send()
    await done
    took = time.perf_counter() - began
    pipeline.close()
    return answered * batch / took, answered / took


async def _one_by_one(call: Callable[[], Any], seconds: float) -> float:
    """Microseconds a call."""
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            await call()
        count += 100
    return (time.perf_counter() - began) / count * 1e6


async def _main(memory: bool, seconds: float) -> None:
    network = InmemNetwork()

    async def layer(name: str) -> StreamLayer:
        if memory:
            return MemoryStreamLayer(network, ServerAddress(name))
        return await TCPStreamLayer.listen("127.0.0.1")

    transports: list[NetworkTransport] = []
    headers: list[RPCHeader] = []
    for name in ("n1", "n2"):
        transport = NetworkTransport(await layer(name))
        header = RPCHeader(3, ServerID(name), transport.local_address)
        transport.start(header, _Echo(header))
        transports.append(transport)
        headers.append(header)
    one, target = transports[0], Server(headers[1].id, headers[1].address)
    vote = RequestVoteRequest(headers[0], 7, headers[0].address, 70_000, 7, False)

    micros = await _one_by_one(lambda: one.request_vote(target, vote, 5), seconds)
    print(f"RequestVote, awaited            {micros:8.1f} µs  {1e6 / micros:10,.0f} /s")
    micros = await _one_by_one(lambda: one.heartbeat(target, 7, 5), seconds)
    print(f"heartbeat, awaited              {micros:8.1f} µs  {1e6 / micros:10,.0f} /s")
    for batch, size, inflight in (
        *((1, 64, 1), (1, 64, 64), (2, 64, 1)),
        *((64, 64, 1), (64, 64, 8), (512, 64, 8), (64, 1024, 8)),
    ):
        entries, frames = await _pipelined(one, target, seconds, batch, size, inflight)
        print(
            f"{batch:4} x {size:4} B, {inflight:2} in flight {1e6 / frames:15.1f} µs"
            f"  {frames:10,.0f} frames/s {entries:12,.0f} entries/s"
        )
    for transport in transports:
        await transport.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    run = importlib.import_module("uvloop").run if options.uvloop else asyncio.run
    run(_main(options.memory, options.seconds))
