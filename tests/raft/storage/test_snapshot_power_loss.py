"""Power loss at every write boundary of snapshots being written.

Names, bytes and flushes are recorded where the store asks the system for them. Then, for each point
of the record, the directory is made as a power loss at that point may leave it
(`rafthttp.testing.powerloss`): a file's bytes are there once the file was flushed, and a name that
came, changed or went counts once its directory was. The newest snapshot that was acknowledged is
there and whole, or the one under way.
"""

from __future__ import annotations

import io
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rafthttp.raft.errors import CorruptSnapshotError
from rafthttp.raft.storage import snapshot_files
from rafthttp.raft.storage.snapshot_files import (
    META_FILE,
    PARTIAL_SUFFIX,
    STATE_FILE,
    FileSnapshotSink,
    FileSnapshotStore,
)
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID
from rafthttp.testing.powerloss import KINDS, Write, surviving

CONFIGURATION = Configuration((Server(ServerID("n1"), ServerAddress("127.0.0.1:8101")),))
SNAPSHOTS, RETAIN = 6, 2
PIECE_BYTES = 3000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Link:
    """A name in a directory, for a file or a directory that was made just now."""

    name: str
    entry: str
    made: str


@dataclass(frozen=True)
class Unlink:
    """The name is gone."""

    name: str
    entry: str


@dataclass(frozen=True)
class Rename:
    """Another name, in the same directory, for what was made as `made`."""

    name: str
    old: str
    new: str
    made: str


@dataclass(frozen=True)
class Sync:
    """What was written to the file, or the names in the directory, are durable."""

    name: str


@dataclass(frozen=True)
class Acknowledged:
    """This snapshot was taken."""

    index: int


Change = Write | Link | Unlink | Rename
Event = Change | Sync | Acknowledged


@dataclass
class Record:
    """What was asked of the disk. Files and directories go by a name of their own, for life."""

    root: Path
    events: list[Event] = field(default_factory=list[Event])
    made: dict[Path, str] = field(default_factory=dict[Path, str])

    def __post_init__(self) -> None:
        self.made[self.root] = "/"

    def make(self, path: Path) -> str:
        """A new file or directory."""
        number = sum(isinstance(event, Link) for event in self.events)
        self.made[path] = f"{path.name} #{number}"
        self.events.append(Link(self.made[path.parent], path.name, self.made[path]))
        return self.made[path]

    def rename(self, old: Path, new: Path) -> None:
        """All that lies under a directory moves with it."""
        event = Rename(self.made[old.parent], old.name, new.name, self.made[old])
        moved = {path: name for path, name in self.made.items() if path.is_relative_to(old)}
        for path in moved:
            del self.made[path]
        self.made |= {new / path.relative_to(old): name for path, name in moved.items()}
        self.events.append(event)

    def unlink(self, path: Path) -> None:
        """A file or an empty directory."""
        self.events.append(Unlink(self.made[path.parent], path.name))
        del self.made[path]


def open_at(descriptor: int | None) -> Path:
    """The directory that a relative name belongs to."""
    return Path() if descriptor is None else Path(os.readlink(f"/proc/self/fd/{descriptor}"))


@contextmanager
def recorded(record: Record) -> Generator[None]:
    """What is asked of the system within is recorded, once it has succeeded."""

    class File(io.FileIO):
        def __init__(self, path: Path) -> None:
            super().__init__(path, "xb")
            self.made = record.make(path)

        def write(self, data: Any, /) -> int:
            octets = bytes(data)
            record.events.append(Write(self.made, self.tell(), octets))
            assert super().write(octets) == len(octets)
            return len(octets)

    inner_open, mkdir, rename = Path.open, os.mkdir, os.rename
    fsync, unlink, rmdir = os.fsync, os.unlink, os.rmdir

    def open_(path: Path, mode: str = "r", buffering: int = -1, **named: Any) -> Any:
        if "x" not in mode:
            return inner_open(path, mode, buffering, **named)
        file = File(path)
        return io.BufferedWriter(file) if buffering else file

    def mkdir_(path: Any, *arguments: Any, **named: Any) -> None:
        mkdir(path, *arguments, **named)
        record.make(Path(path))

    def rename_(old: Any, new: Any) -> None:
        rename(old, new)
        record.rename(Path(old), Path(new))

    def fsync_(descriptor: int) -> None:
        fsync(descriptor)
        record.events.append(Sync(record.made[open_at(descriptor)]))

    def unlink_(path: Any, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        record.unlink(open_at(dir_fd) / path)

    def rmdir_(path: Any, *, dir_fd: int | None = None) -> None:
        rmdir(path, dir_fd=dir_fd)
        record.unlink(open_at(dir_fd) / path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        for name, call in (
            ("mkdir", mkdir_),
            ("rename", rename_),
            ("fsync", fsync_),
            ("unlink", unlink_),
            ("rmdir", rmdir_),
        ):
            patch.setattr(os, name, call)
        yield


def state(index: int) -> bytes:
    """Of several writes, which begin and end anywhere in a sector."""
    return b"%d," % index * (5000 + 700 * index)


def write(store: FileSnapshotStore, index: int) -> FileSnapshotSink:
    data = state(index)
    sink = store.create(index, 1, CONFIGURATION, 1)
    for at in range(0, len(data), PIECE_BYTES):
        sink.write(data[at : at + PIECE_BYTES])
    return sink


@pytest.fixture(autouse=True)
def small_and_quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Several writes a snapshot; and no warning of each that is not whole."""
    monkeypatch.setattr(snapshot_files, "_BUFFER_BYTES", 2 * PIECE_BYTES)
    caplog.set_level(logging.ERROR, "rafthttp.raft.storage")


def record_workload(root: Path) -> Sequence[Event]:
    """Snapshots one after the other; two at once, of which one is given up; a reopening."""
    record = Record(root.resolve())
    directory = record.root / "data" / "snapshots"
    with recorded(record):
        store = FileSnapshotStore(directory, RETAIN)
        killed: FileSnapshotSink | None = None
        for index in range(1, SNAPSHOTS + 1):
            given_up = write(store, index - 1) if index % 3 == 0 else None
            sink = write(store, index)
            sink.close()
            record.events.append(Acknowledged(index))
            if given_up is not None:
                given_up.cancel()
            if index == SNAPSHOTS // 2:
                killed = write(store, index + 1)  # as if the process were
                store = FileSnapshotStore(directory, RETAIN)
    assert killed is not None
    killed.cancel()  # closes its file
    return record.events


@dataclass
class Disk:
    """What files and directories hold."""

    files: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    names: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def apply(self, change: Change) -> None:
        """One change; of a file that has no name too, since it may have one later."""
        match change:
            case Write():
                content = self.files.setdefault(change.name, bytearray())
                if len(content) < change.offset:
                    content.extend(bytes(change.offset - len(content)))
                content[change.offset : change.offset + len(change.data)] = change.data
            case Link():
                self.names.setdefault(change.name, {})[change.entry] = change.made
            case Unlink():
                self.names.setdefault(change.name, {}).pop(change.entry, None)
            case Rename():
                names = self.names.setdefault(change.name, {})
                if names.get(change.old) == change.made:
                    del names[change.old]
                names[change.new] = change.made

    def copy(self) -> Disk:
        """Another of the same content."""
        files = {name: bytearray(content) for name, content in self.files.items()}
        return Disk(files, {name: dict(names) for name, names in self.names.items()})

    def build(self, at: Path, directories: set[str], name: str = "/") -> None:
        """Make it in a real directory."""
        for entry, made in self.names.get(name, {}).items():
            if made in directories:
                (at / entry).mkdir()
                self.build(at / entry, directories, made)
            else:
                (at / entry).write_bytes(self.files.get(made, b""))


def losses(
    events: Sequence[Event], kinds: Sequence[str], chosen: random.Random
) -> Iterator[tuple[int, int, str, Disk]]:
    """(event, the snapshot acknowledged last, kind, disk) for power losses behind each event."""
    durable = Disk()
    later: list[Change] = []
    acknowledged = 0
    for number, event in enumerate(events):
        match event:
            case Acknowledged():
                acknowledged = event.index
            case Sync():
                for change in later:
                    if change.name == event.name:
                        durable.apply(change)
                later = [change for change in later if change.name != event.name]
            case _:
                later.append(event)
        for kind in kinds:
            disk = durable.copy()
            for change in surviving(later, kind, chosen):
                disk.apply(change)
            yield number, acknowledged, kind, disk


def check(root: Path, acknowledged: int, what: str) -> str:
    """Open what is left; what is there."""
    store = FileSnapshotStore(root / "data" / "snapshots", RETAIN)
    newest = 0
    for meta in store.list()[:1]:
        with store.open(meta.id)[1] as source:
            assert source.read() == state(meta.index), f"{what}: {meta.index} is not whole"
        newest = meta.index
    assert newest in (acknowledged, acknowledged + 1), f"{what}: {newest} and not {acknowledged}"
    write(store, SNAPSHOTS + 1).close()  # and it takes more
    found = [meta.index for meta in store.list()]
    assert found[0] == SNAPSHOTS + 1, what
    assert len(found) <= RETAIN, what
    names = os.listdir(root / "data" / "snapshots")
    assert not [name for name in names if name.endswith(PARTIAL_SUFFIX)], f"{what}: {names}"
    return "as acknowledged" if newest == acknowledged else "one more"


def try_losses(events: Sequence[Event], seed: int) -> Counter[str]:
    """Open what each power loss leaves; how often which kind left what."""
    directories = {event.name for event in events if isinstance(event, Link | Unlink | Rename)}
    outcomes: Counter[str] = Counter()
    for number, acknowledged, kind, disk in losses(events, KINDS, random.Random(seed)):
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            disk.build(Path(directory), directories)
            outcome = check(Path(directory), acknowledged, f"event {number}, {kind}")
        outcomes[f"{kind}, {outcome}"] += 1
    return outcomes


@pytest.mark.parametrize("seeds", [1, pytest.param(25, marks=pytest.mark.soak)])
def test_power_loss_at_every_write(tmp_path: Path, seeds: int) -> None:
    """S9, S49."""
    events = record_workload(tmp_path)
    asked = Counter(type(event).__name__ for event in events)
    assert asked["Write"] > 3 * SNAPSHOTS, asked
    assert asked["Sync"] >= 4 * SNAPSHOTS, asked
    outcomes: Counter[str] = Counter()
    for seed in range(seeds):
        outcomes += try_losses(events, seed)
    print(dict(asked))
    print(f"{outcomes.total()} power losses:", dict(sorted(outcomes.items())))
    assert {outcome.partition(",")[0] for outcome in outcomes} == set(KINDS)
    assert len(outcomes) > len(KINDS), outcomes


@pytest.mark.parametrize("missing", [STATE_FILE, META_FILE, PARTIAL_SUFFIX, "snapshots", "data"])
def test_a_flush_that_is_missing_is_seen(tmp_path: Path, missing: str) -> None:
    """The checker is checked: files of that name, or directories, are never flushed."""
    events = record_workload(tmp_path)
    unsafe = [
        event for event in events if not (isinstance(event, Sync) and f"{missing} #" in event.name)
    ]
    assert len(unsafe) < len(events)
    with pytest.raises((AssertionError, CorruptSnapshotError)):
        try_losses(unsafe, 0)
