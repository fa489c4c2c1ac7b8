"""One server's disk: what survives its crashes, and what fails.

Knows the store protocols and virtual time. A write is durable at the instant at which it is done;
a crash before that loses it, or keeps it without anybody having been told.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from rafthttp.raft.errors import CorruptLogError, CorruptSnapshotError, StorageError
from rafthttp.raft.runtime.disk import _Write
from rafthttp.raft.runtime.restart import VOTES_FROM
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore, _MemorySink
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.types import Configuration, Index, LogWrite, Term
from rafthttp.testing.coremember import Entry
from rafthttp.testing.driversim.jobs import VirtualJobs
from rafthttp.testing.driversim.loop import VirtualLoop


class Disk:
    """What a server keeps, and how its device behaves. Times in virtual seconds.

    Attributes:
        store: log, term and vote.
        snapshots: the newest snapshot.
        busy_max: a piece of work takes up to this.
        slow_chance: or up to thirty times as long.
        hung_until: nothing is done before.
        fails_next: how the next write fails: `eio`, `enospc`, or not.
        torn_chance: at a crash what was not done yet is there in part, for sure.
        snapshot_failure_chance: writing a snapshot fails: at its begin, on the way, or at its end.
        flipped: where a bit is wrong: in the `log` (or term and vote), in the `snapshot`, or not.
        lost: what it held when it was wiped, as long as a configuration may count on that (S62).
        on_changed: called when the next start would find something else than before.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, seen: Counter[str]) -> None:
        self.rng = rng
        self.seen = seen
        self.store = DiskStore(self)
        self.snapshots = DiskSnapshots(self)
        self.busy_max = 0.001
        self.slow_chance = self.torn_chance = self.snapshot_failure_chance = 0.0
        self.hung_until = 0.0
        self.fails_next: str | None = None
        self.flipped = ""
        self.lost: tuple[DiskStore, DiskSnapshots] | None = None
        self.on_changed: Callable[[], None] = lambda: None
        self._loop = loop
        self._threads: list[VirtualJobs[Any]] = []

    def busy(self) -> float:
        """How long the next piece of work takes (`Device`)."""
        seconds = self.busy_max * self.rng.random()
        if self.slow_chance and self.rng.random() < self.slow_chance:
            self.seen["slow_fsync"] += 1
            seconds *= 30 * self.rng.random()
        return max(self.hung_until - self._loop.now, 0.0) + seconds

    def add(self, jobs: VirtualJobs[Any]) -> None:
        """A thread of the process that runs (`Device`)."""
        self._threads.append(jobs)

    def crash(self) -> None:
        """The process ends: of its writes under way a random prefix is kept."""
        for jobs in self._threads:
            writes = [job for job in jobs.under_way() if isinstance(job, _Write)]
            kept = self.rng.randrange(len(writes) + 1)
            if len(writes) > 1 and self.rng.random() < self.torn_chance:
                self.seen["torn_write"] += 1
                kept = 1 + self.rng.randrange(len(writes) - 1)
            self.fails_next = None
            if kept and not self.store.is_poisoned:
                self.store.write([item.write for item in writes[:kept]])
        self.forget()
        self.changed()

    def wipe(self) -> None:
        """All is lost."""
        if self.lost is None:
            self.lost = self.store, self.snapshots
        self.store, self.snapshots = DiskStore(self), DiskSnapshots(self)
        self.flipped = ""
        self.changed()

    def flip(self) -> str:
        """Flip a bit of something it holds, and say of what; the next start must find that."""
        held = ["log"] if self.store.last_index() else []
        held += ["snapshot"] if self.snapshots.list() else []
        self.flipped = self.rng.choice(held) if held else ""
        return self.flipped

    def holds(self, index: Index, entry: Entry) -> bool:
        """Whether it has that entry, or a snapshot that covers it (`invariants.view.Voter`).

        A wiped one counts with what it had, until nobody counts on it any more.
        """
        store, snapshots = (self.store, self.snapshots) if self.lost is None else self.lost
        kept = snapshots.list()
        if kept and kept[0].index >= index:
            return True
        held = store.first_index() <= index <= store.last_index()
        return held and store.term_at(index) == entry.term

    def changed(self) -> None:
        """The next start would find something else than before."""
        if self.lost is not None and self.store.get(VOTES_FROM) is not None:
            self.lost = None  # it takes part again: it was released
        self.on_changed()

    def forget(self) -> None:
        """A new process opens it."""
        self._threads.clear()
        self.fails_next = None
        self.store.is_poisoned = False

    def check(self) -> bool:
        """Before a write; whether it is to be done and to fail all the same.

        Raises:
            StorageError: it fails, or one before it did.
        """
        if self.store.is_poisoned:
            raise StorageError("a write failed before")
        how, self.fails_next = self.fails_next, None
        if how is None:
            return False
        self.store.is_poisoned = True
        self.seen[how] += 1
        if self.rng.random() < 0.5:
            return True
        raise StorageError(f"the simulated disk: {how}")


def check_whole(disk: Disk) -> None:
    """The log is opened.

    Raises:
        CorruptLogError: a bit of it is wrong.
    """
    if disk.flipped == "log":
        raise CorruptLogError("a bit of the log on the simulated disk is wrong")


class DiskStore(MemoryStore):
    """A `MemoryStore` that is a file to the server: it waits, fails, and survives crashes."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.is_poisoned = False
        self._writing = False
        self._disk = disk

    @property
    def blocking(self) -> bool:
        """True: its calls are made on the server's thread."""
        return True

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Durable on return, or not (`StableStore`)."""
        if self._writing:  # `MemoryStore.write` ends here: it is that same write
            super().set(values)
            return
        fails = self._disk.check()
        super().set(values)
        self._disk.changed()
        if fails:
            raise StorageError("the simulated disk failed behind the write")

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Durable on return, or not (`LogStore`)."""
        fails = self._disk.check()
        self._writing = True
        try:
            super().write(writes)
        finally:
            self._writing = False
        self._disk.changed()
        if fails:
            raise StorageError("the simulated disk failed behind the write")

    def delete_prefix(self, last: Index) -> None:
        """As `write` (`LogStore`)."""
        fails = self._disk.check()
        super().delete_prefix(last)
        self._disk.changed()
        if fails:
            raise StorageError("the simulated disk failed behind the deletion")


class _FailingSink(_MemorySink):
    """A snapshot that cannot be written: not to its end, or not made visible for sure.

    A rename may be there though the flush of its directory failed.
    """

    def __init__(self, sink: _MemorySink, disk: Disk, when: str) -> None:
        super().__init__(sink._meta, sink._keep)
        self._disk = disk
        self._when = when

    def write(self, data: bytes, /) -> int:
        """As a sink's, or StorageError."""
        if self._when == "write" and self._disk.rng.random() < 0.5:
            raise StorageError("the simulated disk has no room for the rest of a snapshot")
        return super().write(data)

    def close(self) -> None:
        """As a sink's, and StorageError; it may be visible all the same."""
        if self._data is not None:
            if self._when == "close" and self._disk.rng.random() < 0.5:
                super().close()
            raise StorageError("the simulated disk failed at the end of a snapshot")


class DiskSnapshots(MemorySnapshotStore):
    """Keeps the newest snapshot; writing one may fail."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk

    def create(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        version: int = 1,
    ) -> _MemorySink:
        """As the memory store's, or StorageError."""
        disk = self._disk
        sink = super().create(index, term, configuration, configuration_index, version)
        if disk.rng.random() >= disk.snapshot_failure_chance:
            return sink
        when = disk.rng.choice(("create", "write", "close"))
        disk.seen[f"failed_snapshot_{when}"] += 1
        if when == "create":
            raise StorageError("the simulated disk has no room for a snapshot")
        return _FailingSink(sink, disk, when)

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """As the memory store's; CorruptSnapshotError where a bit of it is wrong."""
        if self._disk.flipped == "snapshot":
            raise CorruptSnapshotError("a bit of the snapshot on the simulated disk is wrong")
        return super().open(snapshot_id)
