"""Requests no Go node sends: what it tolerates, what kills its connection, what crashes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import LogType, ServerAddress, ServerID
from rafthttp.raft.wire.entries import decode_records, encode_log, encode_logs, entries_of
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    InstallSnapshotRequest,
    Request,
    RequestVoteRequest,
    RPCHeader,
)
from rafthttp.raft.wire.rpc import AppendEncoder, encode_request
from rafthttp.raft.wire.stream import Answer, RequestDecoder, check_append

_HEADER = RPCHeader(3, ServerID("n1"), ServerAddress("a:1"))
_NS = 1_714_979_289_123_456_789
_TIME = encode_log(1, 1, LogType.NOOP, b"", b"", _NS)[13:28]

ReadRequests = Callable[..., tuple[list[Request], bytes]]
ReadAnswers = Callable[..., list[Answer]]


# -- what Go tolerates


def _entry(**changes: Any) -> dict[str, Any]:
    return {
        "AppendedAt": _TIME,
        "Data": b"set k v",
        "Extensions": None,
        "Index": 5,
        "Term": 2,
        "Type": 0,
    } | changes


def _append(entries: Any, **changes: Any) -> dict[str, Any]:
    return {
        "Addr": b"a:1",
        "Entries": entries,
        "ID": b"n1",
        "Leader": b"a:1",
        "LeaderCommitIndex": 3,
        "PrevLogEntry": 4,
        "PrevLogTerm": 2,
        "ProtocolVersion": 3,
        "Term": 2,
    } | changes


def _pack(value: Any, *, new: bool = False) -> bytes:
    packed = msgpack.packb(value, use_bin_type=new)
    assert packed is not None
    return packed


_CANONICAL = encode_log(5, 2, LogType.COMMAND, b"set k v", b"", _NS)
_EXPECTED = AppendEntriesRequest(
    _HEADER, 2, ServerAddress("a:1"), 4, 2, entries_of([_CANONICAL]), 3
)


def _decode(read_requests: ReadRequests, octets: bytes) -> Request:
    """Decode whole and byte by byte; both must agree."""
    whole, _ = read_requests(octets)
    pieces, _ = read_requests(octets, 1)
    assert len(whole) == 1
    assert whole == pieces
    return whole[0]


def _reverse(value: Any) -> Any:
    return dict(reversed(value.items()))


_TOLERATED = {
    "as Go writes it": b"\x00" + _pack(_append([_entry()])),
    "str8 and bin8": b"\x00" + _pack(_append([_entry()]), new=True),
    "fields in any order": b"\x00" + _pack(_reverse(_append([_reverse(_entry())]))),
    "unknown fields": b"\x00"
    + _pack(
        _append(
            [_entry(New={"a": [1.5, None, [True]]})],
            More=[{}, "x", -1, 2**63, msgpack.ExtType(5, b"abc"), msgpack.ExtType(6, b"12345")],
            Empty={},
            Big=b"x" * 70_000,
        )
    ),
    "a key twice, the last wins": b"\x00\x8a\xa4Term\x09" + _pack(_append([_entry()]))[1:],
    "map16 and array16": b"\x00\xde\x00\x09"
    + _pack(_append([_entry()]))[1:].replace(
        b"\xa7Entries\x91\x86", b"\xa7Entries\xdc\x00\x01\xde\x00\x06"
    ),
    "map32 and array32": b"\x00\xdf\x00\x00\x00\x09"
    + _pack(_append([_entry()]))[1:].replace(
        b"\xa7Entries\x91\x86", b"\xa7Entries\xdd\x00\x00\x00\x01\xdf\x00\x00\x00\x06"
    ),
    "long keys and bytes": b"\x00"
    + _pack(_append([_entry()]))
    .replace(b"\xa4Data\xa7", b"\xdb\x00\x00\x00\x04Data\xda\x00\x07")
    .replace(b"\xa2ID\xa2", b"\xda\x00\x02ID\xdb\x00\x00\x00\x02")
    .replace(b"\xa6Leader\xa3", b"\xd9\x06Leader\xc6\x00\x00\x00\x03"),
    "wide integers": b"\x00"
    + _pack(_append([_entry()]))
    .replace(b"\xa5Index\x05", b"\xa5Index\xcf" + (5).to_bytes(8, "big"))
    .replace(b"\xa4Type\x00", b"\xa4Type\xcd\x00\x00")
    .replace(b"PrevLogEntry\x04", b"PrevLogEntry\xd2\x00\x00\x00\x04")
    .replace(b"ProtocolVersion\x03", b"ProtocolVersion\xcc\x03"),
    "the time as bin8": b"\x00"
    + _pack(_append([_entry()])).replace(b"\xaf" + _TIME, b"\xc4\x0f" + _TIME),
    "the time with a zone": b"\x00" + _pack(_append([_entry(AppendedAt=_TIME)])),
}


@pytest.mark.parametrize("case", _TOLERATED)
def test_tolerated(case: str, read_requests: ReadRequests) -> None:
    assert _decode(read_requests, _TOLERATED[case]) == _EXPECTED


@pytest.mark.parametrize("case", _TOLERATED)
def test_tolerated_in_the_middle_of_a_stream(case: str, read_requests: ReadRequests) -> None:
    """Behind a frame that lets the decoder predict, and before another."""
    usual = _TOLERATED["as Go writes it"]
    requests, _ = read_requests(usual + _TOLERATED[case] + usual)
    assert requests == [_EXPECTED] * 3


def test_missing_and_nil_are_zero(read_requests: ReadRequests) -> None:
    zero = AppendEntriesRequest(RPCHeader(0), 0, ServerAddress(""), 0, 0, entries_of([]), 0)
    assert _decode(read_requests, b"\x00\x80") == zero
    assert _decode(read_requests, b"\x00\xc0") == zero
    assert _decode(read_requests, b"\x00" + _pack(dict.fromkeys(_append([])))) == zero
    vote = RequestVoteRequest(RPCHeader(0), 0, ServerAddress(""), 0, 0, False)
    assert _decode(read_requests, b"\x01\x80") == vote
    assert _decode(read_requests, b"\x01\x81\xb2LeadershipTransfer\xc0") == vote
    # go-msgpack takes 0 and 1 for a bool.
    assert _decode(read_requests, b"\x01\x81\xb2LeadershipTransfer\x01") == vote._replace(
        leadership_transfer=True
    )
    snapshot = _decode(read_requests, b"\x02\x80")
    assert snapshot == InstallSnapshotRequest(
        RPCHeader(0), 0, 0, ServerAddress(""), 0, 0, None, b"", 0, 0
    )


def test_an_empty_map_is_an_empty_array(read_requests: ReadRequests) -> None:
    """go-msgpack reads a map into a slice as twice as many elements: of none, none."""
    request = _decode(read_requests, b"\x00" + _pack(_append({})))
    assert request == _decode(read_requests, b"\x00" + _pack(_append([])))


def test_an_entry_with_only_an_index(read_requests: ReadRequests) -> None:
    request = _decode(read_requests, b"\x00" + _pack(_append([{"Index": 5}])))
    assert isinstance(request, AppendEntriesRequest)
    assert request.entries.records == [encode_log(5, 0, LogType.COMMAND, b"")]


@pytest.mark.parametrize(
    "time",
    [
        _TIME[:13] + (120).to_bytes(2, "big"),
        b"\x02" + _TIME[1:] + b"\x00",
        encode_log(1, 1, LogType.NOOP, b"", b"", _NS, new_time_format=True)[13:21],
        (1_714_979_289).to_bytes(4, "big"),
        (123_456_789).to_bytes(4, "big") + (1_714_979_289).to_bytes(8, "big"),
    ],
)
def test_a_time_of_any_form_is_kept_as_it_is(time: bytes, read_requests: ReadRequests) -> None:
    octets = b"\x00" + _pack(_append([_entry(AppendedAt=time)]))
    request = _decode(read_requests, octets)
    assert encode_request(request) == octets


def test_a_timestamp_extension_becomes_raw(read_requests: ReadRequests) -> None:
    octets = b"\x00" + _pack(_append([_entry(AppendedAt=msgpack.Timestamp.from_unix_nano(_NS))]))
    request = _decode(read_requests, octets)
    assert isinstance(request, AppendEntriesRequest)
    assert decode_records(request.entries.records)[0].appended_at_ns == _NS
    assert b"\xd7" not in request.entries.records[0]


@pytest.mark.parametrize("case", ["str8 and bin8", "wide integers", "the time as bin8"])
def test_what_is_stored_is_fit_for_a_go_node(case: str, read_requests: ReadRequests) -> None:
    """Go's connection dies of a time in bin8; a follower of ours may lead later and send it on."""
    request = _decode(read_requests, _TOLERATED[case])
    assert isinstance(request, AppendEntriesRequest)
    assert request.entries.records == [_CANONICAL]


def test_empty_data_and_nil_data_are_kept_apart(read_requests: ReadRequests) -> None:
    for data in (b"", None):
        octets = b"\x00" + _pack(_append([_entry(Data=data)]))
        request = _decode(read_requests, octets)
        assert encode_request(request) == octets


def test_prediction_survives_every_change_between_entries(read_requests: ReadRequests) -> None:
    """Each entry differs from the one before in one way; all come out as they went in."""
    entries = [
        _entry(Index=120),
        _entry(Index=121),
        _entry(Index=122, Data=b"x" * 40),
        _entry(Index=123, Data=b"x" * 70_000),
        _entry(Index=124, AppendedAt=_TIME[:9] + bytes(4) + _TIME[13:]),
        _entry(Index=125, Term=300),
        _entry(Index=126, Term=300, Type=4),
        _entry(Index=127, Term=300),
        _entry(Index=128, Term=300, Extensions=b"\xff\x00"),
        _entry(Index=129, Term=300, Extensions=b"\xff\x00"),
        _entry(Index=130, Term=300, Extensions=b"e" * 100),
        _entry(Index=131, Term=300, Data=None),
        _entry(Index=132, Term=300, Data=b""),
        _entry(Index=133, Term=300, AppendedAt=_TIME[:13] + b"\x00\x78"),
        _entry(Index=134, Term=300, AppendedAt=(7).to_bytes(4, "big")),
        _entry(Index=135, Term=300, AppendedAt=(8).to_bytes(4, "big")),
    ]
    octets = b"\x00" + _pack(_append(entries, PrevLogEntry=119))
    frames = octets + octets
    for piece_bytes in (0, 1, 1000):
        requests, _ = read_requests(frames, piece_bytes)
        assert b"".join(encode_request(request) for request in requests) == frames


@pytest.mark.parametrize("first", [126, 254, 65_534, 2**32 - 2])
def test_prediction_across_widths_of_the_index(first: int, read_requests: ReadRequests) -> None:
    records = encode_logs(first, 2, [b"abc"] * 6, _NS)
    octets = AppendEncoder(_HEADER).encode(2, first - 1, 1, records, 3)
    request = _decode(read_requests, octets)
    assert isinstance(request, AppendEntriesRequest)
    assert request.entries == entries_of(records)
    assert request.entries.first == first


def test_a_changed_header_on_one_stream(read_requests: ReadRequests) -> None:
    other = RPCHeader(2, ServerID("n2"), ServerAddress("b:2"))
    frames = [
        AppendEncoder(_HEADER).encode(2, 4, 2, [], 3),
        AppendEncoder(_HEADER._replace(protocol_version=2)).encode(2, 4, 2, [], 3),
        AppendEncoder(_HEADER._replace(id=ServerID("n9"))).encode(2, 4, 2, [], 3),
        AppendEncoder(other).encode(2, 4, 2, [], 3),
        AppendEncoder(_HEADER).encode(2, 4, 2, [], 3),
    ]
    requests, _ = read_requests(b"".join(frames))
    assert [encode_request(request) for request in requests] == frames


# -- what kills or crashes a Go node


_KILLS = {
    "unknown rpc": b"\x05\x80",
    "rpc byte of another kind": b"\xcc\x00\x80",
    "no map": b"\x01\x90",
    "a string for the map": b"\x01\xa1x",
    "integer key": b"\x01\x81\x01\x01",
    "nil key": b"\x01\x81\xc0\x01",
    "c1": b"\x01\x81\xa1x\xc1",
    "negative term": b"\x01\x81\xa4Term\xff",
    "negative term, int64": b"\x01\x81\xa4Term\xd3" + b"\xff" * 8,
    "float term": b"\x01\x81\xa4Term\xcb" + bytes(8),
    "string term": b"\x01\x81\xa4Term\xa11",
    "bool term": b"\x01\x81\xa4Term\xc3",
    "array term": b"\x01\x81\xa4Term\x90",
    "integer for a flag": b"\x01\x81\xb2LeadershipTransfer\x02",
    "string for a flag": b"\x01\x81\xb2LeadershipTransfer\xa1x",
    "integer for an id": b"\x01\x81\xa2ID\x01",
    "version over int64": b"\x01\x81\xafProtocolVersion\xcf" + b"\xff" * 8,
    "entries as a map": b"\x00" + _pack(_append({"a": _entry()})),
    "entries as a string": b"\x00" + _pack(_append("x")),
    "nil entry": b"\x00" + _pack(_append([None])),
    "integer entry": b"\x00" + _pack(_append([7])),
    "entry without index": b"\x00" + _pack(_append([{}])),
    "type over 255": b"\x00" + _pack(_append([_entry(Type=256)])),
    "type Go panics on": b"\x00" + _pack(_append([_entry(Type=6)])),
    "garbage configuration": b"\x00" + _pack(_append([_entry(Type=5)])),
    "empty configuration data": b"\x00" + _pack(_append([_entry(Type=5, Data=None)])),
    "integer data": b"\x00" + _pack(_append([_entry(Data=1)])),
    "integer time": b"\x00" + _pack(_append([_entry(AppendedAt=1)])),
    "float time": b"\x00" + _pack(_append([_entry(AppendedAt=1.5)])),
    "text time": b"\x00" + _pack(_append([_entry(AppendedAt="2024-05-06T07:08:09Z")])),
    "empty time": b"\x00" + _pack(_append([_entry(AppendedAt=b"")])),
    "time of an unknown version": b"\x00" + _pack(_append([_entry(AppendedAt=b"\x03" * 15)])),
    "time of an unknown version, where one is predicted": b"\x00"
    + _pack(_append([_entry(), _entry(Index=6, AppendedAt=b"\x03" + _TIME[1:])])),
    "another extension for the time": b"\x00"
    + _pack(_append([_entry(AppendedAt=msgpack.ExtType(5, b"1234"))])),
    "a gap between entries": b"\x00" + _pack(_append([_entry(), _entry(Index=7)])),
    "the same entry twice": b"\x00" + _pack(_append([_entry(), _entry()])),
    "snapshot of a negative size": b"\x02\x81\xa4Size\xff",
    "snapshot with a garbage configuration": b"\x02\x81\xadConfiguration\xa7garbage",
}


@pytest.mark.parametrize("piece_bytes", [0, 1])
@pytest.mark.parametrize("case", _KILLS)
def test_kills_the_stream(case: str, piece_bytes: int, read_requests: ReadRequests) -> None:
    with pytest.raises(ProtocolError):
        read_requests(_KILLS[case], piece_bytes)


@pytest.mark.parametrize("case", _KILLS)
def test_kills_a_stream_that_predicts(case: str, read_requests: ReadRequests) -> None:
    """What was whole before comes out; then the error, every time."""
    decoder = RequestDecoder()
    usual = _TOLERATED["as Go writes it"]
    requests, _ = read_requests(usual + usual, 0, decoder)
    assert requests == [_EXPECTED] * 2
    decoder.feed(_KILLS[case])
    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.next()


def test_entries_that_do_not_follow_their_predecessor(load_golden: Callable[[str], Any]) -> None:
    check_append(_EXPECTED)
    check_append(_EXPECTED._replace(entries=entries_of([]), prev_log_index=9))
    with pytest.raises(ProtocolError, match="behind entry 5"):
        check_append(_EXPECTED._replace(prev_log_index=5))
