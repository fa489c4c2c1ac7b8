"""Real errors of real system calls under the store: it stops writing and stays right.

No error is made up in Python: the descriptor of the wal is exchanged underneath sqlite, or a limit
on the size of files is set. A full disk has its own file, test_reserve.py.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from rafthttp.raft.errors import CorruptLogError, StorageError, StoragePoisonedError
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID

N1 = ServerID("n1")


def record(index: int) -> bytes:
    return b"%d " % index * 50


def append(store: SqliteStore, count: int = 20) -> None:
    first = store.last_index() + 1
    records = [record(index) for index in range(first, first + count)]
    stable: dict[bytes, bytes | None] = {b"last": b"%d" % (first + count - 1)}
    store.write([LogWrite(stable, batches=(LogBatch(first, 1, records),))])


def check(store: SqliteStore, *last_indexes: int) -> None:
    """A whole prefix of what was appended, pairs and entries of one commit together."""
    last = store.last_index()
    assert last in last_indexes
    assert store.get(b"last") == b"%d" % last
    assert store.get_records(1, last, 1 << 40) == [record(i) for i in range(1, last + 1)]


@contextmanager
def wal_replaced(store: SqliteStore, path: str, flags: int) -> Generator[None]:
    """Let the wal's descriptor stand for `path`, underneath sqlite; put back at the end."""
    wal = f"{store._path}-wal"
    (descriptor,) = (
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.exists() and os.readlink(link) == wal
    )
    saved, other = os.dup(descriptor), os.open(path.format(wal=wal), flags)
    os.dup2(other, descriptor)
    os.close(other)
    try:
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def write_fails(store: SqliteStore) -> AbstractContextManager[None]:
    """`pwrite` answers EBADF, as it may answer EIO."""
    return wal_replaced(store, "{wal}", os.O_RDONLY)


def fsync_fails(store: SqliteStore) -> AbstractContextManager[None]:
    """`pwrite` succeeds, `fdatasync` answers EINVAL: a write that the disk did not take."""
    return wal_replaced(store, "/dev/null", os.O_RDWR)


@contextmanager
def file_size_limited(store: SqliteStore) -> Generator[None]:
    """`pwrite` is short, then answers EFBIG, as it does with ENOSPC on a full disk."""
    wal = Path(f"{store._path}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Fault = Callable[[SqliteStore], AbstractContextManager[None]]
faults = pytest.mark.parametrize("fault", [write_fails, fsync_fails, file_size_limited])


@faults
def test_after_a_failed_write_there_are_no_more(tmp_path: Path, fault: Fault) -> None:
    """S6, S7: nothing is retried; what was acknowledged is there after a fresh open."""
    store = SqliteStore.open(tmp_path, N1)
    append(store)
    with fault(store), pytest.raises(StorageError) as caught:
        append(store)
    assert not isinstance(caught.value, StoragePoisonedError | CorruptLogError)
    assert f"write of {tmp_path / DATABASE_FILE} failed: " in str(caught.value)

    # The cause has gone, and still: only a fresh open knows what the disk holds.
    writes: list[Callable[[], None]] = [
        lambda: append(store),
        lambda: store.set({b"vote": b"n2"}),
        lambda: store.delete_prefix(5),
        lambda: store.write([LogWrite({}, truncate_from=5)]),
    ]
    for write in writes:
        with pytest.raises(StoragePoisonedError, match="until it is opened afresh"):
            write()
    check(store, 20)  # reading goes on
    store.close()

    store = SqliteStore.open(tmp_path, N1)
    check(store, 20, 40)
    assert (store.first_index(), store.get(b"vote")) == (1, None)
    last = store.last_index()
    append(store)
    check(store, last + 20)
    store.close()


@faults
def test_every_kind_of_write_poisons(tmp_path: Path, fault: Fault) -> None:
    kinds: list[Callable[[SqliteStore], None]] = [
        lambda store: store.set({b"vote": b"x" * 5000}),
        lambda store: store.write([LogWrite({}, truncate_from=7)]),
        lambda store: store.write([LogWrite({b"vote": b"x" * 5000}, reset_to=9)]),
        lambda store: store.delete_prefix(7),
    ]
    for number, write in enumerate(kinds):
        store = SqliteStore.open(tmp_path / str(number), N1)
        append(store)
        with fault(store), pytest.raises(StorageError):
            write(store)
        with pytest.raises(StoragePoisonedError):
            store.set({})
        check(store, 20)
        store.close()


def test_a_store_that_cannot_write_at_open_is_not_opened(tmp_path: Path) -> None:
    """The durable commit at open fails: nothing is reported, and the lock is free again."""
    SqliteStore.open(tmp_path, N1).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(StorageError, match="cannot be used: disk I/O error"):
            SqliteStore.open(tmp_path, N1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    SqliteStore.open(tmp_path, N1).close()


def test_an_interrupted_write_poisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a transaction: all or nothing, and no second try."""
    store = SqliteStore.open(tmp_path, N1)
    append(store)

    def interrupted(batch: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rafthttp.raft.storage.rows.pack_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write([LogWrite({}, 10, (LogBatch(10, 2, [b"x"]),))])  # truncated by then
    with pytest.raises(StoragePoisonedError, match="KeyboardInterrupt"):
        append(store)
    check(store, 20)
    store.close()
    store = SqliteStore.open(tmp_path, N1)
    check(store, 20)
    store.close()


def test_calls_from_many_threads_are_serialised(tmp_path: Path) -> None:
    """Not the contract, which has one caller; but nothing may be torn where it is broken."""
    store = SqliteStore.open(tmp_path, N1)
    append(store)
    failures: list[BaseException] = []

    def work(key: bytes) -> None:
        try:
            for number in range(30):
                store.set({key: b"%d" % number})
                assert store.get(key) == b"%d" % number
                check(store, 20)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store.close()
