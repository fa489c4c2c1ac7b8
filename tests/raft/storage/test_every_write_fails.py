"""EIO and ENOSPC at every write, truncation and flush of a workload, one after the other.

The store runs on apsw, whose sqlite asks this file for every call to the disk; the mark, the
reserve and the directory's flush join in. Each run lets one call fail, or all from one on as a full
disk does. What was acknowledged is there afterwards, nothing else but the one operation under way,
and the store works again once the disk does.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import pytest

from rafthttp.raft.errors import CorruptLogError, StorageError, StoragePoisonedError
from rafthttp.raft.storage import reserve, wal
from rafthttp.raft.storage import sqlite as sqlite_store
from rafthttp.raft.storage.lock import sync_directory
from rafthttp.raft.storage.mark import Mark, MarkFile
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID
from rafthttp.testing.storage import DurableStore

N1 = ServerID("n1")
# Flushes cost nothing there, if there is such a place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
OPERATIONS_AFTER = 3


@dataclass
class Disk:
    """A disk whose `first_failing`-th call fails, and all later ones if it is `full`."""

    first_failing: int = 0
    full: bool = False
    calls: int = 0
    failed: int = 0

    def call(self, *, allocates: bool = True) -> None:
        """A call to it. A full disk still flushes, truncates and writes over what is there."""
        self.calls += 1
        if not self.first_failing or self.calls < self.first_failing:
            return
        if self.full:
            if allocates:
                self.failed += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.calls == self.first_failing:
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def faulty_file(disk: Disk) -> Callable[[Any, list[int]], apsw.VFSFile]:
    """A file of sqlite's own system layer on that disk."""

    class File(apsw.VFSFile):
        def __init__(self, filename: Any, flags: list[int]) -> None:
            super().__init__("", filename, flags)

        def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - sqlite's name
            grows = offset + len(data) > self.xFileSize()
            with as_sqlite(apsw.SQLITE_IOERR_WRITE):
                disk.call(allocates=grows)
            super().xWrite(data, offset)  # pyright: ignore[reportUnknownMemberType] - no buffer type

        def xTruncate(self, newsize: int) -> None:  # noqa: N802 - sqlite's name
            with as_sqlite(apsw.SQLITE_IOERR_TRUNCATE):
                disk.call(allocates=False)
            super().xTruncate(newsize)

        def xSync(self, flags: int) -> None:  # noqa: N802 - sqlite's name
            with as_sqlite(apsw.SQLITE_IOERR_FSYNC):
                disk.call(allocates=False)
            super().xSync(flags)

    return File


@contextmanager
def as_sqlite(code: int) -> Generator[None]:
    """An error of the system, as sqlite's own system layer tells it."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC
        told: apsw.Error = apsw.FullError("full") if full else apsw.IOError("disk I/O error")
        told.__dict__["extendedresult"] = apsw.SQLITE_FULL if full else code
        raise told from None


class FaultySystem(apsw.VFS):
    """sqlite's own system layer on a faulty disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._file = faulty_file(disk)
        super().__init__("faulty", "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - sqlite's name
        return self._file(name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - sqlite's name
        with as_sqlite(apsw.SQLITE_IOERR_DELETE):
            self._disk.call(allocates=False)
        super().xDelete(filename, syncdir)


@contextmanager
def as_standard() -> Generator[None]:
    """An error of apsw, as the standard library tells it."""
    try:
        yield
    except apsw.Error as error:
        told = sqlite3.OperationalError(str(error))
        told.sqlite_errorcode = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
        raise told from error


class StandardCursor(apsw.Cursor):
    """A cursor with what the store uses of the standard library's."""

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed."""
        return self.get_connection().changes()

    def fetchone(self) -> Any:
        """The next row."""
        with as_standard():
            return super().fetchone()

    def fetchmany(self, size: int) -> list[Any]:
        """The next rows."""
        with as_standard():
            return list(islice(self, size))

    def close(self, force: bool = False) -> None:
        """As the standard library's, which tells no errors here."""
        del force
        super().close(True)


class StandardConnection(apsw.Connection):
    """A connection to which the standard library's settings can be given; they are ignored."""

    text_factory: Any

    def __init__(self, path: Path, **_: Any) -> None:
        with as_standard():
            super().__init__(str(path), vfs="faulty")
        self.cursor_factory = StandardCursor

    def execute(self, *arguments: Any, **named: Any) -> Any:
        """As the standard library's, errors included."""
        with as_standard():
            return super().execute(*arguments, **named)  # pyright: ignore[reportUnknownMemberType] - apsw's zeroblob

    def close(self, force: bool = False) -> None:
        """Errors of a last checkpoint are nobody's: the wal keeps what it has."""
        del force
        with suppress(apsw.Error):
            super().close(True)


@contextmanager
def faulty(disk: Disk) -> Generator[None]:
    """Stores that are opened within are on that disk."""

    class FaultyMark(MarkFile):
        def write(self, mark: Mark) -> None:
            disk.call(allocates=False)
            super().write(mark)

    allocate = reserve._allocate

    def faulty_allocate(descriptor: int) -> None:
        disk.call()
        allocate(descriptor)

    def faulty_sync(directory: Path) -> None:
        disk.call(allocates=False)
        sync_directory(directory)

    system = FaultySystem(disk)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", StandardConnection)
            patch.setattr(sqlite_store, "MarkFile", FaultyMark)
            patch.setattr(sqlite_store, "sync_directory", faulty_sync)
            patch.setattr(reserve, "_allocate", faulty_allocate)
            yield
    finally:
        system.unregister()


def operation(store: DurableStore, number: int) -> None:
    """The `number`-th operation: the same for equal stores."""
    chosen = random.Random(number)
    first, last = store.first_index(), store.last_index()
    held = last >= first
    if held and last - first > 12 and chosen.random() < 0.4:
        store.delete_prefix(first + chosen.randrange(8))
        return
    if chosen.random() < 0.2:
        store.set({b"term": b"%d" % number, b"vote": b"%d" % number})
        return
    reset_to = last + chosen.randrange(20) if chosen.random() < 0.05 else None
    truncate_from = None
    if reset_to is not None:
        last = reset_to
    elif held and chosen.random() < 0.2:
        truncate_from = max(first, last - chosen.randrange(6))
        last = truncate_from - 1
    size = chosen.choice([1, 10, 300])
    records = [b"%d/%d " % (number, i) * size for i in range(chosen.choice([1, 1, 2, 6]))]
    stable: dict[bytes, bytes | None] = {}
    if chosen.random() < 0.3:
        stable = {b"term": b"%d" % number, b"vote": b"%d" % number}
    batches = (LogBatch(last + 1, number // 10, records),)
    store.write([LogWrite(stable, truncate_from, batches, reset_to)])


def state(store: DurableStore) -> tuple[Any, ...]:
    """All there is to know of a store."""
    first, last = store.first_index(), store.last_index()
    records = store.get_records(first, last, 1 << 40) if last >= first else []
    terms = [store.term_at(index) for index in range(first, last + 1)]
    return first, last, terms, records, store.get(b"term"), store.get(b"vote")


def play(data_dir: Path, operations: int, expected: list[Any]) -> tuple[int, str]:
    """How many operations were acknowledged, and how it ended; closed and opened in its middle."""
    done = 0
    for end in (operations // 2, operations):
        try:
            store = SqliteStore.open(data_dir, N1)
        except CorruptLogError as error:
            raise AssertionError(f"a disk that fails is no damage: {error}") from error
        except StorageError:
            return done, "not opened"
        with closing(store):
            assert state(store) == expected[done]
            while done < end:
                try:
                    operation(store, done)
                    done += 1
                    if done % 7 == 3:
                        store.maintain()
                except CorruptLogError as error:
                    raise AssertionError(f"a disk that fails is no damage: {error}") from error
                except StorageError:
                    return done, told(store, expected[done : done + 2])
    return done, "done"


def told(store: SqliteStore, possible: list[Any]) -> str:
    """What a store says of itself after a failure; what it serves is right in any case.

    Where it is poisoned, what failed may be on the disk or not, and either is what a reader gets.
    """
    try:
        store.set({b"other": None})
    except StoragePoisonedError:
        first, last, _, _, term, vote = possible[0]
        assert (store.get(b"term"), store.get(b"vote")) == (term, vote)
        for index in range(first, last + 1):
            allowed = [state[3][index - state[0]] for state in possible if holds(state, index)]
            with suppress(StorageError):
                (record,) = store.get_records(index, index, 1 << 40)
                assert record in allowed
        return "poisoned"
    except StorageError:
        assert state(store) == possible[0]
        return "refused"
    assert state(store) == possible[0]
    return "goes on"


def holds(state: Any, index: int) -> bool:
    return bool(state[0] <= index <= state[1])


# apsw tells an error of the disk that sqlite keeps to itself, as on closing, in this way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("full", [False, True], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(
    ("operations", "every"), [(30, 1), pytest.param(150, 1, marks=pytest.mark.soak)]
)
def test_every_call_fails(
    operations: int, every: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S6, S7, S8."""
    for module in (reserve, sqlite_store):
        monkeypatch.setattr(module, "RESERVE_SIZE_BYTES", 64 << 10)
    monkeypatch.setattr(wal, "DUE_BYTES", 32 << 10)
    monkeypatch.setattr(wal, "BOUND_BYTES", 64 << 10)
    model = MemoryStore()
    expected = [state(model)]
    for number in range(operations):
        operation(model, number)
        expected.append(state(model))

    def run(disk: Disk) -> str:
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            with faulty(disk):
                done, how = play(Path(directory), operations, expected)
            return f"{how}, {after(Path(directory), expected, done)}"

    healthy = Disk()
    assert run(healthy) == "done, acknowledged"
    outcomes: Counter[str] = Counter()
    begin = 1 if every == 1 else 1 + operations % every
    for number in range(begin, healthy.calls + 1, every):
        disk = Disk(number, full)
        outcome = run(disk)
        assert disk.failed or full, "the call came"
        outcomes[outcome] += 1
    print(healthy.calls, dict(outcomes))
    if not full:
        assert any(how.startswith("poisoned") for how in outcomes), outcomes
    assert sum(outcomes.values()) > 50


def after(data_dir: Path, expected: list[Any], done: int) -> str:
    """The disk is well again, and sqlite the standard one: everything is there, and goes on."""
    with closing(SqliteStore.open(data_dir, N1)) as store:
        found = state(store)
        allowed = expected[done : done + 2]
        assert found in allowed, f"{found[:2]} is none of {[each[:2] for each in allowed]}"
        at = done + allowed.index(found)
        for number in range(at, min(at + OPERATIONS_AFTER, len(expected) - 1)):
            operation(store, number)
            assert state(store) == expected[number + 1]
    return ("acknowledged", "one more")[at - done]
