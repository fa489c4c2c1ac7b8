"""A cluster that has lost its quorum for good: what is done to the stores of each server left.

Knows stores and the state machine of one server that does not run. What makes it count is one
rename, that of the new snapshot: a crash before leaves the old state, a crash behind it the new.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from rafthttp.raft.config import Config
from rafthttp.raft.core.ready import InitialState
from rafthttp.raft.errors import CantRecoverError, ConfigError
from rafthttp.raft.fsm import FSM, check_fsm
from rafthttp.raft.runtime import restart, snapshot_bytes
from rafthttp.raft.runtime.applying import apply_entries, configuration_store
from rafthttp.raft.runtime.snapshot_bytes import Progress, Target
from rafthttp.raft.status import LatestConfiguration
from rafthttp.raft.storage.protocols import LogStore, SnapshotMeta, SnapshotStore, StableStore
from rafthttp.raft.types import Configuration, Index, Term
from rafthttp.raft.wire.entries import decode_records

# As a replay at start: what is in memory at a time, and what the state machine gets at a time.
_READ_BYTES: Final = 4 << 20
_SLICE_ENTRIES: Final = 1024
_ALL: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a server's state is now.

    Attributes:
        index: of the last entry that was found, and of the new snapshot.
        term: of that entry.
        replayed: entries that were found behind the snapshot the state machine began from.
        size: bytes of the new snapshot.
    """

    index: Index
    term: Term
    replayed: int
    size: int


async def recover_cluster(
    config: Config,
    fsm: FSM,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore,
    configuration: Configuration,
) -> Recovered:
    """Give a server other members than its log says (hashicorp/raft's `RecoverCluster`).

    For when a quorum is lost and will not come back. Stop all servers, do this on each that is
    left, with the same configuration, and start them. It breaks promises: every entry found counts
    as committed, and what was acknowledged may be lost where none of these servers has it. A server
    that is left out must never start again with its old data.

    The state machine is restored from the newest snapshot that is whole, gets the whole log, and is
    written as a new snapshot with the new configuration; the log is then empty. It runs on a
    thread. Where it is cancelled, it still goes on to its end, and is waited for.

    Args:
        config: the server's settings.
        fsm: a fresh state machine, used for this and then dropped; the server is started with
            another.
        log_store: as for `Raft.start`; the caller closes the stores.
        stable_store: likewise.
        snapshot_store: likewise.
        configuration: the members from now on. It counts as an entry at the last index found.

    Raises:
        CantRecoverError: there is nothing to recover.
        ConfigError: nobody votes in the configuration, or this server is not in it.
        StorageError: the disk failed, no snapshot is whole, or entries are missing; the state is
            the old one, unless the text says otherwise.
    """
    config.validate()
    check_fsm(fsm)
    if not configuration.voters:
        raise ConfigError("configuration has no voter; it needs at least one")
    if configuration.get(config.local_id) is None:
        raise ConfigError(f"local_id {config.local_id!r} is not in the configuration")
    work = asyncio.create_task(
        asyncio.to_thread(_recover, fsm, log_store, stable_store, snapshot_store, configuration)
    )
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread uses the stores until then.
        await asyncio.gather(work, return_exceptions=True)
        raise


def get_configuration(
    log_store: LogStore, stable_store: StableStore, snapshot_store: SnapshotStore | None
) -> LatestConfiguration:
    """The latest configuration a stopped server has (hashicorp/raft's `GetConfiguration`).

    Reads the newest snapshot as a whole, to see that it can be used. Waits for the disk.

    Raises:
        StorageError: the disk failed, no snapshot is whole, or entries are missing.
    """

    def verify(store: SnapshotStore, meta: SnapshotMeta) -> None:
        store.open(meta.id)[1].close()

    state = restart.load(log_store, stable_store, snapshot_store, verify, trailing_logs=_ALL)
    if not state.configurations:
        return LatestConfiguration(Configuration(), 0)
    index, configuration = state.configurations[-1]
    return LatestConfiguration(configuration, index)


def _recover(
    fsm: FSM,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore,
    configuration: Configuration,
) -> Recovered:
    if not restart.has_existing_state(log_store, stable_store, snapshot_store):
        raise CantRecoverError("there is no state to recover: is this the right directory?")

    def restore(store: SnapshotStore, meta: SnapshotMeta) -> None:
        snapshot_bytes.restore(fsm.restore, store, meta.id, lambda _: None)

    # No compaction yet: until the new snapshot is there, nothing is given up.
    state = restart.load(log_store, stable_store, snapshot_store, restore, trailing_logs=_ALL)
    index, term = state.last_index, _last_term(state)
    if index == 0:
        raise CantRecoverError("there is a term, and no entry: nothing to recover")
    _replay(fsm, log_store, state.snapshot_index + 1, index)
    configurations = configuration_store(fsm)
    if configurations is not None:
        configurations.store_configuration(index, configuration)
    # hashicorp/raft says 1 where this says `index`: so no older configuration, wherever it is
    # noted, can be taken for a later one if the next write is lost.
    target = Target(snapshot_store, index, term, configuration, index)
    meta = snapshot_bytes.persist(target, fsm.snapshot(), Progress(index))
    restart.reset_log(log_store, stable_store, meta)
    if stable_store.get(restart.VOTES_FROM) is not None:
        # Of what counts from now on, this log holds everything. After a crash before this, a server
        # that was released and had not caught up does not vote until it is recovered once more.
        stable_store.set({restart.VOTES_FROM: None})
    return Recovered(index, term, index - state.snapshot_index, meta.size)


def _last_term(state: InitialState) -> Term:
    if state.term_runs:
        return state.term_runs[-1][1]
    return state.snapshot_term if state.log_base is None else state.log_base[1]


def _replay(fsm: FSM, log_store: LogStore, first: Index, last: Index) -> None:
    """Every entry counts: whether it was committed, nobody can say any more."""
    configurations = configuration_store(fsm)
    while first <= last:
        records = log_store.get_records(first, last, _READ_BYTES)
        for at in range(0, len(records), _SLICE_ENTRIES):
            logs = decode_records(records[at : at + _SLICE_ENTRIES])
            # What the state machine says of a command went to its client, if ever there was one.
            apply_entries(fsm, configurations, logs)
        first += len(records)
