"""`FaultyStore`: writes fail, hang and are lost as told, and not otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rafthttp.raft.errors import StorageError, StoragePoisonedError
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.types import LogBatch, LogWrite
from rafthttp.testing.storage import FaultyStore


def append(store: FaultyStore) -> None:
    store.write([LogWrite({}, batches=(LogBatch(store.last_index() + 1, 1, [b"x"]),))])


def test_counts_what_reaches_the_disk() -> None:
    store = FaultyStore(MemoryStore(), blocking=False)
    append(store)
    store.set({b"a": b"1"})
    store.delete_prefix(1)
    store.get(b"a")
    assert (store.flushes, store.blocking) == (3, False)
    assert (store.first_index(), store.last_index()) == (2, 1)


def test_fails_the_nth_write_and_all_after_it() -> None:
    store = FaultyStore(MemoryStore())
    store.fail_write(3, OSError(28, "No space left on device"))
    append(store)
    store.set({b"a": b"1"})
    with pytest.raises(OSError, match="No space"):
        append(store)
    more: list[Callable[[], None]] = [
        lambda: append(store),
        lambda: store.set({}),
        lambda: store.delete_prefix(1),
    ]
    for write in more:
        with pytest.raises(StoragePoisonedError, match="No space"):
            write()
    assert (store.last_index(), store.get(b"a"), store.flushes) == (1, b"1", 2)
    again = FaultyStore(store.inner)
    append(again)
    assert again.last_index() == 2


def test_a_failed_write_may_be_on_the_disk() -> None:
    store = FaultyStore(MemoryStore())
    store.fail_write(reaches_disk=True)
    with pytest.raises(StorageError, match="input/output error"):
        append(store)
    assert store.last_index() == 1
    with pytest.raises(StoragePoisonedError):
        append(store)


def test_hangs_until_released() -> None:
    store = FaultyStore(MemoryStore())
    assert not store.wait_hung(0)
    store.hang_writes()
    writer = threading.Thread(target=append, args=(store,))
    writer.start()
    assert store.wait_hung(10)
    assert store.last_index() == 0
    store.release_writes()
    writer.join(10)
    assert not writer.is_alive()
    assert (store.last_index(), store.wait_hung(0)) == (1, False)


@pytest.mark.parametrize("end", ["crash", "close"])
def test_no_end_leaves_a_write_hanging(end: str) -> None:
    store = FaultyStore(MemoryStore())
    store.hang_writes()
    raised: list[Exception] = []

    def write() -> None:
        try:
            append(store)
        except StorageError as error:
            raised.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert store.wait_hung(10)
    getattr(store, end)()
    writer.join(10)
    assert not writer.is_alive()
    assert len(raised) == (1 if end == "crash" else 0)


def test_a_crash_loses_what_was_not_written() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    append(store)
    store.crash()
    with pytest.raises(StorageError, match="crashed"):
        append(store)
    with pytest.raises(StorageError, match="crashed"):
        store.get(b"a")
    assert inner.last_index() == 1
