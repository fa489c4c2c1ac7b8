"""What the disk holds at start, checked, and turned into the core's `InitialState`.

Reads a handful of rows, never the whole log, unless the store has lost the note of where its
configurations stand.
"""

from __future__ import annotations

from typing import Final, cast

import msgpack

from rafthttp.raft.core.ready import HardState, InitialState
from rafthttp.raft.errors import CantBootstrapError, CorruptLogError, ProtocolError
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.types import (
    Configuration,
    Index,
    LogBatch,
    LogType,
    LogWrite,
    ServerID,
    Term,
)
from rafthttp.raft.wire.configuration import decode_configuration, encode_configuration
from rafthttp.raft.wire.entries import decode_log, encode_log

HARD_STATE: Final = b"HardState"
"""msgpack [term, voted_for]: one value, so that the pair is never a mix (S2)."""

CONFIGURATIONS: Final = b"Configurations"
"""msgpack [[index, configuration], …]: where to find them without a scan of the log."""

_SCAN_BYTES: Final = 4 << 20


def encode_hard_state(state: HardState) -> bytes:
    """The stored form of term and vote."""
    return msgpack.packb([state.term, state.voted_for])


def decode_hard_state(data: bytes | None) -> HardState:
    """Read what `encode_hard_state` wrote; nothing stored is term 0 and no vote.

    Raises:
        CorruptLogError: the value is not one of ours.
    """
    if data is None:
        return HardState(0, None)
    try:
        pair = msgpack.unpackb(data)
        term, vote = pair
        if not isinstance(term, int) or not (vote is None or isinstance(vote, str)):
            raise TypeError
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptLogError("the stored term and vote cannot be read") from error
    return HardState(term, None if vote is None else ServerID(vote))


def encode_configurations(pairs: tuple[tuple[Index, Configuration], ...]) -> bytes:
    """The stored form of the (index, configuration) pairs."""
    return msgpack.packb([[i, encode_configuration(c)] for i, c in pairs])


def has_existing_state(
    log_store: LogStore, stable_store: StableStore, snapshot_store: SnapshotStore | None
) -> bool:
    """Whether these stores have ever taken part in a cluster."""
    return (
        stable_store.get(HARD_STATE) is not None
        or log_store.last_index() > 0
        or (snapshot_store is not None and len(snapshot_store.list()) > 0)
    )


def bootstrap(
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
    configuration: Configuration,
    appended_at_ns: int,
) -> None:
    """Write index 1, term 1: the first configuration.

    Raises:
        CantBootstrapError: there is state already, or nobody votes.
    """
    if has_existing_state(log_store, stable_store, snapshot_store):
        raise CantBootstrapError("there is state already; a cluster is bootstrapped once")
    if not configuration.voters:
        raise CantBootstrapError("the first configuration needs a voter")
    record = encode_log(
        1, 1, LogType.CONFIGURATION, encode_configuration(configuration), b"", appended_at_ns
    )
    stable: dict[bytes, bytes | None] = {
        CONFIGURATIONS: encode_configurations(((1, configuration),)),
        HARD_STATE: encode_hard_state(HardState(1, None)),
    }
    batch = LogBatch(1, 1, [record])
    if cast("object", log_store) is cast("object", stable_store):
        log_store.write((LogWrite(stable, None, (batch,)),))
    else:
        # The log first: without the stable pairs the next start finds the entry and goes on.
        log_store.write((LogWrite({}, None, (batch,)),))
        stable_store.set(stable)


def load(
    log_store: LogStore, stable_store: StableStore, snapshot_store: SnapshotStore | None
) -> InitialState:
    """Read and check what is on disk.

    Raises:
        CorruptLogError: the log has a gap towards its snapshot (S10), or cannot be read.
    """
    first, last = log_store.first_index(), log_store.last_index()
    snapshots = snapshot_store.list() if snapshot_store is not None else ()
    snapshot_index: Index = snapshots[0].index if snapshots else 0
    snapshot_term: Term = snapshots[0].term if snapshots else 0
    if first > snapshot_index + 1:
        raise CorruptLogError(
            f"the log begins at {first}, the newest snapshot ends at {snapshot_index}: entries"
            " between them are missing"
        )
    hard_state = decode_hard_state(stable_store.get(HARD_STATE))
    runs = (
        log_store.term_runs(max(first, snapshot_index + 1), last) if last > snapshot_index else []
    )
    highest = runs[-1][1] if runs else snapshot_term
    if hard_state.term < highest:
        hard_state = HardState(highest, None)
    configurations = _configurations(log_store, stable_store, max(first, 1), last)
    if snapshots:
        own = (snapshots[0].configuration_index, snapshots[0].configuration)
        configurations = [own, *(pair for pair in configurations if pair[0] > own[0])]
    return InitialState(
        hard_state=hard_state,
        snapshot_index=snapshot_index,
        snapshot_term=snapshot_term,
        last_index=max(last, snapshot_index),
        term_runs=tuple(runs),
        configurations=tuple(configurations),
    )


def _configurations(
    log_store: LogStore, stable_store: StableStore, first: Index, last: Index
) -> list[tuple[Index, Configuration]]:
    noted = stable_store.get(CONFIGURATIONS)
    if noted is None:
        return _scan(log_store, first, last)
    try:
        pairs = cast("list[tuple[int, bytes]]", msgpack.unpackb(noted))
        known = [(int(index), decode_configuration(data)) for index, data in pairs]
    except (ValueError, TypeError, ProtocolError, msgpack.UnpackException) as error:
        raise CorruptLogError("the stored configurations cannot be read") from error
    # The note may be ahead of the log where they are two stores: a power loss between the two.
    return [
        (index, configuration)
        for index, configuration in known
        if index < first or (index <= last and _is_configuration(log_store, index))
    ]


def _is_configuration(log_store: LogStore, index: Index) -> bool:
    (record,) = log_store.get_records(index, index, 1)
    return decode_log(record).type is LogType.CONFIGURATION


def _scan(log_store: LogStore, first: Index, last: Index) -> list[tuple[Index, Configuration]]:
    found: list[tuple[Index, Configuration]] = []
    while first <= last:
        records = log_store.get_records(first, last, _SCAN_BYTES)
        for record in records:
            log = decode_log(record)
            if log.type is LogType.CONFIGURATION:
                found.append((log.index, decode_configuration(log.data)))
        first += len(records)
    return found
