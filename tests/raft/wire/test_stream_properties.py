"""Random streams: any cut gives the same records, any garbage a typed error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import LogType, ServerAddress, ServerID
from rafthttp.raft.wire.appended_at import encode_time
from rafthttp.raft.wire.entries import decode_log, encode_log, entries_of
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
    Response,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from rafthttp.raft.wire.rpc import encode_failure, encode_request, encode_response
from rafthttp.raft.wire.stream import Answer, RequestDecoder, ResponseDecoder
from rafthttp.testing.fuzzing.rpc import peak_bytes, peak_bytes_max

_NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
_NAMES = st.text(max_size=20)
_BLOBS = st.one_of(st.none(), st.binary(max_size=50))
_FLAGS = st.booleans()
# Few headers, so that a stream often has the same one twice in a row.
_HEADERS = st.sampled_from(
    [
        RPCHeader(3, ServerID("n1"), ServerAddress("10.0.0.1:1")),
        RPCHeader(2, ServerID("n1"), ServerAddress("10.0.0.1:1")),
        RPCHeader(3, ServerID("node-2"), ServerAddress("é:2")),
        RPCHeader(0),
        RPCHeader(-7, ServerID("\udcff"), ServerAddress("x" * 300)),
    ]
)


@st.composite
def _appends(draw: st.DrawFn) -> AppendEntriesRequest:
    header = draw(_HEADERS)
    first = draw(st.one_of(st.integers(1, 300), st.integers(65_000, 66_000)))
    kinds = st.sampled_from([0, 0, 0, 0, 1, 4])
    term = draw(_NUMBERS)
    times = st.sampled_from([None, 0, 1_714_979_289_123_456_789])
    records = [
        encode_log(
            first + at,
            draw(st.one_of(st.just(term), _NUMBERS)),
            LogType(draw(kinds)),
            draw(st.binary(max_size=80)),
            draw(st.sampled_from([b"", b"", b"ext"])),
            draw(times),
            new_time_format=draw(_FLAGS),
        )
        for at in range(draw(st.integers(0, 12)))
    ]
    leader = draw(st.sampled_from([header.address, header.address, ServerAddress("old:1")]))
    return AppendEntriesRequest(
        header,
        draw(_NUMBERS),
        leader,
        first - 1,
        draw(_NUMBERS),
        entries_of(records),
        draw(_NUMBERS),
    )


_REQUESTS: st.SearchStrategy[Request] = st.one_of(
    _appends().map(lambda r: r if r.entries.records else r._replace(entries=_empty(r))),
    st.builds(
        RequestVoteRequest,
        _HEADERS,
        _NUMBERS,
        _NAMES.map(ServerAddress),
        _NUMBERS,
        _NUMBERS,
        _FLAGS,
    ),
    st.builds(RequestPreVoteRequest, _HEADERS, _NUMBERS, _NUMBERS, _NUMBERS),
    st.builds(TimeoutNowRequest, _HEADERS),
    st.builds(
        InstallSnapshotRequest,
        _HEADERS,
        st.integers(-3, 3),
        _NUMBERS,
        _NAMES.map(ServerAddress),
        _NUMBERS,
        _NUMBERS,
        _BLOBS,
        st.just(b""),
        _NUMBERS,
        st.integers(0, 200),
    ),
)
_RESPONSES: st.SearchStrategy[tuple[int, Response]] = st.one_of(
    st.tuples(
        st.just(0),
        st.builds(AppendEntriesResponse, _HEADERS, _NUMBERS, _NUMBERS, _FLAGS, _FLAGS),
    ),
    st.tuples(st.just(1), st.builds(RequestVoteResponse, _HEADERS, _NUMBERS, _FLAGS, _BLOBS)),
    st.tuples(st.just(2), st.builds(InstallSnapshotResponse, _HEADERS, _NUMBERS, _FLAGS)),
    st.tuples(st.just(3), st.builds(TimeoutNowResponse, _HEADERS)),
    st.tuples(st.just(4), st.builds(RequestPreVoteResponse, _HEADERS, _NUMBERS, _FLAGS)),
)


def _empty(request: AppendEntriesRequest) -> Any:
    return entries_of([])._replace(first=request.prev_log_index + 1)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@settings(deadline=None, max_examples=200)
@given(st.lists(_REQUESTS, max_size=6), st.lists(st.integers(0, 10**6), max_size=30), _FLAGS)
def test_requests_however_cut(requests: list[Request], cuts: list[int], bytewise: bool) -> None:
    data = b"".join(
        encode_request(r) + (b"B" * r.size if isinstance(r, InstallSnapshotRequest) else b"")
        for r in requests
    )
    decoder = RequestDecoder()
    seen: list[Request] = []
    body = b""
    for piece in [bytes([b]) for b in data] if bytewise else _cut(data, cuts):
        decoder.feed(piece)
        while (event := decoder.next()) is not None:
            if isinstance(event, bytes):
                body += event
            else:
                seen.append(event)
    assert seen == requests
    assert body == b"B" * sum(r.size for r in requests if isinstance(r, InstallSnapshotRequest))
    assert not decoder.mid_frame


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(_RESPONSES, st.sampled_from(["", "", "boom"]), _FLAGS), max_size=8),
    st.lists(st.integers(0, 10**6), max_size=30),
)
def test_answers_however_cut(
    answers: list[tuple[tuple[int, Response], str, bool]], cuts: list[int]
) -> None:
    decoder = ResponseDecoder()
    data = b""
    expected: list[Answer] = []
    for (rpc, response), error, nil in answers:
        decoder.expect(rpc)
        if nil and error:
            data += encode_failure(error)
            expected.append(Answer(error, None))
        else:
            data += encode_response(response, error)
            expected.append(Answer(error, response))
    seen: list[Answer] = []
    for piece in _cut(data, cuts):
        decoder.feed(piece)
        while (answer := decoder.next()) is not None:
            seen.append(answer)
    assert seen == expected


def _read_all(decoder: RequestDecoder | ResponseDecoder, data: bytes, cuts: list[int]) -> Any:
    """What comes out, and whether it ended in the typed error; anything else escapes."""
    seen: list[Any] = []
    body = 0
    try:
        for piece in _cut(data, cuts):
            decoder.feed(piece)
            while (event := decoder.next()) is not None:
                if isinstance(event, bytes):
                    body += len(event)
                else:
                    seen.append(event)
    except ProtocolError:
        return seen, body, True
    return seen, body, False


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 4), st.lists(st.integers(0, 300), max_size=10))
def test_garbage(data: bytes, rpc: int, cuts: list[int]) -> None:
    data = bytes([rpc]) + data
    assert _read_all(RequestDecoder(), data, []) == _read_all(RequestDecoder(), data, cuts)
    whole, cut = ResponseDecoder(), ResponseDecoder()
    for _ in range(300):
        whole.expect(rpc)
        cut.expect(rpc)
    assert _read_all(whole, data[1:], []) == _read_all(cut, data[1:], cuts)


@settings(deadline=None, max_examples=400)
@given(
    st.data(),
    st.lists(_REQUESTS, min_size=1, max_size=3),
    st.lists(st.integers(0, 10**6), max_size=10),
)
def test_flipped_bytes(data: st.DataObject, requests: list[Request], cuts: list[int]) -> None:
    """What is decoded of a damaged stream does not depend on the cuts, and can be sent on."""
    octets = bytearray(b"".join(encode_request(r) for r in requests))
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    whole = _read_all(RequestDecoder(), bytes(octets), [])
    assert whole == _read_all(RequestDecoder(), bytes(octets), cuts)
    for request in whole[0]:
        if isinstance(request, AppendEntriesRequest):
            assert entries_of(request.entries.records) == (
                request.entries if request.entries.records else request.entries._replace(first=1)
            )


# -- memory: what a peer claims costs nothing, and what it sends little more than its bytes


def _entries(*fields: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """An AppendEntries of entries that have these fields, as many as fit in so many bytes."""

    def make(size: int) -> bytes:
        one = len(bytes([0x80]) + b"".join(field(1 << 20) for field in fields))
        count = min(size // one, 65_536)
        entry = bytes([0x80 | len(fields)])
        records = [entry + b"".join(field(i) for field in fields) for i in range(1, count + 1)]
        return b"\x00\x81\xa7Entries\xdd" + count.to_bytes(4, "big") + b"".join(records)

    return make


def _index(at: int) -> bytes:
    return b"\xa5Index\xce" + at.to_bytes(4, "big")


def _own_term(at: int) -> bytes:
    return b"\xa4Term\xce" + (1 << 20 | at).to_bytes(4, "big")


_HUNGRY: dict[str, Callable[[int], bytes]] = {
    "entries of an index": _entries(_index),
    "entries of an index and a term": _entries(_index, _own_term),
    "entries of an old Go": _entries(
        lambda at: b"\xa4Data\xa2ab", _index, _own_term, lambda at: b"\xa4Type\x00"
    ),
    "entries with nils": _entries(
        lambda at: b"\xaaAppendedAt\xc0",
        lambda at: b"\xa4Data\xa2ab",
        lambda at: b"\xaaExtensions\xc0",
        _index,
        _own_term,
        lambda at: b"\xa4Type\x00",
    ),
    "whole entries": lambda size: encode_request(
        AppendEntriesRequest(
            RPCHeader(0),
            1,
            ServerAddress(""),
            0,
            0,
            entries_of(
                [encode_log(i, 9 + i, LogType.COMMAND, b"ab") for i in range(1, size // 70 + 2)]
            ),
            0,
        )
    ),
    "one value": lambda size: b"\x02\x81\xa5Peers\xdb\x0f\x00\x00\x00" + bytes(size),
    "nothing": lambda size: b"\x01\x81\xa1x\xdd\x00\xff\xff\xff" + b"\x90" * size,
}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(_HUNGRY)),
    st.sampled_from([1000, 30_000, 400_000]),
    st.sampled_from([2, 3, 17, 100, 4096, 1 << 30]),
)
@example("entries of an index", 400_000, 1 << 30)
@example("one value", 400_000, 2)
@example("one value", 400_000, 100)
@example("whole entries", 400_000, 3)
def test_memory_however_cut(kind: str, size: int, piece: int) -> None:
    data = _HUNGRY[kind](size)
    peak = peak_bytes(RequestDecoder(), _pieces(data, piece), keep=True)
    assert peak <= peak_bytes_max(len(data))


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _fill(one: bytes) -> Callable[[int], bytes]:
    """As many of them as fit in so many bytes."""
    return lambda size: one * (size // len(one))


_TERM: bytes = b"\xa4Term\x01"

# By name, the kind of answer that is expected, and the bytes that come.
_HUNGRY_ANSWERS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "error texts": (0, lambda size: encode_failure("x" * min(size // 4, 65_536)) * 4),
    "an error text beyond its cap": (0, lambda size: encode_failure("x" * (size + 70_000))),
    "a claimed error text": (0, lambda size: b"\xdb\x0f\x00\x00\x00" + bytes(size)),
    "peers": (
        1,
        lambda size: encode_response(RequestVoteResponse(RPCHeader(0), 1, False, bytes(size))),
    ),
    "claimed peers": (1, lambda size: b"\xa0\x81\xa5Peers\xdb\x0f\x00\x00\x00" + bytes(size)),
    "names": (
        4,
        lambda size: (
            encode_response(
                RequestPreVoteResponse(
                    RPCHeader(3, ServerID("x" * 1024), ServerAddress("y" * 1024)), 1, False
                )
            )
            * (size // 2100 + 1)
        ),
    ),
    "small answers": (0, _fill(b"\xa0\x80")),
    "small refusals": (2, _fill(b"\xa1x\xc0")),
    "whole answers": (
        0,
        _fill(encode_response(AppendEntriesResponse(RPCHeader(3), 1, 9, True, False))),
    ),
    "whole answers, each another": (
        0,
        lambda size: b"".join(
            encode_response(AppendEntriesResponse(RPCHeader(3), 1, 1 << 40 | at, True, False))
            for at in range(size // 90 + 1)
        ),
    ),
    "one field again and again": (
        3,
        lambda size: b"\xa0\xdf" + (size // 6).to_bytes(4, "big") + _TERM * (size // 6),
    ),
    "nothing": (3, lambda size: b"\xa0\x81\xa1x\xdd\x00\xff\xff\xff" + b"\x90" * size),
}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(_HUNGRY_ANSWERS)),
    st.sampled_from([1000, 30_000]),
    st.sampled_from([2, 3, 17, 100, 4096, 1 << 30]),
)
@example("peers", 400_000, 2)
@example("claimed peers", 400_000, 2)
@example("error texts", 200_000, 2)
@example("names", 200_000, 1 << 30)
@example("small answers", 100_000, 1 << 30)
@example("one field again and again", 400_000, 1 << 30)
@example("nothing", 400_000, 2)
def test_memory_of_answers_however_cut(kind: str, size: int, piece: int) -> None:
    rpc, make = _HUNGRY_ANSWERS[kind]
    data = make(size)
    decoder = ResponseDecoder()
    for _ in range(len(data)):
        decoder.expect(rpc)
    assert peak_bytes(decoder, _pieces(data, piece), keep=False) <= peak_bytes_max(len(data))


@pytest.mark.parametrize("kind", sorted(_HUNGRY_ANSWERS))
def test_hungry_answers_are_read(kind: str) -> None:
    """What is measured is what its name says: all is answers, or the typed error."""
    rpc, make = _HUNGRY_ANSWERS[kind]
    decoder = ResponseDecoder()
    data = make(30_000)
    for _ in range(len(data)):
        decoder.expect(rpc)
    seen, _, failed = _read_all(decoder, data, [])
    if "claimed" in kind:
        assert (seen, failed, decoder.mid_frame) in (([], True, True), ([], False, True))
    elif kind in ("an error text beyond its cap", "nothing"):
        assert (seen, failed) == ([], True)
    else:
        assert seen
        assert not failed
        assert not decoder.mid_frame


@pytest.mark.interpreted
def test_a_decoder_that_believes_what_is_claimed_is_seen() -> None:
    """The checker is checked."""

    class Believing(ResponseDecoder):
        def feed(self, data: bytes) -> None:
            self.room = bytes(0x0F000000)
            super().feed(data)

    decoder = Believing()
    decoder.expect(0)
    data = b"\xdb\x0f\x00\x00\x00x"
    assert peak_bytes(decoder, [data], keep=False) > peak_bytes_max(len(data))


# -- the same records in every form go-msgpack can read


_Form: TypeAlias = "bool | int | bytes | list[_Form] | dict[bytes, _Form] | None"


def _forms(draw: st.DrawFn, value: _Form) -> bytes:
    """`value` in a randomly chosen encoding that Go takes for the same."""
    if isinstance(value, bool) or value is None:
        return _packed(value)
    if isinstance(value, int):
        return draw(st.sampled_from(_integer_forms(value)))
    if isinstance(value, bytes):
        size = len(value)
        heads = [b"\xda" + size.to_bytes(2, "big"), b"\xdb" + size.to_bytes(4, "big")]
        heads += [b"\xc5" + size.to_bytes(2, "big"), b"\xc6" + size.to_bytes(4, "big")]
        if size < 256:
            heads += [b"\xd9" + bytes([size]), b"\xc4" + bytes([size])]
        if size < 32:
            heads.append(bytes([0xA0 | size]))
        return draw(st.sampled_from(heads)) + value
    if isinstance(value, list):
        return _array_form(draw, value)
    return _map_form(draw, value)


def _array_form(draw: st.DrawFn, items: list[_Form]) -> bytes:
    size = len(items)
    heads = [b"\xdc" + size.to_bytes(2, "big"), b"\xdd" + size.to_bytes(4, "big")]
    return draw(st.sampled_from(heads)) + b"".join(_forms(draw, item) for item in items)


def _map_form(draw: st.DrawFn, fields: dict[bytes, _Form]) -> bytes:
    pairs = [(key, _forms(draw, value)) for key, value in fields.items()]
    pairs = draw(st.permutations(pairs))
    if draw(_FLAGS):
        pairs = [*pairs, (b"Unknown", _packed(draw(_JSON)))]
    if draw(_FLAGS):
        # The same key before, with another value: the last one counts.
        pairs = [(b"Term", b"\x2a"), *pairs]
    head = draw(
        st.sampled_from(
            [b"\xde" + len(pairs).to_bytes(2, "big"), b"\xdf" + len(pairs).to_bytes(4, "big")]
        )
    )
    return head + b"".join(_forms(draw, key) + octets for key, octets in pairs)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def _packed(value: Any) -> bytes:
    octets = msgpack.packb(value)
    assert octets is not None
    return octets


def _integer_forms(value: int) -> list[bytes]:
    forms = [_packed(value)]
    for width, unsigned, signed in (
        (1, 0xCC, 0xD0),
        (2, 0xCD, 0xD1),
        (4, 0xCE, 0xD2),
        (8, 0xCF, 0xD3),
    ):
        if 0 <= value < 1 << 8 * width:
            forms.append(bytes([unsigned]) + value.to_bytes(width, "big"))
        if -(1 << 8 * width - 1) <= value < 1 << 8 * width - 1:
            forms.append(bytes([signed]) + value.to_bytes(width, "big", signed=True))
    return forms


@settings(deadline=None, max_examples=150)
@given(st.data(), _appends())
def test_every_form_go_reads(data: st.DataObject, request: AppendEntriesRequest) -> None:
    fields: dict[bytes, _Form] = {
        b"Addr": request.header.address.encode("utf-8", "surrogateescape"),
        b"ID": request.header.id.encode("utf-8", "surrogateescape"),
        b"ProtocolVersion": request.header.protocol_version,
        b"Term": request.term,
        b"Leader": request.leader.encode("utf-8", "surrogateescape"),
        b"PrevLogEntry": request.prev_log_index,
        b"PrevLogTerm": request.prev_log_term,
        b"LeaderCommitIndex": request.leader_commit,
        b"Entries": [
            {
                b"Index": log.index,
                b"Term": log.term,
                b"Type": int(log.type),
                b"Data": log.data,
                b"Extensions": log.extensions,
                b"AppendedAt": encode_time(log.appended_at_ns),
            }
            for log in map(decode_log, request.entries.records)
        ],
    }
    octets = data.draw(st.composite(lambda draw: b"\x00" + _forms(draw, fields))())
    decoder = RequestDecoder()
    decoder.feed(octets)
    seen = decoder.next()
    assert isinstance(seen, AppendEntriesRequest)
    assert seen._replace(entries=request.entries) == request
    assert list(map(decode_log, seen.entries.records)) == list(
        map(decode_log, request.entries.records)
    )
    for record in seen.entries.records:
        assert set(msgpack.unpackb(record, raw=True)) == {
            *(b"AppendedAt", b"Data", b"Extensions", b"Index", b"Term", b"Type")
        }
