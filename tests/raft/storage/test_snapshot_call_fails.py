"""EIO and ENOSPC at every call with which snapshots are written, one after the other.

Names, writes and flushes are counted where the store asks the system for them. One call fails, or
all that need room from one on. A snapshot that was taken is there, one that failed is not, and once
the disk is well the store goes on; nothing partial stays.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage import snapshot_files
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

CONFIGURATION = Configuration((Server(ServerID("n1"), ServerAddress("127.0.0.1:8101")),))
SNAPSHOTS, RETAIN = 5, 2
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Disk:
    """Counts calls; from `first_failing` on they fail."""

    def __init__(self, first_failing: int = 0, *, full: bool = False) -> None:
        self.first_failing, self.full = first_failing, full
        self.calls = 0

    def call(self, *, allocates: bool) -> None:
        """One call."""
        self.calls += 1
        if self.first_failing and self.calls >= self.first_failing:
            if self.full and allocates:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not self.full and self.calls == self.first_failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def faulty(disk: Disk) -> Generator[None]:
    """Snapshots are written to that disk within."""

    class FaultyFile(io.FileIO):
        def write(self, data: Any, /) -> int:
            try:
                disk.call(allocates=True)
            except OSError:
                del data  # the system keeps no hold of a buffer, and a traceback would
                raise
            return super().write(data)

    def failing(call: Callable[..., Any], *, allocates: bool) -> Callable[..., Any]:
        def tried(*arguments: Any, **named: Any) -> Any:
            disk.call(allocates=allocates)
            return call(*arguments, **named)

        return tried

    inner_open = Path.open

    def open_(path: Path, mode: str = "r", buffering: int = -1, **named: Any) -> Any:
        if "x" not in mode:
            return inner_open(path, mode, buffering, **named)
        disk.call(allocates=True)
        file = FaultyFile(path, "xb")
        return io.BufferedWriter(file) if buffering else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        patch.setattr(Path, "mkdir", failing(Path.mkdir, allocates=True))
        patch.setattr(Path, "rename", failing(Path.rename, allocates=True))
        patch.setattr(os, "fsync", failing(os.fsync, allocates=False))
        patch.setattr(os, "unlink", failing(os.unlink, allocates=False))
        sync = snapshot_files.sync_directory  # type: ignore[attr-defined]  # where it is used
        patch.setattr(snapshot_files, "sync_directory", failing(sync, allocates=False))
        yield


def state(index: int) -> bytes:
    """Two pieces above the store's buffer, and a rest."""
    return b"%d," % index * 100_000


def take(store: FileSnapshotStore, index: int) -> None:
    data = state(index)
    sink = store.create(index, 1, CONFIGURATION, 1)
    try:
        for at in range(0, len(data), 200_000):
            sink.write(data[at : at + 200_000])
        sink.close()
    except BaseException:
        sink.cancel()
        raise


def indexes(store: FileSnapshotStore) -> list[int]:
    """Those that are listed, newest first, and each is whole."""
    found: list[int] = []
    for meta in store.list():
        with store.open(meta.id)[1] as source:
            assert source.read() == state(meta.index)
        found.append(meta.index)
    return found


def run(disk: Disk) -> str:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name) / "snapshots"
        taken, failed = 0, 0
        # At the first calls the store may not come to be.
        with faulty(disk), suppress(StorageError):
            store = FileSnapshotStore(directory, RETAIN)
            for index in range(1, SNAPSHOTS + 1):
                try:
                    take(store, index)
                    taken = index
                except StorageError:
                    failed += 1
                assert indexes(store)[:1] == ([taken] if taken else []), "what it said"
        again = FileSnapshotStore(directory, RETAIN)
        found = indexes(again)
        assert found[:1] == ([taken] if taken else []), f"{found}, but {taken} was taken last"
        take(again, SNAPSHOTS + 1)
        assert indexes(again)[0] == SNAPSHOTS + 1
        assert len(indexes(again)) <= RETAIN
        names = os.listdir(directory)
        assert not [name for name in names if name.endswith(".tmp")], names
        return f"{failed} failed"


@pytest.mark.parametrize("full", [False, True], ids=["EIO", "ENOSPC"])
def test_every_call_fails(full: bool) -> None:
    """S41, S49."""
    healthy = Disk()
    assert run(healthy) == "0 failed"
    assert healthy.calls > 10 * SNAPSHOTS
    outcomes = Counter(run(Disk(number, full=full)) for number in range(1, healthy.calls + 1))
    print(healthy.calls, dict(outcomes))
    assert outcomes["1 failed"] >= SNAPSHOTS
