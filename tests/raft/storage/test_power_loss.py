"""Power loss at every write boundary of a recorded workload.

The store runs on apsw, whose sqlite shows every write, truncation and flush that it asks of the
operating system; the mark file's writes join the same record. Then, for each point of the record,
the files are made as a power loss at that point may leave them, and opened with the standard
sqlite3: what was acknowledged is there, and nothing else but the one operation under way.

What a power loss may do is told by `rafthttp.testing.powerloss`: everything before a file's last
flush is there, and of what came later anything, torn where the file's sectors of 512 or 4096 bytes
begin, with or without garbage in their place.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import pytest

from rafthttp.raft.errors import CorruptLogError
from rafthttp.raft.storage import reserve, wal
from rafthttp.raft.storage import sqlite as sqlite_store
from rafthttp.raft.storage.mark import MARK_FILE, Mark, MarkFile
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID
from rafthttp.testing.powerloss import KINDS, Write, surviving
from rafthttp.testing.storage import DurableStore

N1 = ServerID("n1")
# What a power loss leaves is made where a flush costs nothing, if there is such a place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Truncate:
    """The file's new size."""

    name: str
    size: int


@dataclass(frozen=True)
class Sync:
    """What was written to the file before is durable."""

    name: str


@dataclass(frozen=True)
class Delete:
    """The file is gone."""

    name: str


@dataclass(frozen=True)
class SyncDirectory:
    """What was deleted before is gone for good."""


@dataclass(frozen=True)
class Acknowledged:
    """The first `operations` operations of the workload have returned."""

    operations: int


Change = Write | Truncate | Delete
Event = Change | Sync | SyncDirectory | Acknowledged


@dataclass
class Record:
    """Everything that was asked of the disk, in order."""

    events: list[Event] = field(default_factory=list[Event])


def recorded_file(record: Record) -> Callable[[Any, list[int]], apsw.VFSFile]:
    """A file of sqlite's own system layer that notes what is written to it."""

    class File(apsw.VFSFile):
        def __init__(self, filename: Any, flags: list[int]) -> None:
            super().__init__("", filename, flags)
            path = filename.filename() if isinstance(filename, apsw.URIFilename) else filename
            self.name = Path(path).name
            # With the first flush of such a file sqlite flushes its directory, too.
            self.is_new = self.name.endswith(("-wal", "-journal"))

        def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - sqlite's name
            record.events.append(Write(self.name, offset, bytes(data)))
            super().xWrite(data, offset)  # pyright: ignore[reportUnknownMemberType] - no buffer type

        def xTruncate(self, newsize: int) -> None:  # noqa: N802 - sqlite's name
            record.events.append(Truncate(self.name, newsize))
            super().xTruncate(newsize)

        def xSync(self, flags: int) -> None:  # noqa: N802 - sqlite's name
            super().xSync(flags)
            record.events.append(Sync(self.name))
            if self.is_new:
                record.events.append(SyncDirectory())
                self.is_new = False

    return File


class RecordedSystem(apsw.VFS):
    """sqlite's own system layer, recorded."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._file = recorded_file(record)
        super().__init__("recorded", "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - sqlite's name
        return self._file(name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - sqlite's name
        self._record.events.append(Delete(Path(filename).name))
        super().xDelete(filename, syncdir)
        if syncdir:
            self._record.events.append(SyncDirectory())


class RecordedCursor(apsw.Cursor):
    """A cursor with what the store uses of the standard library's."""

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed."""
        return self.get_connection().changes()

    def fetchmany(self, size: int) -> list[Any]:
        """The next rows."""
        return list(islice(self, size))


class RecordedConnection(apsw.Connection):
    """A connection to which the standard library's settings can be given; they are ignored."""

    text_factory: Any

    def __init__(self, path: Path, **_: Any) -> None:
        super().__init__(str(path), vfs="recorded")
        self.cursor_factory = RecordedCursor


class RecordedMark(MarkFile):
    """The mark, recorded; it is never flushed."""

    record: Record

    def write(self, mark: Mark) -> None:
        """Note what is written (`MarkFile`)."""
        super().write(mark)
        written = Path(f"/proc/self/fd/{self._descriptor}").read_bytes()
        self.record.events.append(Write(MARK_FILE, 0, written))


def operation(store: DurableStore, number: int) -> None:
    """The `number`-th operation: the same for equal stores."""
    chosen = random.Random(number)
    first, last = store.first_index(), store.last_index()
    held = last >= first
    if held and last - first > 40 and chosen.random() < 0.4:
        store.delete_prefix(first + chosen.randrange(30))
        return
    if chosen.random() < 0.15:
        store.set({b"term": b"%d" % number, b"vote": b"%d" % number})
        return
    reset_to = last + chosen.randrange(20) if chosen.random() < 0.04 else None
    truncate_from = None
    if reset_to is not None:
        last = reset_to
    elif held and chosen.random() < 0.15:
        truncate_from = max(first, last - chosen.randrange(10))
        last = truncate_from - 1
    size = chosen.choice([1, 10, 300, 3000])
    records = [b"%d/%d " % (number, i) * size for i in range(chosen.choice([1, 1, 2, 12]))]
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


def play(store: SqliteStore, operations: range, on_done: Callable[[int], None]) -> None:
    """Do the operations, checkpoints at moments of their own, and report each."""
    for number in operations:
        operation(store, number)
        on_done(number + 1)
        if number % 7 == 3:
            store.maintain()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A mark is lost or broken half of the time, and each is a warning."""
    caplog.set_level(logging.ERROR, "rafthttp.raft.storage")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Record]:
    """Records a workload of so many operations, the store reopened in its middle."""
    monkeypatch.setattr(reserve, "RESERVE_SIZE_BYTES", 4096)
    monkeypatch.setattr(sqlite_store, "RESERVE_SIZE_BYTES", 4096)
    monkeypatch.setattr(wal, "DUE_BYTES", 64 << 10)
    monkeypatch.setattr(wal, "BOUND_BYTES", 128 << 10)

    def run(operations: int) -> Record:
        found = Record()
        system = RecordedSystem(found)
        RecordedMark.record = found

        def on_directory_synced(_: Path) -> None:
            found.events.append(SyncDirectory())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", RecordedConnection)
            patch.setattr(sqlite_store, "MarkFile", RecordedMark)
            patch.setattr(sqlite_store, "sync_directory", on_directory_synced)
            half = operations // 2
            for part in (range(half), range(half, operations)):
                store = SqliteStore.open(tmp_path / "recorded", N1)
                play(store, part, lambda done: found.events.append(Acknowledged(done)))
                store.close()
        system.unregister()
        return found

    return run


def apply(files: dict[str, bytearray], event: Change) -> None:
    """What an event makes of the files."""
    match event:
        case Delete():
            files.pop(event.name, None)
        case Truncate():
            del files.setdefault(event.name, bytearray())[event.size :]
        case Write():
            content = files.setdefault(event.name, bytearray())
            if len(content) < event.offset:
                content.extend(bytes(event.offset - len(content)))
            content[event.offset : event.offset + len(event.data)] = event.data


def after_power_loss(
    durable: dict[str, bytearray], later: Sequence[Change], kind: str, chosen: random.Random
) -> dict[str, bytearray]:
    """The files as a power loss leaves them: all that is durable, and some of what came later."""
    files = {name: bytearray(content) for name, content in durable.items()}
    for event in surviving(later, kind, chosen):
        apply(files, event)
    return files


def named(name: str) -> Callable[[Change], bool]:
    """Whether a change is of that file."""
    return lambda change: change.name == name


def losses(
    events: Sequence[Event], kinds: Sequence[str], chosen: random.Random, every: int
) -> Iterator[tuple[int, int, str, dict[str, bytearray]]]:
    """(event, operations acknowledged, kind, files) for power losses behind the events.

    With `every` above 1 each kind comes behind so many events, not all of them behind the same.
    """
    durable: dict[str, bytearray] = {}
    later: list[Change] = []
    acknowledged = 0

    def settle(is_durable: Callable[[Change], bool]) -> None:
        for change in later:
            if is_durable(change):
                apply(durable, change)
        later[:] = [change for change in later if not is_durable(change)]

    for number, event in enumerate(events):
        match event:
            case Acknowledged():
                acknowledged = event.operations
            case Sync():
                settle(named(event.name))
            case SyncDirectory():
                settle(lambda change: isinstance(change, Delete))
            case _:
                later.append(event)
        for position, kind in enumerate(kinds):
            if (number + position) % every == 0:
                yield number, acknowledged, kind, after_power_loss(durable, later, kind, chosen)


def check(directory: Path, files: dict[str, bytearray], allowed: Sequence[Any], what: str) -> int:
    """Open what is left; which of the allowed states it is."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
    store = SqliteStore.open(directory, N1)
    try:
        found = state(store)
        assert found in allowed, f"{what}: {found[:2]} is none of {[each[:2] for each in allowed]}"
        operation(store, 10_000)  # and it takes writes
        return allowed.index(found)
    finally:
        store.close()


def states_of(operations: int) -> list[Any]:
    """What the store holds before the first operation, and after each."""
    model = MemoryStore()
    states = [state(model)]
    for number in range(operations):
        operation(model, number)
        states.append(state(model))
    return states


def try_losses(
    events: Sequence[Event], states: Sequence[Any], kinds: Sequence[str], every: int
) -> Counter[str]:
    """Open what each power loss leaves; how often which kind left what."""
    outcomes: Counter[str] = Counter()
    chosen = random.Random(11)
    for number, acknowledged, kind, files in losses(events, kinds, chosen, every):
        allowed = states[acknowledged : acknowledged + 2]
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            index = check(Path(directory), files, allowed, f"event {number}, {kind}")
        outcomes[f"{kind}, {('as acknowledged', 'one more')[index]}"] += 1
    print(f"{len(events)} events, {outcomes.total()} power losses:", dict(sorted(outcomes.items())))
    return outcomes


def test_power_loss_at_many_writes(record: Callable[[int], Record]) -> None:
    """S1, S2, S5, S7, S8. At each boundary one kind at most, in turn."""
    operations = 120
    events = record(operations).events
    assert sum(isinstance(event, Sync) and event.name == DATABASE_FILE for event in events) > 3
    outcomes = try_losses(events, states_of(operations), KINDS, len(KINDS) + 1)
    assert {outcome.partition(",")[0] for outcome in outcomes} == set(KINDS)
    assert len(outcomes) > len(KINDS), outcomes


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_power_loss_at_every_write(record: Callable[[int], Record], kind: str) -> None:
    """S1, S2, S5, S7, S8. Behind every event."""
    operations = 600
    try_losses(record(operations).events, states_of(operations), [kind], 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "kept"])
def test_a_flush_that_is_missing_is_seen(record: Callable[[int], Record], kind: str) -> None:
    """The checker is checked: from some moment on the wal is not flushed any more."""
    operations = 20
    events = record(operations).events
    begin = events.index(Acknowledged(5))
    wal_flushed = Sync(f"{DATABASE_FILE}-wal")
    unsafe = events[:begin] + [event for event in events[begin:] if event != wal_flushed]
    try_losses(unsafe[:begin], states_of(operations), [kind], 1)
    # The mark may survive, and then the store itself says what is gone.
    with pytest.raises((AssertionError, CorruptLogError)):
        try_losses(unsafe, states_of(operations), [kind], 1)
