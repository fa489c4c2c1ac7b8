"""Stores without a disk, for tests and for servers that forget everything when they stop.

The rules of the log are those of the durable store: both fold their writes with `rows.fold`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage import rows
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.storage.snapshots import check_new
from rafthttp.raft.types import Configuration, Index, LogWrite, Term


class MemoryStore:
    """LogStore and StableStore in memory. What it holds survives `close`, not the process."""

    def __init__(self) -> None:
        self._stable: dict[bytes, bytes] = {}
        self._first: Index = 1
        # Entry `_first + i` is `_records[i]`, of term `_terms[i]`; terms never fall.
        self._records: list[bytes] = []
        self._terms: list[Term] = []

    # -- stable store

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        return self._stable.get(key)

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs; None deletes."""
        for key, value in values.items():
            if value is None:
                self._stable.pop(key, None)
            else:
                self._stable[key] = value

    # -- log store

    @property
    def blocking(self) -> bool:
        """False: no call waits."""
        return False

    def first_index(self) -> Index:
        """Index of the first record held, or where the next would go."""
        return self._first

    def last_index(self) -> Index:
        """Index of the last record held."""
        return self._first + len(self._records) - 1

    def term_at(self, index: Index) -> Term:
        """Term of one record."""
        rows.check_range(index, index, self._first, self.last_index())
        return self._terms[index - self._first]

    def term_runs(self, first: Index, last: Index) -> list[tuple[Index, Term]]:
        """First index and term of each run of equal terms."""
        rows.check_range(first, last, self._first, self.last_index())
        base = self._first
        runs = rows.runs_of_terms(self._terms, first - base, last + 1 - base)
        return [(base + position, term) for position, term in runs]

    def get_records(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from `first` on, to `last`, at most `size_bytes_max` in all; at least one."""
        rows.check_range(first, last, self._first, self.last_index())
        base = self._first
        return rows.take(
            (self._records[position] for position in range(first - base, last + 1 - base)),
            size_bytes_max,
        )

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Do all writes in order.

        Raises:
            ValueError: the writes do not fit the log (see `rows.fold`); nothing was written.
        """
        folded = rows.fold(writes, self._first, self.last_index(), self.term_at)
        if folded.stable:
            self.set(folded.stable)
        if folded.reset_to is not None:
            self._first = folded.reset_to + 1
            self._records, self._terms = [], []
        elif folded.truncate_from is not None:
            keep = folded.truncate_from - self._first
            del self._records[keep:], self._terms[keep:]
        for batch in folded.batches:
            self._records += batch.records
            self._terms += [batch.term] * len(batch.records)

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to `last`, at most all that are held."""
        count = min(last, self.last_index()) - self._first + 1
        if count > 0:
            del self._records[:count], self._terms[:count]
            self._first += count

    def close(self) -> None:
        """Nothing to release."""


class _MemorySink:
    """A snapshot being collected; `close` hands it to its store."""

    def __init__(self, meta: SnapshotMeta, keep: Callable[[SnapshotMeta, bytes], None]) -> None:
        self._meta = meta
        self._keep = keep
        self._data: bytearray | None = bytearray()

    @property
    def id(self) -> str:
        """Name of the snapshot."""
        return self._meta.id

    def write(self, data: bytes, /) -> int:
        """Append bytes of the state."""
        if self._data is None:
            raise StorageError(f"snapshot {self._meta.id} has ended")
        self._data += data
        return len(data)

    def close(self) -> None:
        """Make it visible; nothing after `cancel` or a first `close`."""
        if self._data is not None:
            data, self._data = bytes(self._data), None
            self._keep(replace(self._meta, size=len(data)), data)

    def cancel(self) -> None:
        """Drop it."""
        self._data = None


class MemorySnapshotStore:
    """Keeps the newest snapshot in memory, as hashicorp/raft's `InmemSnapshotStore` does."""

    def __init__(self) -> None:
        self._kept: tuple[SnapshotMeta, bytes] | None = None
        self._created = 0

    def create(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        version: int = 1,
    ) -> _MemorySink:
        """Begin a snapshot.

        Raises:
            ValueError: a number is out of its bounds, or the version is unknown.
        """
        check_new(index, term, configuration_index, version)
        self._created += 1
        snapshot_id = f"{term}-{index}-{self._created}"
        meta = SnapshotMeta(
            snapshot_id, index, term, configuration, configuration_index, 0, version
        )
        return _MemorySink(meta, self._keep)

    def list(self) -> Sequence[SnapshotMeta]:
        """The snapshot kept, if any."""
        return [] if self._kept is None else [self._kept[0]]

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """The snapshot and its bytes."""
        if self._kept is None or self._kept[0].id != snapshot_id:
            raise StorageError(f"there is no snapshot {snapshot_id!r}")
        return self._kept[0], io.BytesIO(self._kept[1])

    def _keep(self, meta: SnapshotMeta, data: bytes) -> None:
        """Keep a finished snapshot unless a newer one is kept already."""
        if self._kept is not None:
            newest = self._kept[0]
            if (meta.term, meta.index) < (newest.term, newest.index):
                return
        self._kept = (meta, data)


class _DiscardSink:
    """Counts bytes and forgets them."""

    def __init__(self, snapshot_id: str) -> None:
        self._id = snapshot_id

    @property
    def id(self) -> str:
        """Name of the snapshot."""
        return self._id

    def write(self, data: bytes, /) -> int:
        """Forget `data`."""
        return len(data)

    def close(self) -> None:
        """Nothing to keep."""

    def cancel(self) -> None:
        """Nothing to remove."""


class DiscardSnapshotStore:
    """Keeps no snapshot (hashicorp/raft's `DiscardSnapshotStore`). For tests and benchmarks only.

    A server on top of it says so at each try, and never compacts its log: it could not come back.
    """

    def create(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        version: int = 1,
    ) -> _DiscardSink:
        """Begin a snapshot that goes nowhere."""
        del configuration, configuration_index, version
        return _DiscardSink(f"{term}-{index}-discarded")

    def list(self) -> Sequence[SnapshotMeta]:
        """Always empty."""
        return []

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """Always fails: nothing is kept."""
        raise StorageError(f"there is no snapshot {snapshot_id!r}")
