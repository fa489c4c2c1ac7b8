"""The accepting side: order, bounds, and what a peer that lies or breaks can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.transport.inbound import OUTSTANDING_MAX
from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_logs
from rafthttp.raft.wire.limits import WireLimits
from rafthttp.raft.wire.records import (
    InstallSnapshotRequest,
    Request,
    RequestVoteRequest,
    RPCHeader,
    TimeoutNowRequest,
)
from rafthttp.raft.wire.rpc import AppendEncoder, encode_request
from rafthttp.raft.wire.stream import Answer, ResponseDecoder

Make = Callable[..., Any]
Until = Callable[..., Any]

_WIRE = Path(__file__).parents[1] / "wire" / "testdata"
_HEADER = RPCHeader(3, ServerID("n9"), ServerAddress("a:1"))
_ENCODER = AppendEncoder(_HEADER)
_HEARTBEAT = _ENCODER.encode(7, 0, 0, [], 0)


def _vote(term: int, header: RPCHeader = _HEADER) -> bytes:
    return encode_request(RequestVoteRequest(header, term, header.address, 5, 6, False))


def _golden(name: str) -> bytes:
    return bytes.fromhex((_WIRE / f"{name}.req.hex").read_text().strip())


def _answers(data: bytes, rpcs: list[int]) -> list[Answer]:
    decoder = ResponseDecoder()
    for rpc in rpcs:
        decoder.expect(rpc)
    decoder.feed(data)
    return list(iter(decoder.next, None))


def _logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "rafthttp.transport"]


@pytest.mark.parametrize("piece_bytes", [0, 1])
def test_golden_requests_of_a_go_node(raw_client: Make, until: Until, piece_bytes: int) -> None:
    """All on one stream, answered in their order; the snapshot's bytes stay with it."""
    names = [
        *("request_vote", "append_heartbeat", "append_3", "install_snapshot_200"),
        *("request_prevote", "append_64x64", "append_3_newtime", "append_empty_commit"),
        *("install_snapshot", "timeout_now", "request_vote_transfer_denied", "append_1_noop"),
    ]
    octets = b"".join(map(_golden, names))
    rpcs = [_golden(name)[0] for name in names]

    async def main() -> None:
        async with raw_client() as (node, dial):
            end = await dial()
            for at in range(0, len(octets), piece_bytes or len(octets)):
                end.stream.write(octets[at : at + (piece_bytes or len(octets))])
            await until(lambda: len(_answers(end.data, rpcs)) == len(names))
            assert all(answer.error == "" for answer in _answers(end.data, rpcs))
            assert [encode_request(r)[0] for r in node.server.requests] == rpcs
            assert [len(body) for body in node.server.snapshots] == [200, 100]

    asyncio.run(main())


def test_answers_leave_in_the_order_of_the_requests(raw_client: Make, until: Until) -> None:
    async def main() -> None:
        async with raw_client() as (node, dial):
            node.server.hold = True
            end = await dial()
            end.stream.write(b"".join(_vote(term) for term in range(5)))
            await until(lambda: len(node.server.held) == 5)
            for at in (3, 1, 2, 0, 4):
                assert len(_answers(end.data, [1] * 5)) <= at
                node.server.answer(*node.server.held[at])
            await until(lambda: len(_answers(end.data, [1] * 5)) == 5)
            answers = _answers(end.data, [1] * 5)
            assert [a.response.term for a in answers if a.response] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]  # votes have one

    asyncio.run(main())


@pytest.mark.parametrize("version", [0, 1, 4])
def test_an_unsupported_protocol(raw_client: Make, until: Until, version: int) -> None:
    """Refused with Go's text and a nil body; a heartbeat is not asked; the stream goes on."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            end = await dial()
            old = _HEADER._replace(protocol_version=version)
            end.stream.write(
                _vote(1, old)
                + encode_request(TimeoutNowRequest(old))
                + AppendEncoder(old).encode(7, 0, 0, [], 0)
                + AppendEncoder(old).encode(7, 1, 1, [], 0)
                + _vote(2)
            )
            rpcs = [1, 3, 0, 0, 1]
            await until(lambda: len(_answers(end.data, rpcs)) == 5)
            answers = _answers(end.data, rpcs)
            text = "operation not supported with current protocol version"
            assert [a.error for a in answers] == [text, text, "", text, ""]
            assert [a.response is None for a in answers] == [True, True, False, True, False]
            assert len(node.server.requests) == 2

    asyncio.run(main())


def test_a_peer_that_sends_without_end(raw_client: Make, until: Until) -> None:
    """Handed over up to the bound; the rest waits in the decoder and in the peer's buffers."""
    count = OUTSTANDING_MAX * 3

    async def main() -> None:
        async with raw_client() as (node, dial):
            node.server.hold = True
            end = await dial()
            end.stream.write(_HEARTBEAT * count)
            await until(lambda: len(node.server.held) == OUTSTANDING_MAX)
            other = await dial()
            other.stream.write(_vote(1))
            # Another stream is served meanwhile; nothing more of the first came through.
            await until(lambda: len(node.server.held) > OUTSTANDING_MAX)
            assert len(node.server.held) == OUTSTANDING_MAX + 1
            node.server.hold = False
            node.server.answer_held()
            await until(lambda: len(_answers(end.data, [0] * count)) == count)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "tcp"])  # megabytes: not byte by byte
def test_a_peer_that_reads_no_answers(raw_client: Make, until: Until, kind: str) -> None:
    """Its requests are taken no more once the write buffer is over its mark."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            node.server.error = "x" * 60_000
            end = await dial()
            end.stream.pause_reading()
            count = 400
            for _ in range(count):
                end.stream.write(_vote(1))
            await until(lambda: node.server.requests)
            seen = -1
            while seen != len(node.server.requests):
                seen = len(node.server.requests)
                for _ in range(50):
                    await asyncio.sleep(0)
            assert seen < count
            end.stream.resume_reading()
            await until(lambda: len(node.server.requests) == count)
            await until(lambda: len(_answers(end.data, [1] * count)) == count)

    asyncio.run(main())


def _entry(index: int, **changes: Any) -> dict[str, Any]:
    time = b"\x01" + bytes(12) + b"\xff\xff"
    fields = {"AppendedAt": time, "Data": b"x", "Index": index, "Term": 1, "Type": 0}
    return fields | changes


def _append(entries: Any) -> bytes:
    fields = {"ID": b"n9", "Entries": entries, "PrevLogEntry": 4, "Term": 7, "ProtocolVersion": 3}
    packed = msgpack.packb(fields, use_bin_type=False)
    assert packed is not None
    return b"\x00" + packed


@pytest.mark.parametrize("kind", ["memory", "tcp"])  # megabytes: not byte by byte
def test_close_does_not_wait_for_a_peer_that_reads_no_answers(
    raw_client: Make, until: Until
) -> None:
    async def main() -> None:
        async with raw_client() as (node, dial):
            node.server.error = "x" * 60_000
            end = await dial()
            end.stream.write(_vote(1))
            await until(lambda: end.data)
            end.stream.pause_reading()
            inbound = next(iter(node.transport._inbound))
            for _ in range(400):
                end.stream.write(_vote(1))
            await until(lambda: inbound._write_paused)
            node.transport.close_streams()
            await until(lambda: not node.transport._inbound)

    asyncio.run(main())


_POISON = {
    "garbage": b"GET /raft HTTP/1.1\r\n\r\n",
    "unknown rpc": b"\x09\x80",
    "nil entry": _append([None]),
    "garbage configuration": _append([_entry(5, Type=5)]),
    "a gap": _append([_entry(5), _entry(7)]),
    "entries that do not follow": _append([_entry(6)]),
    "a frame over the cap": _append([_entry(5, Data=bytes(5000))]),
    "a 4 GiB claim": b"\x01\x81\xa2ID\xdb\xff\xff\xff\xff",
    "a million empty arrays": b"\x01\x81\xa1x\xdd\x00\x0f\x42\x40" + b"\x90" * 1000,
}


@pytest.mark.parametrize("case", _POISON)
def test_poison_closes_its_own_stream_only(
    case: str, raw_client: Make, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limits = WireLimits(frame_size_bytes_max=4096)
        async with raw_client(limits=limits) as (node, dial):
            other, end = await dial(), await dial()
            other.stream.write(_vote(1))
            end.stream.write(_vote(2) + _POISON[case] + _vote(3))
            await until(lambda: end.is_closed)
            other.stream.write(_vote(4))
            await until(lambda: len(_answers(other.data, [1, 1])) == 2)
            # What came before was heard, what came behind was not.
            terms = {r.term for r in node.server.requests if isinstance(r, RequestVoteRequest)}
            assert terms == {1, 2, 4}
            assert not other.is_closed
            assert len(_logged(caplog)) == 1
            message = _logged(caplog)[0].getMessage()
            assert node.layer.accepted[1].peer in message

    asyncio.run(main())
    assert len(_logged(caplog)) == 1


@pytest.mark.parametrize(("octets", "records"), [(_HEARTBEAT[:-1], 1), (_HEARTBEAT, 0), (b"", 0)])
def test_a_truncated_request_is_logged(
    octets: bytes,
    records: int,
    raw_client: Make,
    until: Until,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with raw_client() as (node, dial):
            end = await dial()
            end.stream.write(_HEARTBEAT + octets)
            await until(lambda: end.data)
            end.stream.close()
            await until(lambda: node.server.gone == ["n9"])

    asyncio.run(main())
    assert len(_logged(caplog)) == records


@pytest.mark.parametrize("kind", ["memory", "tcp"])  # megabytes: not byte by byte
def test_a_frame_cut_short_is_not_held(raw_client: Make, until: Until) -> None:
    """Without waiting for the garbage collector."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            end = await dial()
            end.stream.write(_vote(1))
            await until(lambda: end.data)
            inbound = next(iter(node.transport._inbound))
            entries = encode_logs(5, 1, [bytes(1 << 20)] * 4)
            end.stream.write(_ENCODER.encode(7, 4, 1, entries, 4)[:-1])
            await until(lambda: inbound._decoder._entries._records)
            end.stream.close()
            await until(lambda: node.server.gone)
            assert inbound._decoder.buffered == 0
            assert inbound._decoder._entries._records == []

    asyncio.run(main())


def test_a_handler_that_fails_costs_its_stream(
    raw_client: Make, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with raw_client() as (node, dial):

            def broken(request: Request, rpc: Any) -> None:
                raise ZeroDivisionError((request, rpc))

            usual = node.server.on_request_vote
            node.server.on_request_vote = broken
            end = await dial()
            end.stream.write(_vote(1))
            await until(lambda: end.is_closed)
            node.server.on_request_vote = usual
            other = await dial()
            other.stream.write(_vote(2))
            await until(lambda: _answers(other.data, [1]))

    asyncio.run(main())
    assert [r.exc_info is not None for r in _logged(caplog)] == [True]


# -- who is gone


def test_the_last_stream_of_a_peer(raw_client: Make, until: Until) -> None:
    """Decision 7: told once, when no stream is left whose headers named the peer."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            ends = [await dial() for _ in range(3)]
            for end in ends:
                end.stream.write(_HEARTBEAT + _HEARTBEAT)
            stranger = await dial()
            stranger.stream.write(_vote(1, _HEADER._replace(id=ServerID("n8"))))
            silent = await dial()
            await until(lambda: len(node.server.requests) == 7)
            silent.stream.close()
            ends[0].stream.close()
            ends[1].stream.abort()
            await until(lambda: ends[0].is_closed and ends[1].is_closed)
            stranger.stream.close()
            await until(lambda: node.server.gone)
            assert node.server.gone == ["n8"]
            ends[2].stream.close()
            await until(lambda: len(node.server.gone) == 2)
            assert node.server.gone == ["n8", "n9"]

    asyncio.run(main())


def test_a_stream_that_changes_its_name(raw_client: Make, until: Until) -> None:
    """The last name counts; headers without an id change nothing."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            end = await dial()
            end.stream.write(
                _vote(1)
                + _vote(2, _HEADER._replace(id=ServerID("n8")))
                + _vote(3, _HEADER._replace(id=ServerID("")))
            )
            await until(lambda: len(node.server.requests) == 3)
            end.stream.close()
            await until(lambda: node.server.gone)
            assert node.server.gone == ["n8"]

    asyncio.run(main())


# -- snapshots


def _snapshot(size: int) -> bytes:
    return encode_request(
        InstallSnapshotRequest(_HEADER, 1, 7, _HEADER.address, 9, 6, None, b"", 3, size)
    )


def test_a_refused_snapshot_is_drained(raw_client: Make, until: Until, kind: str) -> None:
    """S42: answered before its body has come; the next request on the stream is understood."""
    size = 20_000 if "byte" in kind else 3_000_000

    async def main() -> None:
        async with raw_client() as (node, dial):

            async def refuse(body: Any, rpc: Any) -> None:
                rpc.fail("no")
                with pytest.raises(PeerUnreachableError, match="answered already"):
                    await anext(aiter(body))

            node.server.on_snapshot = refuse
            end = await dial()
            end.stream.write(_snapshot(size))
            await until(lambda: node.server.requests and not node.server.tasks)
            for _ in range(10):
                # Go answers behind the body; a peer that writes and then reads expects that.
                assert end.data == b""
                end.stream.write(b"\x05" * (size // 10))
                await asyncio.sleep(0)
            end.stream.write(_vote(1))
            await until(lambda: len(_answers(end.data, [2, 1])) == 2)
            assert _answers(end.data, [2, 1])[0] == Answer("no", None)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "tcp"])  # megabytes: not byte by byte
def test_a_snapshot_is_not_taken_faster_than_it_is_read(
    raw_client: Make, until: Until, kind: str
) -> None:
    size = 32 << 20

    async def main() -> None:
        async with raw_client() as (node, dial):
            gate = asyncio.Event()
            sizes: list[int] = []

            async def slow(body: Any, rpc: Any) -> None:
                async for chunk in body:
                    sizes.append(len(chunk))
                    await gate.wait()
                node.server.answer(node.server.requests[0], rpc)

            node.server.on_snapshot = slow
            end = await dial()
            received = 0
            stream = node.layer.accepted[0] if node.layer.accepted else None
            await until(lambda: node.layer.accepted)
            stream = node.layer.accepted[0]
            end.stream.write(_snapshot(size))
            for _ in range(32):
                end.stream.write(bytes(1 << 20))
            await until(lambda: sizes)
            inbound = next(iter(node.transport._inbound))
            while True:
                body = inbound._body
                before = received
                received = size - body._left
                if received == before:
                    break
                for _ in range(50):
                    await asyncio.sleep(0)
            # A mark of 1 MiB, and what one read of the socket brings on top.
            assert received < 4 << 20
            gate.set()
            await until(lambda: _answers(end.data, [2]))
            assert sum(sizes) == size
            assert not end.is_closed
            assert stream.peer

    asyncio.run(main())


def test_a_snapshot_cut_short(raw_client: Make, until: Until) -> None:
    """S41: the reader is told, and never sees an early end as the whole."""

    async def main() -> None:
        async with raw_client() as (node, dial):
            got: list[bytes] = []
            errors: list[Exception] = []

            async def read(body: Any, rpc: Any) -> None:
                del rpc
                try:
                    async for chunk in body:
                        got.append(chunk)  # noqa: PERF401 - what came before a failure counts
                except PeerUnreachableError as error:
                    errors.append(error)

            node.server.on_snapshot = read
            end = await dial()
            end.stream.write(_snapshot(1000) + bytes(900))
            await until(lambda: sum(map(len, got)) == 900)
            end.stream.close()
            await until(lambda: errors)
            assert "ended early" in str(errors[0])

    asyncio.run(main())


def test_entries_reach_the_server_as_they_were_sent(raw_client: Make, until: Until) -> None:
    async def main() -> None:
        async with raw_client() as (node, dial):
            records = encode_logs(5, 1, [b"a", b"b" * 5000, b""], 7)
            end = await dial()
            end.stream.write(_ENCODER.encode(7, 4, 1, records, 4))
            await until(lambda: node.server.requests)
            assert node.server.requests[0].entries.records == records

    asyncio.run(main())
