"""Cost of the wire format, per entry and per message. Run: `python bench/wire_codec.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgpack

from rafthttp.raft.types import LogType, ServerAddress, ServerID
from rafthttp.raft.wire.entries import decode_records, encode_log, encode_logs
from rafthttp.raft.wire.records import (
    APPEND_ENTRIES,
    AppendEntriesResponse,
    RequestVoteRequest,
    RPCHeader,
)
from rafthttp.raft.wire.rpc import AppendEncoder, encode_request, encode_response
from rafthttp.raft.wire.stream import RequestDecoder, ResponseDecoder

_HEADER = RPCHeader(3, ServerID("n1"), ServerAddress("127.0.0.1:17301"))
_NS = 1_714_979_289_123_456_789
_SECONDS = 0.2
_ROUNDS = 5


def _measure(name: str, work: Callable[[], object], count: int, target: str = "") -> None:
    """Print the best round's µs for one of the `count` things `work` does."""
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if time.perf_counter() - began > _SECONDS / 4:
            break
        calls *= 2
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        best = min(best, (time.perf_counter() - began) / calls / count)
    print(f"{name:52} {best * 1e6:9.3f} µs  {target}")


def _entries(size_bytes: int, count: int) -> None:
    datas = [b"Z" * size_bytes] * count
    first = 70_000
    name = f"{count} entries of {size_bytes} B, each"
    records = encode_logs(first, 7, datas, _NS)
    encoder = AppendEncoder(_HEADER)
    frame = encoder.encode(7, first - 1, 7, records, first - 1)

    def decode(octets: bytes, piece_bytes: int) -> Callable[[], object]:
        decoder = RequestDecoder()

        def work() -> None:
            for at in range(0, len(octets), piece_bytes):
                decoder.feed(octets[at : at + piece_bytes])
                decoder.next()

        return work

    changing = [
        encode_log(first + at, 7, LogType.COMMAND, data, b"", _NS + at)
        for at, data in enumerate(datas)
    ]
    changed = encoder.encode(7, first - 1, 7, changing, first - 1)
    unlike = frame.replace(b"\xaaExtensions\xc0", b"\xaaExtensions\xa0")
    _measure(f"encode a batch: {name}", lambda: encode_logs(first, 7, datas, _NS), count, "<= 0.5")
    _measure(f"join a frame: {name}", lambda: encoder.encode(7, first - 1, 7, records, 0), count)
    _measure(f"follower decode: {name}", decode(frame, len(frame)), count, "<= 1.2")
    _measure(f"  in pieces of 64 KiB: {name}", decode(frame, 65536), count)
    _measure(f"  each with its own time: {name}", decode(changed, len(frame)), count)
    _measure(f"  with empty extensions: {name}", decode(unlike, len(unlike)), count)
    _measure(f"  byte by byte, a byte: {name}", decode(frame, 1), len(frame))
    _measure(f"records to Log: {name}", lambda: decode_records(records), count)
    _measure(
        f"(C msgpack, dicts only: {name})", lambda: msgpack.unpackb(frame[1:], raw=True), count
    )


def _messages() -> None:
    encoder = AppendEncoder(_HEADER)
    heartbeat = encoder.encode(7, 0, 0, [], 0)
    response = AppendEntriesResponse(_HEADER, 7, 70_000, True, False)
    answer = encode_response(response)
    vote = encode_request(RequestVoteRequest(_HEADER, 7, _HEADER.address, 70_000, 7, False))
    requests, answers = RequestDecoder(), ResponseDecoder()

    def decode(octets: bytes) -> Callable[[], object]:
        def work() -> None:
            requests.feed(octets)
            requests.next()

        return work

    def decode_answer() -> None:
        answers.expect(APPEND_ENTRIES)
        answers.feed(answer)
        answers.next()

    _measure("encode a heartbeat", lambda: encoder.encode(7, 0, 0, [], 0), 1)
    _measure("decode a heartbeat", decode(heartbeat), 1)
    _measure("decode a RequestVote", decode(vote), 1)
    _measure("encode an AppendEntries response", lambda: encode_response(response), 1)
    _measure("decode an AppendEntries response", decode_answer, 1)


if __name__ == "__main__":
    _entries(64, 64)
    _entries(64, 4096)
    _entries(1024, 64)
    _messages()
