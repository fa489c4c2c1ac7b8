"""One server's disk: what survives its crashes, and what fails.

Knows the store protocols and virtual time. A write is durable at the instant at which it is done;
a crash before that loses it, or keeps it without anybody having been told.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rafthttp.raft.errors import StorageError
from rafthttp.raft.runtime.disk import _Write
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore, _MemorySink
from rafthttp.raft.types import Configuration, Index, LogWrite, Term
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
        torn_chance: at a crash a random part of what was not done yet is kept.
        snapshot_failure_chance: writing a snapshot fails.
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
        """The process ends: of its writes under way a prefix is kept, if chance wants it."""
        for jobs in self._threads:
            writes = [job for job in jobs.under_way() if isinstance(job, _Write)]
            if writes and self.rng.random() < self.torn_chance:
                kept = self.rng.randrange(len(writes) + 1)
                self.seen["torn_write"] += 1
                self.fails_next = None
                if kept and not self.store.is_poisoned:
                    self.store.write([item.write for item in writes[:kept]])
        self.forget()

    def wipe(self) -> None:
        """All is lost."""
        self.store, self.snapshots = DiskStore(self), DiskSnapshots(self)

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
        if fails:
            raise StorageError("the simulated disk failed behind the write")

    def delete_prefix(self, last: Index) -> None:
        """As `write` (`LogStore`)."""
        fails = self._disk.check()
        super().delete_prefix(last)
        if fails:
            raise StorageError("the simulated disk failed behind the deletion")


class DiskSnapshots(MemorySnapshotStore):
    """Keeps the newest snapshot; beginning one may fail."""

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
        if self._disk.rng.random() < self._disk.snapshot_failure_chance:
            self._disk.seen["failed_snapshot"] += 1
            raise StorageError("the simulated disk has no room for a snapshot")
        return super().create(index, term, configuration, configuration_index, version)
