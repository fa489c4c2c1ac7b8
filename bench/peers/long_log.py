"""A log as long as it is told to be, written by the stores' own calls before any server runs.

Each member's is the same, entry by entry: the configuration, then commands of one size, all of
term 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rafthttp import (
    Config,
    Configuration,
    FileSnapshotStore,
    LogBatch,
    LogWrite,
    MemorySnapshotStore,
    MemoryStore,
    Server,
    SqliteStore,
    bootstrap_cluster,
)
from rafthttp.raft.wire.entries import encode_logs

TERM: Final = 1
BATCH_ENTRIES: Final = 8192
APPENDED_AT_NS: Final = 1_700_000_000_000_000_000
"""The same on every member."""


async def extend(
    store: SqliteStore | MemoryStore,
    config: Config,
    servers: Sequence[Server],
    last: int,
    size_bytes: int = 64,
) -> None:
    """Write commands until `last`; a store without a log gets the configuration first."""
    if store.last_index() == 0:
        await bootstrap_cluster(config, store, store, None, Configuration(tuple(servers)))
    data = b"x" * size_bytes
    while (first := store.last_index() + 1) <= last:
        count = min(BATCH_ENTRIES, last - first + 1)
        records = encode_logs(first, TERM, [data] * count, APPENDED_AT_NS)
        store.write((LogWrite({}, batches=(LogBatch(first, TERM, records),)),))


def take_snapshot(
    snapshots: FileSnapshotStore | MemorySnapshotStore,
    servers: Sequence[Server],
    index: int,
    state: bytes,
) -> None:
    """What a state machine had at `index`; the log stays as long as `Config.trailing_logs` says."""
    sink = snapshots.create(index, TERM, Configuration(tuple(servers)), 1)
    sink.write(state)
    sink.close()
