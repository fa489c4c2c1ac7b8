"""Guard 5: a full disk, on real file systems that are filled to the last block.

tmpfs is exact; ext4 promises space before it has chosen the blocks, and gives freed ones back late.
Both need the right to mount.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage import log_table, reserve
from rafthttp.raft.storage.reserve import RESERVE_FILE, RESERVE_SIZE_BYTES, Reserve
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID

N1 = ServerID("n1")
DISK_SIZE_BYTES = 72 << 20
RECORD_SIZE_BYTES = 8192


def run(*command: object) -> bool:
    return subprocess.run([*map(str, command)], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, cannot_mount: Callable[[str], NoReturn]
) -> Iterator[Path]:
    """A file system of its own, empty."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if request.param == "tmpfs":
        made = run("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE_BYTES}", "tmpfs", mounted)
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(DISK_SIZE_BYTES)
        made = run("mkfs.ext4", "-q", "-F", "-m", "0", image) and run(
            "mount", "-o", "loop", image, mounted
        )
    if not made:
        cannot_mount(f"A FULL DISK IS NOT TESTED on {request.param}: needs the right to mount it")
    yield mounted
    closed = run("umount", mounted)
    assert closed or not run("umount", "--lazy", mounted), "a store was left open"


def fill(path: Path) -> Path:
    """Write until nothing more goes in, not even a byte."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
        os.fsync(file.fileno())
    return path


def record(index: int) -> bytes:
    return b"%d " % index + b"x" * RECORD_SIZE_BYTES


def append(store: SqliteStore, count: int = 4) -> None:
    first = store.last_index() + 1
    records = [record(index) for index in range(first, first + count)]
    store.write([LogWrite({}, batches=(LogBatch(first, 1, records),))])


def append_until(store: SqliteStore, size_bytes: float) -> None:
    until = store.last_index() + size_bytes / RECORD_SIZE_BYTES
    while store.last_index() < until:
        append(store)


def check(store: SqliteStore) -> None:
    first, last = store.first_index(), store.last_index()
    for index in range(first, last + 1, 100):
        held = range(index, min(index + 100, last + 1))
        assert store.get_records(held[0], held[-1], 1 << 40) == [record(i) for i in held]


def holds(store: SqliteStore) -> bool:
    path = store._path.with_name(RESERVE_FILE)
    return path.exists() and path.stat().st_blocks * 512 >= RESERVE_SIZE_BYTES


def due(store: SqliteStore) -> bool:
    return store._wal.due


def filled(disk: Path) -> SqliteStore:
    """An open store whose last write met the full disk."""
    store = SqliteStore.open(disk / "data", N1)
    assert holds(store)
    append_until(store, 20 << 20)
    fill(disk / "filler")
    with pytest.raises(StorageError, match="full"):
        append_until(store, 1 << 40)
    with pytest.raises(StorageError, match="full"):
        append(store)
    check(store)
    assert holds(store), "it is not for entries"
    return store


def test_a_full_disk_then_space(disk: Path) -> None:
    """S7: what was acknowledged is there, and a fresh open goes on where there is space."""
    store = filled(disk)
    acknowledged = store.last_index()
    store.close()
    (disk / "filler").unlink()

    store = SqliteStore.open(disk / "data", N1)
    assert acknowledged <= store.last_index() <= acknowledged + 4
    append_until(store, 10 << 20)
    check(store)
    assert holds(store)
    store.close()


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_reserve
store = test_reserve.filled(Path(sys.argv[1]))
os.write(1, b"%d" % store.last_index())
os._exit(9)
"""


def test_a_process_that_died_of_a_full_disk_starts_again(disk: Path) -> None:
    """Nothing was tidied up: the wal is there, and not a byte beside it."""
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", CHILD, disk, here], stdout=subprocess.PIPE, check=False
    )
    assert child.returncode == 9
    fill(disk / "filler")
    store = SqliteStore.open(disk / "data", N1)
    acknowledged = int(child.stdout)
    assert acknowledged <= store.last_index() <= acknowledged + 4
    check(store)
    compact_and_go_on(store)
    store.close()


def compact_and_go_on(store: SqliteStore) -> None:
    """On a disk that stays full."""
    store.set({b"vote": b"n2"})
    store.delete_prefix(store.last_index() - 10)
    assert store.last_index() - store.first_index() == 9
    check(store)
    # What compaction has freed inside the database is used; the disk need not have a byte more.
    append_until(store, 2 << 20)
    check(store)
    for term in range(200):
        store.set({b"term": b"%d" % term})
        store.maintain()


def test_compaction_on_a_full_disk(disk: Path) -> None:
    filled(disk).close()
    fill(disk / "filler")  # what closing has freed

    store = SqliteStore.open(disk / "data", N1)
    check(store)
    compact_and_go_on(store)
    assert not holds(store), "it was needed"

    # Entries only as far as there is room inside; the next ones are refused, not half written.
    with pytest.raises(StorageError, match=r"takes no more entries: .*\(32 MiB must be free\)"):
        append_until(store, 1 << 40)
    with pytest.raises(StorageError, match="takes no more entries"):
        append(store)
    last = store.last_index()
    store.set({b"vote": b"n3"})  # nothing is poisoned
    store.write([LogWrite({}, truncate_from=last)])
    store.delete_prefix(last - 50)
    store.close()

    store = SqliteStore.open(disk / "data", N1)
    assert (store.first_index(), store.last_index()) == (last - 49, last - 1)
    check(store)
    (disk / "filler").unlink()
    append_until(store, 1 << 20)
    assert holds(store), "it is there again as soon as there is space"
    check(store)
    store.close()


def test_without_the_reserve_compaction_is_stuck(disk: Path) -> None:
    """So that the test above tests the reserve, and nothing else."""
    filled(disk).close()
    (disk / "data" / RESERVE_FILE).unlink()
    fill(disk / "filler")

    def compact() -> None:
        with closing(SqliteStore.open(disk / "data", N1)) as store:
            store.delete_prefix(store.last_index())

    with pytest.raises(StorageError, match="full"):
        compact()


def test_a_disk_that_is_too_small_takes_no_entries(disk: Path) -> None:
    """The reserve must not be what fills a disk: it wants twice its size."""
    free = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        size_bytes = free.f_bavail * free.f_frsize - RESERVE_SIZE_BYTES * 3 // 2
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    store = SqliteStore.open(disk / "data", N1)
    store.set({b"vote": b"n2"})
    with pytest.raises(StorageError, match="takes no more entries: No space left on device"):
        append(store)
    assert not holds(store)
    (disk / "filler").unlink()
    append(store)
    assert holds(store)
    store.close()


def test_a_store_that_was_closed_opens_on_a_disk_without_a_byte(disk: Path) -> None:
    """Its wal is gone: even the commit at open needs the reserve."""
    SqliteStore.open(disk / "data", N1).close()
    fill(disk / "filler")
    store = SqliteStore.open(disk / "data", N1)
    assert not holds(store)
    store.close()


def test_a_checkpoint_that_finds_the_disk_full_is_put_off(disk: Path) -> None:
    """Nothing is in doubt then, and a vote may still find its place in the wal."""
    store = SqliteStore.open(disk / "data", N1)
    append_until(store, 10 << 20)
    store._checkpoint()
    while not due(store):
        append(store)
    size = (disk / "data" / "raft.db").stat().st_size
    fill(disk / "filler")
    store.maintain()
    store.set({b"vote": b"n2"})
    store.maintain()
    assert due(store)
    (disk / "filler").unlink()
    store.maintain()
    assert not due(store)
    assert (disk / "data" / "raft.db").stat().st_size > size
    append(store)
    check(store)
    store.close()


def test_a_long_compaction_does_with_the_reserve(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes more to the wal than the reserve holds, and the wal does not grow by it."""
    monkeypatch.setattr(log_table, "_PREFIX_ROWS", 16)
    store = SqliteStore.open(disk / "data", N1)
    for first in range(1, 30_000, 500):
        batches = tuple(LogBatch(i, i, [b"x" * 600]) for i in range(first, first + 500))
        store.write([LogWrite({}, batches=batches)])
    fill(disk / "filler")
    written = before = 0
    for last in range(500, 29_501, 500):
        store.delete_prefix(last)
        written += max(store._wal._size_bytes - before, 0)
        before = store._wal._size_bytes
    assert written > RESERVE_SIZE_BYTES * 3 // 2
    assert store.first_index() == 29_501
    assert store.get_records(29_501, 30_000, 1 << 30) == [b"x" * 600] * 500
    store.close()


# -- the file, where there is space


def allocates(path: Path) -> None:
    Reserve(path).hold()
    assert (path / RESERVE_FILE).stat().st_blocks * 512 >= RESERVE_SIZE_BYTES


def test_a_hollow_reserve_is_filled(tmp_path: Path) -> None:
    """As a copy of a data directory may be."""
    with (tmp_path / RESERVE_FILE).open("wb") as file:
        file.truncate(RESERVE_SIZE_BYTES)
    allocates(tmp_path)


def test_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    allocates(tmp_path)
    assert (tmp_path / RESERVE_FILE).read_bytes() == bytes(RESERVE_SIZE_BYTES)


def test_an_allocation_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int) -> None:
        os.pwrite(descriptor, b"x" * 100_000, 0)
        raise OSError("no space")

    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(reserve, "_fill", half)
    with pytest.raises(OSError, match="no space"):
        Reserve(tmp_path).hold()
    assert (tmp_path / RESERVE_FILE).stat().st_size == 0
    assert Reserve(tmp_path).spend() is False


def test_the_reserve_is_spent_once(tmp_path: Path) -> None:
    held = Reserve(tmp_path)
    held.hold()
    assert held.spend() is True
    assert not (tmp_path / RESERVE_FILE).exists()
    assert held.spend() is False
    held.hold()
    assert (tmp_path / RESERVE_FILE).exists()


def test_a_reserve_that_cannot_be_made_is_told_with_the_first_entry(tmp_path: Path) -> None:
    (tmp_path / RESERVE_FILE).mkdir()
    store = SqliteStore.open(tmp_path, N1)
    with pytest.raises(StorageError, match="takes no more entries: Is a directory"):
        append(store)
    store.close()
