"""Caps: what a lying peer can make this process hold, or compute."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

import msgpack
import pytest

from rafthttp.raft.config import Config
from rafthttp.raft.errors import ConfigError, FrameTooLargeError, ProtocolError
from rafthttp.raft.types import LogType, ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_log, encode_logs
from rafthttp.raft.wire.limits import WireLimits
from rafthttp.raft.wire.records import REQUEST_VOTE, AppendEntriesRequest, Request, RPCHeader
from rafthttp.raft.wire.rpc import AppendEncoder
from rafthttp.raft.wire.stream import RequestDecoder, ResponseDecoder

_ENCODER = AppendEncoder(RPCHeader(3, ServerID("n1"), ServerAddress("a:1")))


def _refused(octets: bytes, limits: WireLimits | None = None, piece_bytes: int = 0) -> str:
    decoder = RequestDecoder(limits or WireLimits())
    with pytest.raises(FrameTooLargeError) as caught:
        _feed(decoder, octets, piece_bytes)
    assert caught.value.option in str(caught.value)
    assert decoder.buffered == 0
    return caught.value.option


def _feed(decoder: RequestDecoder, octets: bytes, piece_bytes: int) -> None:
    for at in range(0, len(octets), piece_bytes or len(octets)):
        decoder.feed(octets[at : at + (piece_bytes or len(octets))])
        while decoder.next() is not None:
            pass


def test_caps_lie_above_what_peers_of_ours_and_of_go_send() -> None:
    limits = WireLimits()
    ours = Config(ServerID("n1"))
    assert limits.entries_max > ours.append_entries_max
    assert limits.entries_max > 1024
    assert limits.frame_size_bytes_max > ours.append_size_bytes_max + ours.entry_size_bytes_max
    with pytest.raises(ConfigError, match="depth_max"):
        WireLimits(depth_max=0)


@pytest.mark.parametrize(
    "octets",
    [
        b"\x01\x81\xa2ID\xdb\xff\xff\xff\xff",
        b"\x01\x81\xdb\xff\xff\xff\xff",
        b"\x01\x81\xa1x\xc6\xff\xff\xff\xff",
        b"\x01\x81\xa1x\xc9\xff\xff\xff\xff\x05",
        b"\x00\x81\xa7Entries\x91\x81\xa4Data\xdb\xff\xff\xff\xff",
        b"\x00\x81\xa7Entries\xdd\xff\xff\xff\xff",
        b"\x01\x81\xa1x\xdd\xff\xff\xff\xff",
        b"\x01\x81\xa1x\xdf\xff\xff\xff\xff",
        b"\x01\xdf\xff\xff\xff\xff",
    ],
)
def test_a_claim_of_4_gib_is_refused_at_once(octets: bytes) -> None:
    _refused(octets)
    _refused(octets, piece_bytes=1)


def test_a_long_id() -> None:
    name = b"n" * 1025
    assert _refused(b"\x01\x81\xa2ID\xda\x04\x01" + name) == "WireLimits.name_size_bytes_max"


def test_a_long_error_text() -> None:
    decoder = ResponseDecoder()
    decoder.expect(REQUEST_VOTE)
    decoder.feed(b"\xdb\x00\x10\x00\x00")
    with pytest.raises(FrameTooLargeError, match="text_size_bytes_max"):
        decoder.next()


def test_too_many_entries() -> None:
    records = encode_logs(1, 1, [b""] * 11)
    octets = _ENCODER.encode(1, 0, 0, records, 0)
    assert _refused(octets, WireLimits(entries_max=10)) == "WireLimits.entries_max"


@pytest.mark.parametrize("piece_bytes", [0, 1])
def test_a_frame_over_its_cap(piece_bytes: int) -> None:
    octets = _ENCODER.encode(1, 0, 0, encode_logs(1, 1, [b"x" * 100] * 5), 0)
    exact = WireLimits(frame_size_bytes_max=len(octets))
    decoder = RequestDecoder(exact)
    for _ in range(3):
        for at in range(0, len(octets), piece_bytes or len(octets)):
            decoder.feed(octets[at : at + (piece_bytes or len(octets))])
        assert decoder.next() is not None
    less = WireLimits(frame_size_bytes_max=len(octets) - 1)
    assert _refused(octets, less, piece_bytes) == "WireLimits.frame_size_bytes_max"
    assert _refused(octets + octets, less, piece_bytes) == "WireLimits.frame_size_bytes_max"


def test_a_snapshot_body_is_no_frame() -> None:
    decoder = RequestDecoder(WireLimits(frame_size_bytes_max=100))
    decoder.feed(b"\x02\x81\xa4Size\xd2\x00\x01\x00\x00")
    assert decoder.next() is not None
    got = 0
    for _ in range(64):
        decoder.feed(bytes(1024))
        piece = decoder.next()
        assert isinstance(piece, bytes)
        got += len(piece)
    assert got == 65536
    assert not decoder.mid_frame


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa0", b"\xdc\x00\x01"])
def test_deep_nesting(opener: bytes) -> None:
    assert _refused(b"\x01\x81\xa1x" + opener * 400 + b"\xc0") == "WireLimits.depth_max"
    decoder = RequestDecoder()
    decoder.feed(b"\x01\x81\xa1x" + opener * 32 + b"\xc0")
    assert decoder.next() is not None


_NOTHING = [
    # One field of a million empty arrays, claimed at once and in small arrays.
    b"\x01\x81\xa1x\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000,
    b"\x01\x81\xa1x\x9f" + (b"\xdc\xff\xff" + b"\x90" * 65535) * 15,
    # The same pair again and again, unknown and known.
    b"\x01\xdf\x00\x07\xa1\x20" + b"\xa0\x90" * 500_000,
    b"\x01\xdf\x00\x02\x00\x00" + b"\xa4Term\x01" * 131072,
    # A little too much in each of many entries.
    b"\x00\x81\xa7Entries\xdc\xff\xff"
    + b"".join(
        b"\x88\xa5Index\xce" + i.to_bytes(4, "big") + b"\xa0\x90" * 7 for i in range(1, 65536)
    ),
]


def _expect_refusal(octets: bytes) -> None:
    decoder = RequestDecoder()
    decoder.feed(octets)
    with pytest.raises(FrameTooLargeError, match="elements_max"):
        decoder.next()


@pytest.mark.parametrize("octets", _NOTHING)
def test_a_megabyte_of_nothing_is_cheap(octets: bytes) -> None:
    """C msgpack takes 143 ms and 80 MB for the first; here it is refused before it is built."""
    began = time.process_time()
    _expect_refusal(octets)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("octets", _NOTHING)
def test_a_megabyte_of_nothing_is_not_held(octets: bytes) -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    _expect_refusal(octets)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 4 << 20


def test_fields_that_entries_leave_out_are_counted() -> None:
    """What they are filled up with takes 17 times the memory of an entry of 8 bytes."""

    def of_an_old_go(count: int) -> bytes:
        records = [
            b"\x84\xa4Data\xa0\xa5Index\xcd" + at.to_bytes(2, "big") + b"\xa4Term\1\xa4Type\0"
            for at in range(1, count + 1)
        ]
        return b"\x00\x81\xa7Entries\xdc" + count.to_bytes(2, "big") + b"".join(records)

    decoder = RequestDecoder()
    decoder.feed(of_an_old_go(4096))
    assert decoder.next() is not None
    assert _refused(of_an_old_go(4097)) == "WireLimits.elements_max"


def test_sixty_four_entries_of_a_mebibyte_pass() -> None:
    records = [
        encode_log(index, 3, LogType.COMMAND, bytes([index]) * (1 << 20), b"", 7)
        for index in range(1, 65)
    ]
    octets = _ENCODER.encode(3, 0, 0, records, 0)
    decoder = RequestDecoder()
    request: Request | bytes | None = None
    for at in range(0, len(octets), 256 << 10):
        assert request is None
        decoder.feed(octets[at : at + (256 << 10)])
        request = decoder.next()
    assert isinstance(request, AppendEntriesRequest)
    assert request.entries.records == records


def test_a_closed_decoder_holds_nothing() -> None:
    """Without waiting for the garbage collector: RSS is back when a stream has ended."""
    records = encode_logs(1, 3, [bytes(1000)] * 4000)
    entries = _ENCODER.encode(3, 0, 0, records, 0)[:-1]
    one = _ENCODER.encode(3, 0, 0, encode_logs(1, 3, [bytes(4 << 20)]), 0)[:-1]
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for octets in (entries, one):
            before = tracemalloc.get_traced_memory()[0]
            decoder = RequestDecoder()
            for at in range(0, len(octets), 65536):
                decoder.feed(octets[at : at + 65536])
                assert decoder.next() is None
            held = tracemalloc.get_traced_memory()[0] - before
            decoder.close()
            left = tracemalloc.get_traced_memory()[0] - before
            assert held > 3 << 20
            assert left < 100_000
            with pytest.raises(ProtocolError, match="has ended"):
                decoder.next()
    finally:
        tracemalloc.stop()
        gc.enable()


def _byte_by_byte_seconds(octets: bytes) -> float:
    """CPU time to take a frame byte by byte; the best of three."""
    best = float("inf")
    for _ in range(3):
        decoder = RequestDecoder()
        began = time.process_time()
        for at in range(len(octets)):
            decoder.feed(octets[at : at + 1])
            decoder.next()
        best = min(best, time.process_time() - began)
    return best


def _of_entries(count: int) -> bytes:
    return _ENCODER.encode(1, 0, 0, encode_logs(1, 1, [b"x" * 32] * count), 0)


def _of_one_entry(count: int) -> bytes:
    return _ENCODER.encode(1, 0, 0, encode_logs(1, 1, [b"x" * 100 * count]), 0)


def _of_unknown(count: int) -> bytes:
    packed = msgpack.packb({"x": [[1, 2, 3]] * count * 5})
    assert packed is not None
    return b"\x01" + packed


@pytest.mark.parametrize("make", [_of_entries, _of_one_entry, _of_unknown])
def test_byte_by_byte_is_linear(make: Callable[[int], bytes]) -> None:
    """Eight times the bytes: eight times the work, not sixty-four."""
    small, large = make(100), make(800)
    ratio = len(large) / len(small)
    assert _byte_by_byte_seconds(large) < 2.5 * ratio * _byte_by_byte_seconds(small)
