"""What is not in the conformance suites of the stores in memory."""

from __future__ import annotations

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage.memory import DiscardSnapshotStore, MemoryStore
from rafthttp.raft.storage.protocols import SnapshotStore
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

CONFIGURATION = Configuration((Server(ServerID("n1"), ServerAddress("127.0.0.1:8101")),))


def take(store: SnapshotStore, index: int, *parts: bytes) -> str:
    sink = store.create(index, 2, CONFIGURATION, 1)
    for part in parts:
        assert sink.write(part) == len(part)
    sink.close()
    return sink.id


def test_no_call_blocks() -> None:
    assert MemoryStore().blocking is False


def test_discard_keeps_nothing() -> None:
    store = DiscardSnapshotStore()
    snapshot_id = take(store, 7, b"state")
    assert not store.list()
    with pytest.raises(StorageError, match="no snapshot"):
        store.open(snapshot_id)
    store.create(7, 2, CONFIGURATION, 1).cancel()
