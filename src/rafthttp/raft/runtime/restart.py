"""What the disk holds at start, checked, and turned into the core's `InitialState`.

Reads a handful of rows, never the whole log, unless the store has lost the note of where its
configurations stand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, cast

import msgpack

from rafthttp.raft.core.ready import HardState, InitialState
from rafthttp.raft.errors import CantBootstrapError, CorruptLogError, ProtocolError, StorageError
from rafthttp.raft.storage.protocols import LogStore, SnapshotMeta, SnapshotStore, StableStore
from rafthttp.raft.types import (
    Configuration,
    Index,
    LogBatch,
    LogPosition,
    LogType,
    LogWrite,
    ServerID,
)
from rafthttp.raft.wire.configuration import decode_configuration, encode_configuration
from rafthttp.raft.wire.entries import decode_log, encode_log

_log = logging.getLogger("rafthttp.raft")

HARD_STATE: Final = b"HardState"
"""msgpack [term, voted_for]: one value, so that the pair is never a mix (S2)."""

CONFIGURATIONS: Final = b"Configurations"
"""msgpack [[index, configuration], …]: where to find them without a scan of the log."""

VOTES_FROM: Final = b"VotesFrom"
"""msgpack [term, index]: what the log must reach before this server votes, for one that lost its
state (`Raft.take_part`). It stays: a log that has reached it is never behind it again."""

_NUMBER_END: Final = 1 << 63
"""Behind the greatest term and index that a log store can keep."""

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
        if type(term) is not int or not (vote is None or isinstance(vote, str)):
            raise TypeError
        if not 0 <= term < _NUMBER_END:
            raise ValueError
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptLogError("the stored term and vote cannot be read") from error
    return HardState(term, None if vote is None else ServerID(vote))


def encode_votes_from(position: LogPosition) -> bytes:
    """The stored form of what the log must reach before this server votes."""
    return msgpack.packb([position.term, position.index])


def decode_votes_from(data: bytes | None) -> LogPosition:
    """Read what `encode_votes_from` wrote; nothing stored is (0, 0), which every log reaches.

    Raises:
        CorruptLogError: the value is not one of ours.
    """
    if data is None:
        return LogPosition(0, 0)
    try:
        term, index = msgpack.unpackb(data)
        if type(term) is not int or type(index) is not int:
            raise TypeError
        if not (0 <= term < _NUMBER_END and 0 <= index < _NUMBER_END):
            raise ValueError
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptLogError("what the log must reach before a vote cannot be read") from error
    return LogPosition(term, index)


def encode_configurations(pairs: tuple[tuple[Index, Configuration], ...]) -> bytes:
    """The stored form of the (index, configuration) pairs."""
    return msgpack.packb([[i, encode_configuration(c)] for i, c in pairs])


def decode_configurations(data: bytes) -> list[tuple[Index, Configuration]]:
    """Read what `encode_configurations` wrote.

    Raises:
        CorruptLogError: the value is not one of ours.
    """
    try:
        known: list[tuple[Index, Configuration]] = []
        for index, encoded in cast("list[tuple[object, object]]", msgpack.unpackb(data)):
            if type(index) is not int or not isinstance(encoded, bytes):
                raise TypeError
            if not 0 <= index < _NUMBER_END:
                raise ValueError
            known.append((index, decode_configuration(encoded)))
    except (ValueError, TypeError, ProtocolError, msgpack.UnpackException) as error:
        raise CorruptLogError("the stored configurations cannot be read") from error
    return known


def has_existing_state(
    log_store: LogStore, stable_store: StableStore, snapshot_store: SnapshotStore | None
) -> bool:
    """Whether these stores have ever taken part in a cluster."""
    return (
        stable_store.get(HARD_STATE) is not None
        or stable_store.get(VOTES_FROM) is not None
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
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
    restore: Callable[[SnapshotStore, SnapshotMeta], None] | None = None,
    trailing_logs: int = 0,
) -> InitialState:
    """Read and check what is on disk, finish what a crash interrupted, restore the state machine.

    May take as long as the state machine does: not to be called on the event loop where there are
    snapshots.

    Args:
        log_store: the log.
        stable_store: term, vote, configurations.
        snapshot_store: None where no snapshots are kept.
        restore: hands a snapshot to the state machine; None where that keeps its state itself.
        trailing_logs: entries to keep behind the snapshot.

    Raises:
        CorruptLogError: the log has a gap towards its snapshot (S10), or cannot be read.
        StorageError: no snapshot can be used, though there are some (S9).
    """
    snapshot = _restored(snapshot_store, restore)
    index, term = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
    if snapshot is not None:
        _reconcile(log_store, stable_store, snapshot)
        _compact(log_store, index - trailing_logs)
    first, last = log_store.first_index(), log_store.last_index()
    if first > index + 1:
        raise CorruptLogError(
            f"the log begins at {first}, the newest snapshot that can be used ends at {index}:"
            " entries between them are missing. Restore the snapshots' directory, or remove this"
            " server from the cluster, delete its data and join anew"
        )
    # The entry before the first one is gone, and its term with it, unless the snapshot tells it.
    base = (index, term) if first > index else (first, log_store.term_at(first))
    runs = log_store.term_runs(base[0] + 1, last) if last > base[0] else []
    hard_state = decode_hard_state(stable_store.get(HARD_STATE))
    votes_from = decode_votes_from(stable_store.get(VOTES_FROM))
    highest = max(runs[-1][1] if runs else base[1], term, votes_from.term)
    if hard_state.term < highest:
        # What shows it was written before the term was; no vote was given in it.
        hard_state = HardState(highest, None)
    configurations = _configurations(log_store, stable_store, max(first, 1), last)
    if snapshot is not None:
        own = (snapshot.configuration_index, snapshot.configuration)
        configurations = [own, *(pair for pair in configurations if pair[0] > own[0])]
    return InitialState(
        hard_state=hard_state,
        snapshot_index=index,
        snapshot_term=term,
        last_index=max(last, index),
        log_base=base,
        term_runs=tuple(runs),
        configurations=tuple(configurations),
        votes_from=votes_from,
    )


def _restored(
    store: SnapshotStore | None, restore: Callable[[SnapshotStore, SnapshotMeta], None] | None
) -> SnapshotMeta | None:
    """The newest snapshot that the state machine took, as hashicorp/raft looks for it (S9)."""
    if store is None:
        return None
    failures: list[str] = []
    for meta in store.list():
        try:
            if restore is not None:
                restore(store, meta)
        except Exception as error:  # noqa: BLE001 - the application's: an older one may do
            _log.error("snapshot %s cannot be used: %s", meta.id, error, exc_info=error)
            failures.append(f"{meta.id}: {error}")
        else:
            return meta
    if failures:
        raise StorageError("no snapshot can be used: " + "; ".join(failures))
    return None


def _reconcile(log_store: LogStore, stable_store: StableStore, snapshot: SnapshotMeta) -> None:
    """Let the log begin anew behind the snapshot where it is short of it, or contradicts it.

    A crash between the snapshot and the write that resets the log leaves it so (S38). What is
    dropped is in the snapshot, or was never committed. A gap is left for the caller to refuse.
    """
    index = snapshot.index
    first, last = log_store.first_index(), log_store.last_index()
    if first > index + 1:
        return
    if last >= index and (first > index or log_store.term_at(index) == snapshot.term):
        return
    _log.warning(
        "the log from %d to %d gives way to the snapshot that ends at %d", first, last, index
    )
    reset_log(log_store, stable_store, snapshot)


def reset_log(log_store: LogStore, stable_store: StableStore, snapshot: SnapshotMeta) -> None:
    """Begin the log anew behind a snapshot that is durable."""
    stable: dict[bytes, bytes | None] = {
        CONFIGURATIONS: encode_configurations(
            ((snapshot.configuration_index, snapshot.configuration),)
        )
    }
    if cast("object", log_store) is cast("object", stable_store):
        log_store.write((LogWrite(stable, reset_to=snapshot.index),))
    else:
        log_store.write((LogWrite({}, reset_to=snapshot.index),))
        stable_store.set(stable)


def _compact(log_store: LogStore, last: Index) -> None:
    """Finish a compaction that was interrupted, before anything is appended."""
    if log_store.first_index() <= last:
        log_store.delete_prefix(last)


def _configurations(
    log_store: LogStore, stable_store: StableStore, first: Index, last: Index
) -> list[tuple[Index, Configuration]]:
    noted = stable_store.get(CONFIGURATIONS)
    if noted is None:
        return _scan(log_store, first, last)
    # The note may be ahead of the log where they are two stores: a power loss between the two.
    return [
        (index, configuration)
        for index, configuration in decode_configurations(noted)
        if index < first or (index <= last and _is_configuration(log_store, index))
    ]


def _is_configuration(log_store: LogStore, index: Index) -> bool:
    (record,) = log_store.get_records(index, index, 1)
    return _configuration_in(index, record) is not None


def _configuration_in(index: Index, record: bytes) -> Configuration | None:
    """What a stored entry says of the members.

    Raises:
        CorruptLogError: it is no entry, or another one.
    """
    try:
        log = decode_log(record)
        if log.index != index:
            raise ProtocolError(f"it says it is entry {log.index}")
        return decode_configuration(log.data) if log.type is LogType.CONFIGURATION else None
    except ProtocolError as error:
        raise CorruptLogError(f"entry {index} of the log cannot be read: {error}") from error


def _scan(log_store: LogStore, first: Index, last: Index) -> list[tuple[Index, Configuration]]:
    found: list[tuple[Index, Configuration]] = []
    while first <= last:
        records = log_store.get_records(first, last, _SCAN_BYTES)
        for index, record in enumerate(records, first):
            configuration = _configuration_in(index, record)
            if configuration is not None:
                found.append((index, configuration))
        first += len(records)
    return found
