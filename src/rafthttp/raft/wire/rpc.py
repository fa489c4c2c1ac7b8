"""Each RPC record to bytes and back: field names, their order, their kinds.

Fields stand in byte order of their Go names, all of them present, with the header flattened in.
Framing (type byte, error text) is here on the sending side; `stream.py` has the receiving side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from rafthttp.raft.types import Index, ServerAddress, ServerID, Term
from rafthttp.raft.wire.dialect import (
    NIL,
    array_head,
    map_head,
    pack_bool,
    pack_int,
    pack_name,
    pack_raw,
    pack_uint,
)
from rafthttp.raft.wire.reader import BYTES, FLAG, NAME, SIGNED, UINT
from rafthttp.raft.wire.records import (
    APPEND_ENTRIES,
    INSTALL_SNAPSHOT,
    REQUEST_PRE_VOTE,
    REQUEST_VOTE,
    TIMEOUT_NOW,
    AppendEntriesRequest,
    AppendEntriesResponse,
    Entries,
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

UNSUPPORTED_PROTOCOL: Final = "operation not supported with current protocol version"
"""hashicorp/raft's `ErrUnsupportedProtocol` (api.go); peers may compare the text."""

_PROTOCOL_VERSIONS: Final = (2, 3)

_HEADER: Final = {b"Addr": NAME, b"ID": NAME, b"ProtocolVersion": SIGNED}

REQUEST_FIELDS: Final[dict[int, dict[bytes, int]]] = {
    # Entries are decoded by the stream itself.
    APPEND_ENTRIES: _HEADER
    | {
        b"Leader": NAME,
        b"LeaderCommitIndex": UINT,
        b"PrevLogEntry": UINT,
        b"PrevLogTerm": UINT,
        b"Term": UINT,
    },
    REQUEST_VOTE: _HEADER
    | {
        b"Candidate": NAME,
        b"LastLogIndex": UINT,
        b"LastLogTerm": UINT,
        b"LeadershipTransfer": FLAG,
        b"Term": UINT,
    },
    INSTALL_SNAPSHOT: _HEADER
    | {
        b"Configuration": BYTES,
        b"ConfigurationIndex": UINT,
        b"LastLogIndex": UINT,
        b"LastLogTerm": UINT,
        b"Leader": NAME,
        b"Peers": BYTES,
        b"Size": SIGNED,
        b"SnapshotVersion": SIGNED,
        b"Term": UINT,
    },
    TIMEOUT_NOW: _HEADER,
    REQUEST_PRE_VOTE: _HEADER | {b"LastLogIndex": UINT, b"LastLogTerm": UINT, b"Term": UINT},
}
"""What each field of each request holds, by the RPC's byte."""

RESPONSE_FIELDS: Final[dict[int, dict[bytes, int]]] = {
    APPEND_ENTRIES: _HEADER
    | {b"LastLog": UINT, b"NoRetryBackoff": FLAG, b"Success": FLAG, b"Term": UINT},
    REQUEST_VOTE: _HEADER | {b"Granted": FLAG, b"Peers": BYTES, b"Term": UINT},
    INSTALL_SNAPSHOT: _HEADER | {b"Success": FLAG, b"Term": UINT},
    TIMEOUT_NOW: _HEADER,
    REQUEST_PRE_VOTE: _HEADER | {b"Granted": FLAG, b"Term": UINT},
}
"""What each field of each response holds, by the RPC's byte."""

_Values = dict[bytes, Any]


def header_of(values: _Values) -> RPCHeader:
    """The header among the fields of a record; zero where it is missing."""
    return RPCHeader(
        values.get(b"ProtocolVersion", 0),
        ServerID(values.get(b"ID", "")),
        ServerAddress(values.get(b"Addr", "")),
    )


def append_request_of(values: _Values, entries: Entries) -> AppendEntriesRequest:
    """An AppendEntries from its fields; missing ones are zero."""
    get = values.get
    return AppendEntriesRequest(
        header_of(values),
        get(b"Term", 0),
        ServerAddress(get(b"Leader", "")),
        get(b"PrevLogEntry", 0),
        get(b"PrevLogTerm", 0),
        entries,
        get(b"LeaderCommitIndex", 0),
    )


def request_of(rpc: int, values: _Values) -> Request:
    """Any other request from its fields; missing ones are zero."""
    get = values.get
    header = header_of(values)
    term, last, last_term = get(b"Term", 0), get(b"LastLogIndex", 0), get(b"LastLogTerm", 0)
    if rpc == REQUEST_VOTE:
        candidate = ServerAddress(get(b"Candidate", ""))
        transfer = bool(get(b"LeadershipTransfer", False))
        return RequestVoteRequest(header, term, candidate, last, last_term, transfer)
    if rpc == REQUEST_PRE_VOTE:
        return RequestPreVoteRequest(header, term, last, last_term)
    if rpc == TIMEOUT_NOW:
        return TimeoutNowRequest(header)
    assert rpc == INSTALL_SNAPSHOT, "AppendEntries has its own function"
    return InstallSnapshotRequest(
        header,
        get(b"SnapshotVersion", 0),
        term,
        ServerAddress(get(b"Leader", "")),
        last,
        last_term,
        get(b"Peers"),
        get(b"Configuration") or b"",
        get(b"ConfigurationIndex", 0),
        get(b"Size", 0),
    )


def response_of(rpc: int, values: _Values) -> Response:
    """A response from its fields; missing ones are zero."""
    get = values.get
    header, term = header_of(values), get(b"Term", 0)
    if rpc == APPEND_ENTRIES:
        return AppendEntriesResponse(
            header,
            term,
            get(b"LastLog", 0),
            bool(get(b"Success", False)),
            bool(get(b"NoRetryBackoff", False)),
        )
    if rpc == REQUEST_VOTE:
        return RequestVoteResponse(header, term, bool(get(b"Granted", False)), get(b"Peers"))
    if rpc == REQUEST_PRE_VOTE:
        return RequestPreVoteResponse(header, term, bool(get(b"Granted", False)))
    if rpc == INSTALL_SNAPSHOT:
        return InstallSnapshotResponse(header, term, bool(get(b"Success", False)))
    assert rpc == TIMEOUT_NOW, "the caller named an RPC of ours"
    return TimeoutNowResponse(header)


def is_heartbeat(request: AppendEntriesRequest) -> bool:
    """Whether hashicorp/raft takes this for a heartbeat (net_transport.go)."""
    return (
        request.term != 0
        and bool(request.header.address or request.leader)
        and request.prev_log_index == 0
        and request.prev_log_term == 0
        and not request.entries.records
        and request.leader_commit == 0
    )


def header_refusal(request: Request) -> str | None:
    """The error text for a protocol version this server does not speak, or None.

    Versions 2 and 3 are spoken (raft.go: checkRPCHeader). Heartbeats skip the check, as Go's do.
    """
    if request.header.protocol_version in _PROTOCOL_VERSIONS:
        return None
    if isinstance(request, AppendEntriesRequest) and is_heartbeat(request):
        return None
    return UNSUPPORTED_PROTOCOL


class AppendEncoder:
    """Encodes the AppendEntries of one server; what its header makes constant is packed once."""

    def __init__(self, header: RPCHeader) -> None:
        address, version = pack_name(header.address), pack_int(header.protocol_version)
        self._head = b"\x00\x89\xa4Addr" + address + b"\xa7Entries"
        self._id = b"\xa2ID" + pack_name(header.id) + b"\xa6Leader"
        self._leader = header.address
        self._middle = self._id + address + b"\xb1LeaderCommitIndex"
        self._version = b"\xafProtocolVersion" + version + b"\xa4Term"
        # The last frame with entries: peers that stand at one place get the same.
        self._last: tuple[Term, Index, Term, Index] | None = None
        self._last_records: Sequence[bytes] = ()
        self._last_frame = b""

    def encode(
        self,
        term: Term,
        prev_log_index: Index,
        prev_log_term: Term,
        records: Sequence[bytes],
        leader_commit: Index,
        leader: ServerAddress | None = None,
    ) -> bytes:
        """One request, type byte included.

        `Entries` is nil in a heartbeat and an empty array in any other request without entries, as
        a Go leader writes them.
        """
        place = term, prev_log_index, prev_log_term, leader_commit
        if records and place == self._last and records == self._last_records and leader is None:
            return self._last_frame
        middle = self._middle
        if leader is not None and leader != self._leader:
            middle = self._id + pack_name(leader) + b"\xb1LeaderCommitIndex"
        if records:
            entries = array_head(len(records))
        elif prev_log_index or prev_log_term or leader_commit or not term:
            entries = b"\x90"
        else:
            entries = NIL
        frame = b"".join(
            (
                self._head,
                entries,
                *records,
                middle,
                pack_uint(leader_commit),
                b"\xacPrevLogEntry",
                pack_uint(prev_log_index),
                b"\xabPrevLogTerm",
                pack_uint(prev_log_term),
                self._version,
                pack_uint(term),
            )
        )
        if records and leader is None:
            self._last, self._last_records, self._last_frame = place, records, frame
        return frame


def encode_request(request: Request) -> bytes:
    """A request, type byte included; the raw body of an InstallSnapshot follows on its own."""
    header = request.header
    if isinstance(request, AppendEntriesRequest):
        return AppendEncoder(header).encode(
            request.term,
            request.prev_log_index,
            request.prev_log_term,
            request.entries.records,
            request.leader_commit,
            request.leader,
        )
    if isinstance(request, RequestVoteRequest):
        rpc, fields = REQUEST_VOTE, _vote_fields(request)
    elif isinstance(request, RequestPreVoteRequest):
        rpc, fields = (
            REQUEST_PRE_VOTE,
            {
                "LastLogIndex": pack_uint(request.last_log_index),
                "LastLogTerm": pack_uint(request.last_log_term),
                "Term": pack_uint(request.term),
            },
        )
    elif isinstance(request, InstallSnapshotRequest):
        rpc, fields = INSTALL_SNAPSHOT, _snapshot_fields(request)
    else:
        rpc, fields = TIMEOUT_NOW, {}
    return rpc.to_bytes(1, "big") + _map(header, fields)


def _vote_fields(request: RequestVoteRequest) -> dict[str, bytes]:
    return {
        "Candidate": pack_name(request.candidate),
        "LastLogIndex": pack_uint(request.last_log_index),
        "LastLogTerm": pack_uint(request.last_log_term),
        "LeadershipTransfer": pack_bool(request.leadership_transfer),
        "Term": pack_uint(request.term),
    }


def _snapshot_fields(request: InstallSnapshotRequest) -> dict[str, bytes]:
    return {
        "Configuration": pack_raw(request.configuration or None),
        "ConfigurationIndex": pack_uint(request.configuration_index),
        "LastLogIndex": pack_uint(request.last_log_index),
        "LastLogTerm": pack_uint(request.last_log_term),
        "Leader": pack_name(request.leader),
        "Peers": pack_raw(request.peers),
        "Size": pack_int(request.size),
        "SnapshotVersion": pack_int(request.snapshot_version),
        "Term": pack_uint(request.term),
    }


def encode_response(response: Response, error: str = "") -> bytes:
    """A response: error text, then the record."""
    body = _ENCODERS[type(response)](response)
    return b"\xa0" + body if not error else encode_text(error) + body


def encode_failure(error: str) -> bytes:
    """An error text and a nil body."""
    return encode_text(error) + NIL


def encode_text(text: str) -> bytes:
    """An error text; never nil, even when empty."""
    return pack_raw(text.encode("utf-8", "surrogateescape"))


@lru_cache(maxsize=16)
def _append_response_parts(
    header: RPCHeader, no_retry_backoff: bool, success: bool
) -> tuple[bytes, bytes]:
    """What stands before the last index, and between it and the term."""
    head = b"\x87\xa4Addr" + pack_name(header.address) + b"\xa2ID" + pack_name(header.id)
    middle = (
        b"\xaeNoRetryBackoff"
        + pack_bool(no_retry_backoff)
        + b"\xafProtocolVersion"
        + pack_int(header.protocol_version)
        + b"\xa7Success"
        + pack_bool(success)
        + b"\xa4Term"
    )
    return head + b"\xa7LastLog", middle


def _append_response(response: Any) -> bytes:
    header, term, last_log, success, no_retry_backoff = response
    head, middle = _append_response_parts(header, no_retry_backoff, success)
    return head + pack_uint(last_log) + middle + pack_uint(term)


def _vote_response(response: Any) -> bytes:
    return _map(
        response.header,
        {
            "Granted": pack_bool(response.granted),
            "Peers": pack_raw(response.peers),
            "Term": pack_uint(response.term),
        },
    )


def _pre_vote_response(response: Any) -> bytes:
    fields = {"Granted": pack_bool(response.granted), "Term": pack_uint(response.term)}
    return _map(response.header, fields)


def _snapshot_response(response: Any) -> bytes:
    fields = {"Success": pack_bool(response.success), "Term": pack_uint(response.term)}
    return _map(response.header, fields)


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    AppendEntriesResponse: _append_response,
    RequestVoteResponse: _vote_response,
    RequestPreVoteResponse: _pre_vote_response,
    InstallSnapshotResponse: _snapshot_response,
    TimeoutNowResponse: lambda response: _map(response.header, {}),
}


def _map(header: RPCHeader, fields: dict[str, bytes]) -> bytes:
    """A struct: its fields and the header's, sorted by name."""
    pairs = fields | {
        "Addr": pack_name(header.address),
        "ID": pack_name(header.id),
        "ProtocolVersion": pack_int(header.protocol_version),
    }
    parts = [map_head(len(pairs))]
    for name in sorted(pairs):
        parts.append(pack_raw(name.encode("ascii")))
        parts.append(pairs[name])
    return b"".join(parts)
