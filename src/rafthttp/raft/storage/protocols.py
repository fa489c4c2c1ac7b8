"""What the server asks of a disk. One object may be both stores; then one commit serves both.

All calls come from one thread at a time, which need not be the event loop's (`blocking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

from rafthttp.raft.types import Configuration, Index, LogWrite, Term


@runtime_checkable
class StableStore(Protocol):
    """A small durable key-value store: term and vote, configurations, cluster id."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs or none (None deletes); durable on return (S2).

        Raises:
            StorageError: nothing may be assumed about what is on disk; the store is poisoned.
        """
        ...


@runtime_checkable
class LogStore(Protocol):
    """The durable log: contiguous records from `first_index` to `last_index`.

    An empty log has `last_index() == first_index() - 1`; a fresh one `first_index() == 1`.
    """

    @property
    def blocking(self) -> bool:
        """True where calls may wait for a disk: they are then made on a thread."""
        ...

    def first_index(self) -> Index:
        """Index of the first record held, or where the next would go."""
        ...

    def last_index(self) -> Index:
        """Index of the last record held; everything up to it is durable."""
        ...

    def term_at(self, index: Index) -> Term:
        """Term of one record.

        Raises:
            IndexError: outside `first_index..last_index`.
            CorruptLogError: its checksum is wrong.
        """
        ...

    def term_runs(self, first: Index, last: Index) -> list[tuple[Index, Term]]:
        """First index and term of each run of equal terms in `first..last`, ascending.

        The first pair is `(first, term_at(first))`. What a start needs of a long log: it costs
        about terms x log(n) look-ups, not a scan.

        Raises:
            IndexError: `first..last` is empty, or outside `first_index..last_index`.
            CorruptLogError: a checksum met on the way is wrong, or a term falls.
        """
        ...

    def get_records(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from `first` on, to `last`, at most `size_bytes_max` in all; but at least one.

        Raises:
            IndexError: `first..last` is empty, or outside `first_index..last_index`.
            CorruptLogError: a checksum is wrong.
        """
        ...

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Do all writes in order, all or nothing, durable on return: one flush for all of them.

        `LogWrite.stable` is written in the same commit; only where this object is the stable store
        too. Otherwise the caller passes it to the stable store first.

        Raises:
            ValueError: the caller's mistake, nothing was written: a batch does not follow the log,
                its term is below the one before it, a truncation reaches below `first_index`, or an
                index or term is above 2**63 - 1.
            StorageError: the store is poisoned; only a fresh open tells what is on disk.
        """
        ...

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to and including `last`, in chunks (log compaction).

        Deletes at most what is held: the log is then empty, with `last_index` unchanged.

        Raises:
            StorageError: the store is poisoned; a prefix of what was asked is deleted.
        """
        ...

    def close(self) -> None:
        """Release files and locks. Idempotent."""
        ...


@runtime_checkable
class MaintainedStore(Protocol):
    """A store with work that is better done while nobody waits for it. Optional."""

    def maintain(self) -> None:
        """Do what is due, if anything. To be called when no write is waiting.

        Raises:
            StorageError: as for a write: the store is poisoned.
        """
        ...


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot stands for. `configuration_index` is the index of `configuration` itself."""

    id: str
    index: Index
    term: Term
    configuration: Configuration
    configuration_index: Index
    size: int
    version: int = 1


class SnapshotSink(Protocol):
    """A snapshot being written. Ends with exactly one of `close` (it counts) and `cancel`.

    After a `close` that raised, `cancel` is called.
    """

    @property
    def id(self) -> str:
        """Name of the snapshot."""
        ...

    def write(self, data: bytes, /) -> int:
        """Append bytes of the state; how many there were.

        Raises:
            StorageError: the disk failed, now or before, or the snapshot has ended.
        """
        ...

    def close(self) -> None:
        """Make it durable and visible, atomically. Nothing after `cancel` or a first `close`.

        Raises:
            StorageError: the disk failed, now or before: the snapshot is not kept.
        """
        ...

    def cancel(self) -> None:
        """Remove what was written. Nothing after `close`; waits for a call under way."""
        ...


class SnapshotStore(Protocol):
    """Where snapshots are kept. Calls come from any thread, and may wait for a disk."""

    def create(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        version: int = 1,
    ) -> SnapshotSink:
        """Begin a snapshot. Several may be under way.

        Raises:
            ValueError: the caller's mistake: a number is out of its bounds (index and term are at
                least 1), or the version is not 1.
            StorageError: the disk failed.
        """
        ...

    def list(self) -> Sequence[SnapshotMeta]:
        """Snapshots that look whole, newest first: by term, index, and when they were begun.

        Cheap: a state is not read. What finds the newest whole one is `snapshots.open_newest`.

        Raises:
            StorageError: the disk failed.
        """
        ...

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """One snapshot and its state, found whole; the caller closes the file.

        The file stays readable when the snapshot is superseded.

        Raises:
            CorruptSnapshotError: it is broken; it is not listed any more.
            StorageError: there is none of this name, or the disk failed.
        """
        ...


@runtime_checkable
class CheckingSnapshotStore(Protocol):
    """A snapshot store that can check a state while it is read, not in a pass before. Optional."""

    def open_checking(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """As `SnapshotStore.open`, but what is handed out is checked on the way.

        The read that would reach the end raises CorruptSnapshotError where a bit was wrong, and so
        does every later one: nobody gets the whole of a broken state. The snapshot is not listed
        any more then.

        Raises:
            CorruptSnapshotError: it is seen to be broken already.
            StorageError: there is none of this name, or the disk failed.
        """
        ...
