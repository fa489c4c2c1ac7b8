"""What goes into the core at start, and what comes out of it once a turn.

Knows indexes, terms, ids and sizes; never bytes, clocks or I/O. Ranges are inclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

from rafthttp.raft.types import Configuration, Index, LogPosition, ServerID, State, Term

RpcId: TypeAlias = int
"""Opaque handle of an inbound RPC, minted by the driver; each gets exactly one reply."""

ReadId: TypeAlias = int
"""Opaque handle of a linearizable read, minted by the driver."""

Seq: TypeAlias = int
"""Number of a `Persist`, counting up from 1 without gaps; 0 means nothing to wait for."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The core's settings; times in nanoseconds of the caller's monotonic clock.

    `unsized_entries_max`: entries older than the sizes the core still remembers are clipped by
    count instead of bytes (Go's MaxAppendEntries).
    `lease_reads`: this server keeps the promise that leases rest on, and takes leases; next to
    `early_campaign` on any voter they are not safe, and nothing here says so.
    `disk_timeout_ns`: a leader whose oldest write is pending longer than this steps down (S74).
    """

    local_id: ServerID
    heartbeat_timeout_ns: int = 1_000_000_000
    election_timeout_ns: int = 1_000_000_000
    commit_timeout_ns: int = 50_000_000
    leader_lease_timeout_ns: int = 500_000_000
    disk_timeout_ns: int = 1_000_000_000
    pre_vote: bool = True
    early_campaign: bool = True
    lease_reads: bool = False
    append_size_bytes_max: int = 1 << 20
    append_entries_max: int = 8192
    unsized_entries_max: int = 64
    inflight_appends_max: int = 64


class HardState(NamedTuple):
    """What must be durable before any reply shows it; always written as a pair (S2)."""

    term: Term
    voted_for: ServerID | None


@dataclass(frozen=True, slots=True)
class InitialState:
    """What the disk held at start.

    `term_runs` are (first index, term) of each run of equal terms among the entries above
    `log_base`, ascending. `log_base` is index and term of an entry that all entries up to
    `last_index` follow: the snapshot's last one where None, or one before it where entries are kept
    behind the snapshot. `configurations` are (index, configuration) ascending: the last is the
    latest, the one before it is committed (at most one may be uncommitted). `votes_from` is what
    the log must reach before this server votes (`Consensus.take_part`); the term is not behind it.
    """

    hard_state: HardState = HardState(0, None)  # noqa: RUF009 - immutable
    snapshot_index: Index = 0
    snapshot_term: Term = 0
    last_index: Index = 0
    term_runs: Sequence[tuple[Index, Term]] = ()
    configurations: Sequence[tuple[Index, Configuration]] = ()
    log_base: tuple[Index, Term] | None = None
    votes_from: LogPosition = LogPosition(0, 0)  # noqa: RUF009 - immutable


class Persist(NamedTuple):
    """One durable write, applied in the order of the fields; writes complete in order of `seq`.

    Entries `first..last` are to be taken from the caller's cache when the `Ready` is taken;
    `last < first` means none. `configurations` is set when the (index, configuration) pairs to find
    again at the next start have changed.
    """

    seq: Seq
    hard_state: HardState | None
    reset_to: Index | None
    truncate_from: Index | None
    first: Index
    last: Index
    configurations: Sequence[tuple[Index, Configuration]] | None


class Send(NamedTuple):
    """One AppendEntries frame on a peer's replication stream: entries `prev_index+1..last`.

    `leader_commit <= last` always (decision 6). `epoch` names the life of the stream: a response is
    handed back with the very `Send` it answers.
    """

    peer: ServerID
    epoch: int
    term: Term
    prev_index: Index
    prev_term: Term
    last: Index
    leader_commit: Index


class Heartbeat(NamedTuple):
    """An AppendEntries with nothing in it, on the peer's heartbeat stream.

    `at_ns` is when it was due to be sent, or before.
    """

    peer: ServerID
    term: Term
    round: int
    at_ns: int = 0


class VoteRequest(NamedTuple):
    """RequestVote or RequestPreVote to one peer. `term` is the proposed one."""

    peer: ServerID
    pre_vote: bool
    term: Term
    last_index: Index
    last_term: Term
    leadership_transfer: bool


class SendSnapshot(NamedTuple):
    """The peer needs entries that are compacted away: send it the newest snapshot."""

    peer: ServerID
    epoch: int
    term: Term


class AppendEntriesReply(NamedTuple):
    """Answer to an AppendEntries. `last_log` is Go's: the last index *before* the append."""

    rpc: RpcId
    after: Seq
    term: Term
    success: bool
    last_log: Index
    no_retry_backoff: bool


class VoteReply(NamedTuple):
    """Answer to a RequestVote or RequestPreVote."""

    rpc: RpcId
    after: Seq
    term: Term
    granted: bool


class InstallSnapshotReply(NamedTuple):
    """Answer to an InstallSnapshot."""

    rpc: RpcId
    after: Seq
    term: Term
    success: bool


class TimeoutNowReply(NamedTuple):
    """Answer to a TimeoutNow; `accepted` False becomes an error text on the wire."""

    rpc: RpcId
    after: Seq
    accepted: bool


Reply: TypeAlias = AppendEntriesReply | VoteReply | InstallSnapshotReply | TimeoutNowReply


class SoftState(NamedTuple):
    """Role, term and leader; what observers see."""

    state: State
    term: Term
    leader: ServerID | None


class ReadConfirmed(NamedTuple):
    """A quorum answered a heartbeat round sent after the read was asked: serve at `read_index`."""

    read: ReadId
    read_index: Index


class ProgressState(Enum):
    """How the leader feeds one peer (etcd's tracker has the same three)."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Ready:
    """All there is to do since the last call.

    The caller does, in this order and before any await:

    1. where `noop` is set, encodes a no-op entry at that index and appends it to its cache;
    2. hands `persist` to the disk (records copied from its cache now);
    3. sends `sends`, `heartbeats`, `votes`, `timeout_now`, `snapshots` at once, not waiting for
       the disk (Raft thesis §10.2.1; votes of this server's own are gated inside the core);
    4. sends each reply when the write `after` is durable;
    5. fails proposals from `aborted_from` up as *outcome unknown*, applies `apply`, answers reads.
    """

    persist: Persist | None = None
    noop: Index | None = None
    sends: list[Send] = field(default_factory=list[Send])
    heartbeats: list[Heartbeat] = field(default_factory=list[Heartbeat])
    votes: list[VoteRequest] = field(default_factory=list[VoteRequest])
    snapshots: list[SendSnapshot] = field(default_factory=list[SendSnapshot])
    timeout_now: ServerID | None = None
    probe_leader: ServerID | None = None
    """Dial this server once and report `on_leader_probed` (decision 7)."""
    replies: list[Reply] = field(default_factory=list[Reply])
    apply: tuple[Index, Index] | None = None
    aborted_from: Index | None = None
    reads: list[ReadConfirmed] = field(default_factory=list[ReadConfirmed])
    reads_aborted: list[ReadId] = field(default_factory=list[ReadId])
    soft_state: SoftState | None = None
    """Set when any of its fields changed."""
    configuration_changed: bool = False
    """The latest configuration changed (appended, rolled back, or installed)."""
    transfer_ended: bool | None = None
    """A leadership transfer ended: True when it left this server, False when it was given up."""
