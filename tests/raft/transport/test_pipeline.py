"""Replication streams: order, waiting frames, and every way they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import PeerUnreachableError, ProtocolError, RemoteError, TransportError
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_logs
from rafthttp.raft.wire.records import AppendEntriesRequest, AppendEntriesResponse
from rafthttp.raft.wire.rpc import encode_response

Make = Callable[..., Any]
Until = Callable[..., Any]


class Outcome:
    """What a pipeline told its caller."""

    def __init__(self) -> None:
        self.responses: list[AppendEntriesResponse] = []
        self.errors: list[Exception] = []


def _frame(number: int, size_bytes: int = 10) -> AppendFrame:
    first = 1 + number * 2
    records = encode_logs(first, 3, [b"x" * size_bytes] * 2, 7)
    return AppendFrame(3, first - 1, 3 if number else 0, records, first - 1)


def _open(node: Any, target: Server) -> tuple[Any, Outcome]:
    outcome = Outcome()
    pipeline = node.transport.pipeline(target, outcome.responses.append, outcome.errors.append)
    return pipeline, outcome


def test_frames_are_answered_in_order(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            pipeline, outcome = _open(one, two.as_target)
            for number in range(50):
                pipeline.send(_frame(number))
            await until(lambda: len(outcome.responses) == 50)
            assert [r.last_log for r in outcome.responses] == [2 + 2 * n for n in range(50)]
            for number, request in enumerate(two.server.requests):
                assert isinstance(request, AppendEntriesRequest)
                frame = _frame(number)
                assert request.header == one.header
                assert request.leader == one.header.address
                assert request.entries.records == frame.records
                assert (request.term, request.leader_commit) == (3, frame.leader_commit)
                assert (request.prev_log_index, request.prev_log_term) == frame[1:3]
            assert one.layer.dials == 1
            pipeline.close()
            pipeline.close()
            pipeline.send(_frame(50))
            await until(lambda: two.server.gone)
            assert outcome.errors == []
            assert len(two.server.requests) == 50

    asyncio.run(main())


def test_frames_wait_for_the_dial(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            one.layer.dial_gate = asyncio.Event()
            pipeline, outcome = _open(one, two.as_target)
            for number in range(5):
                pipeline.send(_frame(number))
            await until(lambda: one.layer.dials == 1)
            one.layer.dial_gate.set()
            await until(lambda: len(outcome.responses) == 5)
            assert [r.last_log for r in outcome.responses] == [2, 4, 6, 8, 10]
            pipeline.close()

    asyncio.run(main())


def test_answers_out_of_order_keep_their_frames(two_nodes: Make, until: Until) -> None:
    """The far server answers the last request first; the stream's order stands."""

    async def main() -> None:
        async with two_nodes() as (one, two):
            two.server.hold = True
            pipeline, outcome = _open(one, two.as_target)
            for number in range(4):
                pipeline.send(_frame(number))
            await until(lambda: len(two.server.held) == 4)
            two.server.held.reverse()
            last = two.server.held.pop(0)
            two.server.answer(*last)
            await asyncio.sleep(0)
            assert outcome.responses == []
            two.server.answer_held()
            await until(lambda: len(outcome.responses) == 4)
            assert [r.last_log for r in outcome.responses] == [2, 4, 6, 8]
            pipeline.close()

    asyncio.run(main())


def test_heartbeat_frames(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            pipeline, outcome = _open(one, two.as_target)
            pipeline.send(AppendFrame(7, 0, 0, [], 0))
            await until(lambda: outcome.responses)
            assert outcome.responses == [AppendEntriesResponse(two.header, 7, 0, True, False)]
            pipeline.close()

    asyncio.run(main())


def test_a_failed_dial_is_told_once(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, _):
            nobody = Server(ServerID("x"), ServerAddress("127.0.0.1:1"))
            pipeline, outcome = _open(one, nobody)
            pipeline.send(_frame(0))
            assert outcome.errors == []
            await until(lambda: outcome.errors)
            pipeline.send(_frame(1))
            pipeline.close()
            one.transport.close_streams()
            assert len(outcome.errors) == 1
            assert isinstance(outcome.errors[0], PeerUnreachableError)

    asyncio.run(main())


def test_a_dial_that_fails_in_an_unforeseen_way(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            one.layer.dial_error = ZeroDivisionError("a bug")
            _, outcome = _open(one, two.as_target)
            await until(lambda: outcome.errors)
            assert "a bug" in str(outcome.errors[0])

    asyncio.run(main())


def test_closed_while_dialing(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            one.layer.dial_gate = asyncio.Event()
            pipeline, outcome = _open(one, two.as_target)
            pipeline.send(_frame(0))
            await until(lambda: one.layer.dials == 1)
            pipeline.close()
            one.layer.dial_gate.set()
            await one.transport.heartbeat(two.as_target, 7, 5)
            assert outcome.errors == []
            assert len(two.server.requests) == 1

    asyncio.run(main())


def test_a_dial_that_does_not_heed_cancellation(node_and_raw: Make, until: Until) -> None:
    """A layer of the application's may be like this; its stream is closed as soon as it comes."""

    async def main() -> None:
        async with node_and_raw() as (node, raw):
            dial, begun = node.layer.dial, asyncio.Event()

            async def stubborn(address: ServerAddress, timeout: float) -> Stream:
                begun.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                stream: Stream = await dial(address, timeout)
                return stream

            node.layer.dial = stubborn
            pipeline, outcome = _open(node, raw.as_target)
            await begun.wait()
            pipeline.close()
            await until(lambda: raw.ends and raw.ends[0].is_closed)
            assert outcome.errors == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", PeerUnreachableError),
        (b"\xa0\x87\xa4Addr", PeerUnreachableError),
        (b"\xa4boom\xc0", RemoteError),
        (b"\xa0\x81\xa4Term\xff", ProtocolError),
        (b"\x05", ProtocolError),
    ],
)
def test_how_a_stream_ends(
    octets: bytes, expected: type[Exception], node_and_raw: Make, until: Until
) -> None:
    """Told once; what was in flight is lost, nothing more comes."""

    async def main() -> None:
        async with node_and_raw() as (node, raw):
            pipeline, outcome = _open(node, raw.as_target)
            for number in range(3):
                pipeline.send(_frame(number))
            await until(lambda: raw.ends and raw.ends[0].data)
            good = AppendEntriesResponse(node.header, 3, 2, True, False)
            raw.ends[0].stream.write(encode_response(good) + octets)
            await until(lambda: outcome.responses == [good])
            if expected is PeerUnreachableError:
                raw.ends[0].stream.close()
            await until(lambda: outcome.errors)
            await until(lambda: raw.ends[0].is_closed)
            pipeline.send(_frame(3))
            assert [type(error) for error in outcome.errors] == [expected]
            assert outcome.responses == [good]

    asyncio.run(main())


def test_no_answer_within_the_timeout(node_and_raw: Make, until: Until) -> None:
    async def main() -> None:
        async with node_and_raw(timeout=0.05) as (node, raw):
            pipeline, outcome = _open(node, raw.as_target)
            await until(lambda: raw.ends)
            pipeline.send(_frame(0))
            await until(lambda: outcome.errors)
            assert "not answered for 0.05 s" in str(outcome.errors[0])
            await until(lambda: raw.ends[0].is_closed)

    asyncio.run(main())


def test_an_idle_pipeline_has_no_deadline(two_nodes: Make, until: Until) -> None:
    """S76 for raft's part: an idle stream survives; each frame has its own time."""

    async def main() -> None:
        async with two_nodes(timeout=0.2) as (one, two):
            pipeline, outcome = _open(one, two.as_target)
            began = asyncio.get_running_loop().time()
            for number in range(4):
                pipeline.send(_frame(number))
                await until(lambda number=number: len(outcome.responses) > number)
                quiet = began + 0.12 * (number + 1)
                await until(lambda quiet=quiet: asyncio.get_running_loop().time() > quiet)
            assert outcome.errors == []
            pipeline.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "tcp"])  # megabytes: not byte by byte
def test_frames_wait_while_the_peer_does_not_read(
    node_and_raw: Make, until: Until, kind: str
) -> None:
    """The write buffer is not filled beyond its mark; the rest follows when there is room."""

    async def main() -> None:
        async with node_and_raw() as (node, raw):
            pipeline, outcome = _open(node, raw.as_target)
            await until(lambda: raw.ends)
            raw.ends[0].stream.pause_reading()
            frames = [_frame(number, 100_000) for number in range(64)]
            written = 0

            def count(data: bytes) -> None:
                nonlocal written
                written += len(data)
                write(data)

            stream = node.layer.dialed[0]
            write, stream.write = stream.write, count
            for frame in frames:
                pipeline.send(frame)
            total = sum(len(record) for frame in frames for record in frame.records)
            held_back = total - written
            # The kernel's socket buffers take some megabytes; ours no more than the mark.
            assert held_back > total // 3
            raw.ends[0].stream.resume_reading()
            await until(lambda: len(raw.ends[0].data) > total)
            assert len(raw.ends[0].data) == written
            assert outcome.errors == []
            pipeline.close()

    asyncio.run(main())


def test_close_streams_tells_pipelines(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            pipeline, outcome = _open(one, two.as_target)
            pipeline.send(_frame(0))
            await until(lambda: outcome.responses)
            one.transport.close_streams()
            assert [type(error) for error in outcome.errors] == [PeerUnreachableError]
            await until(lambda: two.server.gone)

    asyncio.run(main())


def test_a_closed_transport_opens_none(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            await one.transport.close()
            _, outcome = _open(one, two.as_target)
            assert outcome.errors == []
            await until(lambda: outcome.errors)
            assert isinstance(outcome.errors[0], TransportError)

    asyncio.run(main())


def test_a_callback_that_fails_costs_its_stream(two_nodes: Make, until: Until) -> None:
    async def main() -> None:
        async with two_nodes() as (one, two):
            errors: list[Exception] = []

            def broken(response: AppendEntriesResponse) -> None:
                raise ZeroDivisionError(response.term)

            pipeline = one.transport.pipeline(two.as_target, broken, errors.append)
            pipeline.send(_frame(0))
            await until(lambda: errors)
            assert "handler of an answer failed" in str(errors[0])
            await until(lambda: two.server.gone)

    asyncio.run(main())
