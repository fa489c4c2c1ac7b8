"""Whole streams in both directions: golden bytes, what Go tolerates, what kills its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Log, LogType, ServerAddress, ServerID
from rafthttp.raft.wire.entries import decode_records, encode_log, entries_of
from rafthttp.raft.wire.records import (
    APPEND_ENTRIES,
    REQUEST_VOTE,
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
from rafthttp.raft.wire.rpc import AppendEncoder, encode_failure, encode_request, encode_response
from rafthttp.raft.wire.stream import Answer, RequestDecoder, ResponseDecoder

_HEADER = RPCHeader(3, ServerID("n1"), ServerAddress("a:1"))
_NS = 1_714_979_289_123_456_789
_TIME = encode_log(1, 1, LogType.NOOP, b"", b"", _NS)[13:28]

ReadRequests = Callable[..., tuple[list[Request], bytes]]
ReadAnswers = Callable[..., list[Answer]]


# -- golden pairs


def _request(rpc: int, fields: dict[str, Any]) -> Request:
    """The record Go's fields name; entries are compared apart."""
    header: RPCHeader = fields["header"]
    get = fields.get

    def name(key: str) -> ServerAddress:
        return ServerAddress((fields[key] or b"").decode())

    records: tuple[Callable[[], Request], ...] = (
        lambda: AppendEntriesRequest(
            header,
            fields["Term"],
            name("Leader"),
            fields["PrevLogEntry"],
            fields["PrevLogTerm"],
            entries_of([]),
            fields["LeaderCommitIndex"],
        ),
        lambda: RequestVoteRequest(
            header,
            fields["Term"],
            name("Candidate"),
            fields["LastLogIndex"],
            fields["LastLogTerm"],
            fields["LeadershipTransfer"],
        ),
        lambda: InstallSnapshotRequest(
            header,
            fields["SnapshotVersion"],
            fields["Term"],
            name("Leader"),
            fields["LastLogIndex"],
            fields["LastLogTerm"],
            get("Peers"),
            fields["Configuration"],
            fields["ConfigurationIndex"],
            fields["Size"],
        ),
        lambda: TimeoutNowRequest(header),
        lambda: RequestPreVoteRequest(
            header, fields["Term"], fields["LastLogIndex"], fields["LastLogTerm"]
        ),
    )
    return records[rpc]()


def _response(rpc: int, fields: dict[str, Any]) -> Response:
    header: RPCHeader = fields["header"]
    records: tuple[Callable[[], Response], ...] = (
        lambda: AppendEntriesResponse(
            header, fields["Term"], fields["LastLog"], fields["Success"], fields["NoRetryBackoff"]
        ),
        lambda: RequestVoteResponse(header, fields["Term"], fields["Granted"], fields["Peers"]),
        lambda: InstallSnapshotResponse(header, fields["Term"], fields["Success"]),
        lambda: TimeoutNowResponse(header),
        lambda: RequestPreVoteResponse(header, fields["Term"], fields["Granted"]),
    )
    return records[rpc]()


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("piece_bytes", [0, 1, 7])
def test_golden_requests(
    golden: Any, read_requests: ReadRequests, piece_bytes: int, times: int
) -> None:
    """Repeated, so that what is predicted from the frame before is read the same way."""
    requests, body = read_requests(golden.request * times, piece_bytes)
    assert len(requests) == times
    for request in requests:
        expected = _request(golden.rpc, golden.request_fields)
        if isinstance(request, AppendEntriesRequest):
            logs: list[Log] = golden.request_fields["Entries"] or []
            assert decode_records(request.entries.records) == logs
            assert request.entries.logs == logs
            assert request.entries.terms == [log.term for log in logs]
            assert request.entries.first == (logs[0].index if logs else request.prev_log_index + 1)
            assert request._replace(entries=entries_of([])) == expected
        else:
            assert request == expected
    body_size = len(body) // times
    assert b"".join(encode_request(r) + body[:body_size] for r in requests) == (
        golden.request * times
    )
    if isinstance(requests[0], InstallSnapshotRequest):
        assert body_size == requests[0].size > 0


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("piece_bytes", [0, 1, 7])
def test_golden_responses(
    golden: Any, read_answers: ReadAnswers, piece_bytes: int, times: int
) -> None:
    answers = read_answers(golden.response * times, [golden.rpc] * times, piece_bytes)
    assert len(answers) == times
    for error, response in answers:
        assert error == golden.error
        if golden.has_nil_body:
            assert response is None
            assert encode_failure(error) == golden.response
        else:
            assert response is not None
            assert response == _response(golden.rpc, golden.response_fields)
            assert encode_response(response, error) == golden.response


def test_all_goldens_on_one_stream(
    goldens: list[Any], read_requests: ReadRequests, read_answers: ReadAnswers
) -> None:
    data = b"".join(golden.request for golden in goldens)
    for piece_bytes in (0, 1, 13):
        requests, _ = read_requests(data, piece_bytes)
        assert [encode_request(r)[0] for r in requests] == [golden.rpc for golden in goldens]
        answers = read_answers(
            b"".join(golden.response for golden in goldens),
            [golden.rpc for golden in goldens],
            piece_bytes,
        )
        assert [answer.error for answer in answers] == [golden.error for golden in goldens]


# -- responses


def test_responses_go_tolerates(read_answers: ReadAnswers) -> None:
    body = encode_response(RequestVoteResponse(_HEADER, 7, True))[1:]
    granted = RequestVoteResponse(_HEADER, 7, True)
    for error, text in (
        (b"\xc0", ""),
        (b"\xa0", ""),
        (b"\xc4\x00", ""),
        (b"\xd9\x04boom", "boom"),
        (b"\xc4\x04boom", "boom"),
        (b"\xa2\xff!", "\ufffd!"),
    ):
        for piece_bytes in (0, 1):
            assert read_answers(error + body, [REQUEST_VOTE], piece_bytes) == [
                Answer(text, granted)
            ]
    zero = RequestVoteResponse(RPCHeader(0), 0, False)
    assert read_answers(b"\xa0\xc0", [REQUEST_VOTE]) == [Answer("", zero)]
    assert read_answers(b"\xa0\x80", [REQUEST_VOTE]) == [Answer("", zero)]


def test_predicted_responses(read_answers: ReadAnswers) -> None:
    other = RPCHeader(3, ServerID("n2"), ServerAddress("b:2"))
    responses = [
        AppendEntriesResponse(_HEADER, 7, 1, True, False),
        AppendEntriesResponse(_HEADER, 7, 70_000, True, False),
        AppendEntriesResponse(_HEADER, 300, 2**40, False, True),
        AppendEntriesResponse(_HEADER._replace(protocol_version=2), 7, 1, True, False),
        AppendEntriesResponse(other, 7, 5, True, False),
        AppendEntriesResponse(other, 7, 6, True, False),
        AppendEntriesResponse(RPCHeader(0), 7, 6, True, False),
    ]
    octets = b"".join(encode_response(response) for response in responses)
    for piece_bytes in (0, 1, 50):
        answers = read_answers(octets, [APPEND_ENTRIES] * len(responses), piece_bytes)
        assert [answer.response for answer in answers] == responses


@pytest.mark.parametrize(
    "octets",
    [
        b"\x01",
        b"\x90",
        b"\xc1",
        b"\xa0\x01",
        b"\xa0\x90",
        b"\xa0\xa1x",
        b"\xa0\x81\xa4Term\xff",
        b"\xa0\x81\xa7Granted\x05",
    ],
)
@pytest.mark.parametrize("piece_bytes", [0, 1])
def test_garbage_answers(octets: bytes, piece_bytes: int, read_answers: ReadAnswers) -> None:
    with pytest.raises(ProtocolError):
        read_answers(octets, [REQUEST_VOTE], piece_bytes)


def test_an_answer_to_no_request() -> None:
    decoder = ResponseDecoder()
    decoder.feed(b"\xa0")
    with pytest.raises(ProtocolError, match="no request"):
        decoder.next()


# -- ends


def _reads(decoder: RequestDecoder, octets: bytes) -> tuple[int, bool]:
    """How many events these bytes give, and whether a frame is left open."""
    decoder.feed(octets)
    count = sum(1 for _ in iter(decoder.next, None))
    return count, decoder.mid_frame


def test_a_frame_cut_short_is_seen(golden: Any) -> None:
    decoder = RequestDecoder()
    assert _reads(decoder, golden.request[:-1])[1]
    count, is_open = _reads(decoder, golden.request[-1:])
    assert count
    assert not is_open


def test_snapshot_bytes_come_as_they_arrive(load_golden: Callable[[str], Any]) -> None:
    octets = load_golden("install_snapshot_40000").request
    decoder = RequestDecoder()
    decoder.feed(octets[:10_000])
    assert isinstance(decoder.next(), InstallSnapshotRequest)
    first = decoder.next()
    assert isinstance(first, bytes)
    assert decoder.next() is None
    decoder.feed(octets[10_000:] + octets[:1])
    rest = decoder.next()
    assert isinstance(rest, bytes)
    assert len(first) + len(rest) == 40_000
    assert first + rest == octets[-40_000:]
    assert decoder.next() is None
    assert decoder.mid_frame


def test_requests_wait_behind_each_other() -> None:
    """Nothing is decoded before it is asked for: backpressure needs no second queue."""
    frame = AppendEncoder(_HEADER).encode(2, 4, 2, [], 3)
    decoder = RequestDecoder()
    decoder.feed(frame * 10)
    assert decoder.next() is not None
    assert decoder.buffered == 9 * len(frame)
