"""A start: the state machine restored and the disk checked, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import BinaryIO

from rafthttp.raft.config import Config
from rafthttp.raft.core.ready import InitialState
from rafthttp.raft.fsm import FSM, OwnState
from rafthttp.raft.runtime import restart, snapshot_bytes
from rafthttp.raft.runtime.snapshot_bytes import Progress
from rafthttp.raft.runtime.worker import Workers
from rafthttp.raft.storage.protocols import LogStore, SnapshotMeta, SnapshotStore, StableStore


async def begin(
    config: Config,
    fsm: FSM,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
) -> InitialState:
    """What a server starts from (`restart.load`), with its state machine restored.

    Where it is cancelled, it returns once the state machine's next read has failed.

    Raises:
        StorageError: as `restart.load`.
    """
    progress: list[Progress] = []

    take: Callable[[BinaryIO], None] | None = fsm.restore
    if config.no_snapshot_restore_on_start:
        take = fsm.restore_own if isinstance(fsm, OwnState) else None

    def restore(store: SnapshotStore, meta: SnapshotMeta) -> None:
        assert take is not None, "not called without it"
        snapshot_bytes.restore(take, store, meta.id, progress.append)

    workers = Workers()
    worker = workers.start("rafthttp-start")
    try:
        return await worker.call(
            restart.load,
            log_store,
            stable_store,
            snapshot_store,
            None if take is None else restore,
            config.trailing_logs,
        )
    except asyncio.CancelledError:
        for one in progress:
            one.give_up()
        raise
    finally:
        await workers.close()
