"""The RPC records of hashicorp/raft (`commands.go`), as plain tuples.

Entries travel as columns, not as objects: `Entries` holds one list a field.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rafthttp.raft.types import (
    PROTOCOL_VERSION,
    Configuration,
    Index,
    Log,
    ServerAddress,
    ServerID,
    Term,
)

APPEND_ENTRIES: Final = 0
REQUEST_VOTE: Final = 1
INSTALL_SNAPSHOT: Final = 2
TIMEOUT_NOW: Final = 3
REQUEST_PRE_VOTE: Final = 4


class RPCHeader(NamedTuple):
    """Who speaks. Flattened into every record on the wire. Zero (`0, "", ""`) in some responses."""

    protocol_version: int = PROTOCOL_VERSION
    id: ServerID = ServerID("")
    address: ServerAddress = ServerAddress("")


class Entries(NamedTuple):
    """Contiguous entries as columns; all lists have the same length.

    `records[i]` is the encoded entry, fit to be stored and sent on to any peer as it is; `logs[i]`
    is what a state machine is told of it. `configurations` are those among them, by index.
    """

    first: Index
    terms: list[Term]
    logs: list[Log]
    records: list[bytes]
    configurations: list[tuple[Index, Configuration]]


class AppendEntriesRequest(NamedTuple):
    """`leader` is the address in the deprecated `Leader` field; empty when absent."""

    header: RPCHeader
    term: Term
    leader: ServerAddress
    prev_log_index: Index
    prev_log_term: Term
    entries: Entries
    leader_commit: Index


class AppendEntriesResponse(NamedTuple):
    """`last_log` is the follower's last index before the append."""

    header: RPCHeader
    term: Term
    last_log: Index
    success: bool
    no_retry_backoff: bool


class RequestVoteRequest(NamedTuple):
    """`candidate` is the address in the deprecated `Candidate` field."""

    header: RPCHeader
    term: Term
    candidate: ServerAddress
    last_log_index: Index
    last_log_term: Term
    leadership_transfer: bool


class RequestVoteResponse(NamedTuple):
    """`peers` is deprecated; kept so that golden bytes re-encode."""

    header: RPCHeader
    term: Term
    granted: bool
    peers: bytes | None = None


class RequestPreVoteRequest(NamedTuple):
    """Asks whether a vote in `term` (current + 1) would be granted."""

    header: RPCHeader
    term: Term
    last_log_index: Index
    last_log_term: Term


class RequestPreVoteResponse(NamedTuple):
    """A granted one carries the *proposed* term: no reason to step down."""

    header: RPCHeader
    term: Term
    granted: bool


class InstallSnapshotRequest(NamedTuple):
    """Exactly `size` raw bytes follow on the stream."""

    header: RPCHeader
    snapshot_version: int
    term: Term
    leader: ServerAddress
    last_log_index: Index
    last_log_term: Term
    peers: bytes | None
    configuration: bytes
    configuration_index: Index
    size: int


class InstallSnapshotResponse(NamedTuple):
    """Real nodes send a zero header here."""

    header: RPCHeader
    term: Term
    success: bool


class TimeoutNowRequest(NamedTuple):
    """Has no term: accept it only from the current leader."""

    header: RPCHeader


class TimeoutNowResponse(NamedTuple):
    """Real nodes send a zero header here."""

    header: RPCHeader


Request = (
    AppendEntriesRequest
    | RequestVoteRequest
    | RequestPreVoteRequest
    | InstallSnapshotRequest
    | TimeoutNowRequest
)
Response = (
    AppendEntriesResponse
    | RequestVoteResponse
    | RequestPreVoteResponse
    | InstallSnapshotResponse
    | TimeoutNowResponse
)
