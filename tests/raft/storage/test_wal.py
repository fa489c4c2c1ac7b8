"""Guard 6: checkpoints at chosen moments, and a bound on the wal whatever is chosen."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.raft.errors import StorageError, StoragePoisonedError
from rafthttp.raft.storage.protocols import MaintainedStore
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.storage.wal import BOUND_BYTES, DUE_BYTES
from rafthttp.raft.types import LogBatch, LogWrite, ServerID

N1 = ServerID("n1")


def append(store: SqliteStore, size: int = 133, count: int = 1) -> None:
    batch = LogBatch(store.last_index() + 1, 1, [b"x" * size] * count)
    store.write([LogWrite({}, batches=(batch,))])


def wal_size(store: SqliteStore) -> int:
    return Path(f"{store._path}-wal").stat().st_size


def database_size(store: SqliteStore) -> int:
    return store._path.stat().st_size


def test_it_is_what_the_disk_lane_calls(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, N1)
    assert isinstance(store, MaintainedStore)
    store.close()


def test_nothing_is_moved_between_the_moments(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, N1)
    empty = database_size(store)
    append(store)
    store.maintain()
    assert database_size(store) == empty, "too little to be worth a flush"
    while wal_size(store) < BOUND_BYTES * 3 // 4:
        append(store, count=512)
    assert database_size(store) == empty, "nobody said that nobody waits"
    store.maintain()
    moved = database_size(store)
    assert moved > DUE_BYTES // 2
    store.maintain()
    assert database_size(store) == moved
    store.close()


def test_the_wal_is_written_over_after_a_checkpoint(tmp_path: Path) -> None:
    """And is found as it should be after kill -9: what is behind the end is not read."""
    store = SqliteStore.open(tmp_path / "data", N1)
    sizes: list[int] = []
    for _ in range(2000):
        append(store, count=30)
        store.maintain()
        sizes.append(wal_size(store))
    assert max(sizes) < 2 * DUE_BYTES
    assert sizes.count(sizes[-1]) > 1000
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "data").glob("raft.*[!e]"):
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    store.close()
    store = SqliteStore.open(tmp_path / "copy", N1)
    assert store.get_records(1, 60000, 1 << 30) == [b"x" * 133] * 60000
    store.close()


LOADS: dict[str, Callable[[SqliteStore, int], None]] = {
    "one entry": lambda store, _: append(store),
    "large batches": lambda store, _: append(store, count=512),
    "pages": lambda store, _: append(store, size=3000),
    "large entries": lambda store, _: append(store, size=900_000),
    "votes": lambda store, number: store.set({b"vote": b"%d" % number}),
    "conflicts": lambda store, number: (
        append(store, size=2000, count=5)
        if number % 2
        else store.write([LogWrite({}, truncate_from=max(1, store.last_index() - 3))])
    ),
    "small conflicts": lambda store, number: (
        append(store)
        if number % 2
        else store.write([LogWrite({}, truncate_from=max(1, store.last_index()))])
    ),
    "compaction": lambda store, number: (
        append(store, size=2000) if number % 50 else store.delete_prefix(store.last_index() - 20)
    ),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_the_wal_is_bounded_under_constant_load(
    tmp_path: Path, load: Callable[[SqliteStore, int], None]
) -> None:
    """Though nobody ever calls `maintain`."""
    store = SqliteStore.open(tmp_path, N1)
    largest = step = checkpoints = number = before = 0
    while checkpoints < 3:
        assert number < 20_000
        load(store, number)
        number += 1
        largest = max(largest, wal_size(store))
        checkpoints += store._wal._size_bytes < before
        step = max(step, store._wal._size_bytes - before)
        before = store._wal._size_bytes
    # The bound, a tenth for the reckoning, and the write that went over it; but not far below.
    assert BOUND_BYTES * 2 // 5 < largest < BOUND_BYTES * 11 // 10 + step
    store.close()


def test_what_a_start_finds_in_the_wal_counts(tmp_path: Path) -> None:
    """Else a process that is killed again and again lets it grow."""
    store = SqliteStore.open(tmp_path / "killed", N1)
    while wal_size(store) < BOUND_BYTES * 3 // 4:
        append(store, count=512)
    (tmp_path / "again").mkdir()
    for path in (tmp_path / "killed").glob("raft.*[!e]"):
        (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
    store.close()
    store = SqliteStore.open(tmp_path / "again", N1)
    for _ in range(BOUND_BYTES * 3 // 4 // (512 * 133)):
        append(store, count=512)
        assert wal_size(store) < BOUND_BYTES * 11 // 10
    store.close()


def test_a_checkpoint_that_fails_poisons(tmp_path: Path) -> None:
    """S6: the database is what a failed flush is about; no second try."""
    store = SqliteStore.open(tmp_path, N1)
    while not store._wal.due:
        append(store, count=30)
    last = store.last_index()
    (descriptor,) = (
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.exists() and os.readlink(link) == str(tmp_path / DATABASE_FILE)
    )
    saved, other = os.dup(descriptor), os.open(tmp_path / DATABASE_FILE, os.O_RDONLY)
    os.dup2(other, descriptor)
    os.close(other)
    with pytest.raises(StorageError, match=r"checkpoint of .* failed"):
        store.maintain()
    os.dup2(saved, descriptor)
    os.close(saved)
    size = database_size(store)
    store.maintain()  # does nothing any more
    assert database_size(store) == size
    with pytest.raises(StoragePoisonedError):
        append(store)
    store.close()
    store = SqliteStore.open(tmp_path, N1)
    assert store.last_index() == last
    assert len(store.get_records(1, last, 1 << 30)) == last
    store.close()


def test_a_closed_store_needs_nothing(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, N1)
    while not store._wal.due:
        append(store, count=30)
    store.close()
    store.maintain()


def test_sqlite_makes_no_checkpoints_of_its_own(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, N1)
    found: sqlite3.Cursor = store._connection.execute("PRAGMA wal_autocheckpoint")
    assert found.fetchone() == (0,)
    store.close()
