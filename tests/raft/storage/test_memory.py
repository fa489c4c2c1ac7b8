"""Snapshot stores in memory. `MemoryStore` itself is in the conformance suite."""

from __future__ import annotations

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage.memory import DiscardSnapshotStore, MemorySnapshotStore, MemoryStore
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


def test_a_snapshot_comes_back() -> None:
    store = MemorySnapshotStore()
    assert not store.list()
    snapshot_id = take(store, 7, b"some ", b"state")
    (meta,) = store.list()
    assert (meta.id, meta.index, meta.term, meta.size) == (snapshot_id, 7, 2, 10)
    assert (meta.configuration, meta.configuration_index, meta.version) == (CONFIGURATION, 1, 1)
    opened, source = store.open(snapshot_id)
    with source:
        assert (opened, source.read()) == (meta, b"some state")


def test_the_newest_is_kept() -> None:
    store = MemorySnapshotStore()
    old = take(store, 7, b"old")
    new = take(store, 9, b"new")
    late = take(store, 8, b"late")
    assert [meta.id for meta in store.list()] == [new]
    for gone in (old, late, "none"):
        with pytest.raises(StorageError, match="no snapshot"):
            store.open(gone)


def test_the_same_index_again_replaces() -> None:
    """Its name is another, so that a reader of the first is not confused."""
    store = MemorySnapshotStore()
    first, second = take(store, 7, b"a"), take(store, 7, b"b")
    assert first != second
    assert [meta.id for meta in store.list()] == [second]


def test_a_cancelled_or_abandoned_snapshot_leaves_the_old_one() -> None:
    """S41."""
    store = MemorySnapshotStore()
    kept = take(store, 7, b"kept")
    cancelled = store.create(9, 2, CONFIGURATION, 1)
    cancelled.write(b"partial")
    cancelled.cancel()
    cancelled.close()
    with pytest.raises(StorageError, match="has ended"):
        cancelled.write(b"more")
    abandoned = store.create(10, 2, CONFIGURATION, 1)
    abandoned.write(b"partial")
    del abandoned
    assert [meta.id for meta in store.list()] == [kept]


def test_closing_twice_is_once() -> None:
    store = MemorySnapshotStore()
    sink = store.create(7, 2, CONFIGURATION, 1)
    sink.close()
    take(store, 7, b"second")
    sink.close()
    sink.cancel()
    assert store.list()[0].size == 6


def test_discard_keeps_nothing() -> None:
    store = DiscardSnapshotStore()
    snapshot_id = take(store, 7, b"state")
    assert not store.list()
    with pytest.raises(StorageError, match="no snapshot"):
        store.open(snapshot_id)
    store.create(7, 2, CONFIGURATION, 1).cancel()
