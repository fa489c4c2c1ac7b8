"""Records to bytes, and the rules that need no stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_logs, entries_of
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RPCHeader,
    TimeoutNowRequest,
)
from rafthttp.raft.wire.rpc import (
    UNSUPPORTED_PROTOCOL,
    AppendEncoder,
    encode_failure,
    encode_request,
    header_refusal,
    is_heartbeat,
)

_HEADER = RPCHeader(3, ServerID("n1"), ServerAddress("127.0.0.1:17301"))
_NONE = entries_of([])


def _append(header: RPCHeader = _HEADER, **changes: Any) -> AppendEntriesRequest:
    return AppendEntriesRequest(header, 7, header.address, 0, 0, _NONE, 0)._replace(**changes)


def test_a_frame_joins_records_encoded_before(load_golden: Callable[[str], Any]) -> None:
    golden = load_golden("append_64x64")
    logs = golden.request_fields["Entries"]
    records = encode_logs(
        logs[0].index, logs[0].term, [log.data for log in logs], logs[0].appended_at_ns
    )
    fields = golden.request_fields
    frame = AppendEncoder(_HEADER).encode(
        fields["Term"],
        fields["PrevLogEntry"],
        fields["PrevLogTerm"],
        records,
        fields["LeaderCommitIndex"],
    )
    assert frame == golden.request


def test_heartbeat_has_nil_entries_and_a_commit_update_an_empty_array(
    load_golden: Callable[[str], Any],
) -> None:
    encoder = AppendEncoder(_HEADER)
    assert encoder.encode(7, 0, 0, [], 0) == load_golden("append_heartbeat").request
    assert encoder.encode(7, 1235, 7, [], 1235) == load_golden("append_empty_commit").request
    # Each of these alone makes it no heartbeat for Go.
    for term, prev, prev_term, commit in ((7, 1, 0, 0), (7, 0, 1, 0), (7, 0, 0, 1), (0, 0, 0, 0)):
        assert b"\xa7Entries\x90" in encoder.encode(term, prev, prev_term, [], commit)


def test_a_leader_field_that_differs_from_the_header() -> None:
    request = _append(leader=ServerAddress("old:1"), prev_log_index=4)
    assert b"\xa6Leader\xa5old:1" in encode_request(request)
    assert encode_request(_append(RPCHeader())).count(b"\xc0") == 4  # Addr, Entries, ID, Leader


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"term": 0}, False),
        ({"prev_log_index": 1}, False),
        ({"prev_log_term": 1}, False),
        ({"leader_commit": 1}, False),
        ({"entries": entries_of(encode_logs(1, 1, [b"x"]))}, False),
        ({"leader": ServerAddress("")}, True),
        ({"header": RPCHeader(3, ServerID("n1")), "leader": ServerAddress("a:1")}, True),
        ({"header": RPCHeader(3, ServerID("n1")), "leader": ServerAddress("")}, False),
    ],
)
def test_is_heartbeat(changes: dict[str, Any], expected: bool) -> None:
    assert is_heartbeat(_append(**changes)) is expected


@pytest.mark.parametrize("version", [-1, 0, 1, 2, 3, 4])
def test_protocol_versions(version: int) -> None:
    header = _HEADER._replace(protocol_version=version)
    expected = None if version in (2, 3) else UNSUPPORTED_PROTOCOL
    assert header_refusal(RequestVoteRequest(header, 1, header.address, 0, 0, False)) == expected
    assert header_refusal(RequestPreVoteRequest(header, 1, 0, 0)) == expected
    assert header_refusal(TimeoutNowRequest(header)) == expected
    assert header_refusal(_append(header, prev_log_index=1)) == expected
    # Go's fast path for heartbeats skips the check.
    assert header_refusal(_append(header)) is None


def test_a_refusal_is_a_text_and_a_nil_body() -> None:
    assert UNSUPPORTED_PROTOCOL == "operation not supported with current protocol version"
    octets = encode_failure(UNSUPPORTED_PROTOCOL)
    assert octets == b"\xda\x00\x35" + UNSUPPORTED_PROTOCOL.encode() + b"\xc0"
