"""The two directions of an RPC stream, fed with anything in any cut.

`check_requests_memory` and `check_answers_memory` are for a test: to measure takes long.

Promises: records or a `ProtocolError`; the same ones whatever the cuts; after an error nothing but
that error, and nothing held; what was decoded can be encoded and decoded to the same.
"""

from __future__ import annotations

import tracemalloc
from typing import Any, Final

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, LogType, Server, ServerAddress, ServerID, Suffrage
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import encode_log, entries_of
from rafthttp.raft.wire.limits import WireLimits
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
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)
from rafthttp.raft.wire.rpc import encode_failure, encode_request, encode_response
from rafthttp.raft.wire.stream import RequestDecoder, ResponseDecoder
from rafthttp.testing.fuzzing.target import HEAD_SIZE_BYTES, Target, choices, cuttings

_ANSWERS: Final = 64
_HEADER: Final = RPCHeader(3, ServerID("n1"), ServerAddress("10.0.0.1:1"))
# Small, so that inputs of a fuzzer's size reach each of them.
_TIGHT: Final = WireLimits(4096, 16, 64, 4, 32, 64)


def _read(decoder: RequestDecoder | ResponseDecoder, pieces: list[bytes]) -> tuple[Any, ...]:
    """What comes out of it, how many bytes of bodies, the error, and whether a frame is open."""
    seen: list[Any] = []
    body = bytearray()
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (event := decoder.next()) is not None:
                if isinstance(event, bytes):
                    assert event, "a piece of a body is empty"
                    body += event
                else:
                    seen.append(event)
    except ProtocolError as error:
        assert decoder.buffered == 0, "a decoder that failed holds bytes"
        same = _error_of(decoder) is error
        assert same, "a decoder that failed goes on, or fails differently"
        return seen, bytes(body), True, False
    return seen, bytes(body), False, decoder.mid_frame


def _error_of(decoder: RequestDecoder | ResponseDecoder) -> ProtocolError | None:
    try:
        decoder.next()
    except ProtocolError as error:
        return error
    return None


def check_requests(data: bytes) -> None:
    """What a server reads."""
    head, stream = choices(data)
    limits = _TIGHT if head[0] & 1 else WireLimits()
    results = [
        _read(RequestDecoder(limits), pieces) for pieces in cuttings(stream, head[1] << 8 | head[2])
    ]
    for other in results[1:]:
        assert other == results[0], "the cuts decide what is read"
    for request in results[0][0]:
        _check_again(request)


def _check_again(request: Request) -> None:
    decoder = RequestDecoder()
    decoder.feed(encode_request(request))
    again = decoder.next()
    if isinstance(request, AppendEntriesRequest) and not request.entries.records:
        request = request._replace(
            entries=request.entries._replace(first=request.prev_log_index + 1)
        )
    assert again == request, "what was read cannot be sent on"


def check_answers(data: bytes) -> None:
    """What a client reads, which expects the answers that the input chooses."""
    head, stream = choices(data)
    results: list[tuple[Any, ...]] = []
    for pieces in cuttings(stream, head[1] << 8 | head[2]):
        decoder = _expecting(head, _TIGHT if head[3] & 1 else WireLimits(), _ANSWERS)
        results.append(_read(decoder, pieces))
    for other in results[1:]:
        assert other == results[0], "the cuts decide what is read"
    for answer in results[0][0]:
        assert (answer.response is not None) or answer.error, "an answer without any content"


def peak_bytes(
    decoder: RequestDecoder | ResponseDecoder, pieces: list[bytes], *, keep: bool
) -> int:
    """The most that a decoder allocates while it is fed and asked for all that it has.

    With tracemalloc, which sees the peak between two calls to the byte, and counts all that this
    decoder allocates. Empties `pieces`: nobody else holds what was fed, so that it counts, too.

    Args:
        decoder: a fresh one.
        pieces: of the stream.
        keep: what was handed out is held to the end, as a server holds requests until the disk has
            them. An answer ends one call, and is gone.
    """
    pieces.reverse()
    seen: list[object] = []
    tracemalloc.start()
    try:
        try:
            while pieces:
                decoder.feed(bytes(bytearray(pieces.pop())))
                while (event := decoder.next()) is not None:
                    if keep:
                        seen.append(event)
        except ProtocolError:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak_bytes_max(size: int) -> int:
    """What so many bytes of a stream may take."""
    return 4 * size + (1 << 20)


def check_requests_memory(data: bytes) -> None:
    """What a server reads costs little more than its bytes, whatever they claim."""
    head, stream = choices(data)
    for pieces in cuttings(stream, head[1] << 8 | head[2]):
        peak = peak_bytes(RequestDecoder(), pieces, keep=True)
        assert peak <= peak_bytes_max(len(stream)), f"{peak} bytes for {len(stream)}"


def check_answers_memory(data: bytes) -> None:
    """Likewise, what a client reads."""
    head, stream = choices(data)
    for pieces in cuttings(stream, head[1] << 8 | head[2]):
        peak = peak_bytes(_expecting(head, WireLimits(), len(stream)), pieces, keep=False)
        assert peak <= peak_bytes_max(len(stream)), f"{peak} bytes for {len(stream)}"


def _expecting(head: bytes, limits: WireLimits, answers: int) -> ResponseDecoder:
    """Answers of one kind, or of all of them in turn."""
    decoder = ResponseDecoder(limits)
    for number in range(answers):
        decoder.expect(head[0] % 5 if head[0] < 128 else number % 5)
    return decoder


def _requests() -> list[bytes]:
    configuration = encode_configuration(
        Configuration((Server(ServerID("n1"), ServerAddress("10.0.0.1:1"), Suffrage.VOTER),))
    )
    records = [
        encode_log(7, 2, LogType.COMMAND, b"x" * 20, b"", 1_714_979_289_123_456_789),
        encode_log(8, 2, LogType.COMMAND, b"y" * 40, b"", 1_714_979_289_123_456_999),
        encode_log(9, 2, LogType.CONFIGURATION, configuration),
        encode_log(10, 2, LogType.COMMAND, b"", b"ext", None, new_time_format=True),
    ]
    append = AppendEntriesRequest(_HEADER, 2, _HEADER.address, 6, 2, entries_of(records), 5)
    empty = append._replace(entries=entries_of([])._replace(first=7))
    requests: list[Request] = [
        append,
        empty,
        RequestVoteRequest(_HEADER, 3, ServerAddress("10.0.0.1:1"), 9, 2, True),
        RequestPreVoteRequest(_HEADER, 3, 9, 2),
        TimeoutNowRequest(_HEADER),
        InstallSnapshotRequest(
            _HEADER, 1, 3, ServerAddress("10.0.0.1:1"), 9, 2, None, configuration, 8, 5
        ),
    ]
    head = bytes(HEAD_SIZE_BYTES)
    tight = b"\1" + head[1:]
    single = [encode_request(request) for request in requests]
    single[-1] += b"12345"
    whole = b"".join((single[0], single[1], single[1], *single[2:], single[0]))
    return [*(head + octets for octets in single), head + whole, tight + whole]


def _answers() -> list[bytes]:
    append = encode_response(AppendEntriesResponse(_HEADER, 3, 9, True, False))
    answers = [
        append,
        encode_response(RequestVoteResponse(_HEADER, 3, True)),
        encode_response(InstallSnapshotResponse(_HEADER, 3, True)),
        encode_response(TimeoutNowResponse(_HEADER)),
        encode_response(RequestPreVoteResponse(_HEADER, 3, True)),
    ]
    seeds = [bytes((kind, 0, 0, 0)) + octets for kind, octets in enumerate(answers)]
    seeds.append(bytes((0, 1, 2, 0)) + append * 3 + encode_failure("boom"))
    seeds.append(bytes((128, 3, 4, 0)) + b"".join(answers))
    return seeds


RPC_REQUESTS: Final = Target("rpc-requests", check_requests, _requests)
RPC_ANSWERS: Final = Target("rpc-answers", check_answers, _answers)
