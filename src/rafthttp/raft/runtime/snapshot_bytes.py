"""A snapshot's bytes on their way: counted, and cut short when the server is shut down.

What the application's `persist` and `restore` get as files. Used on
worker threads; only the counts are read elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO, Final, cast

from rafthttp.raft.errors import SnapshotError, StorageError
from rafthttp.raft.fsm import FSMSnapshot
from rafthttp.raft.storage.protocols import SnapshotMeta, SnapshotSink, SnapshotStore
from rafthttp.raft.types import Configuration, Index, Term

# An application may write a few bytes at a time; a call of a sink costs as much as a hundred KiB.
_BUFFER_BYTES: Final = 256 << 10


class Progress:
    """How far a transfer has come. `give_up` ends it at its next read or write."""

    def __init__(self, index: Index, size: int | None = None) -> None:
        self.index = index
        self.size = size
        """Bytes in all, where known."""
        self.done = 0
        """Bytes that have passed."""
        self._given_up = False

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self._given_up = True

    def passed(self, size: int) -> None:
        """Count bytes.

        Raises:
            SnapshotError: it was given up.
        """
        self.check()
        self.done += size

    def check(self) -> None:
        """Raise a SnapshotError where it was given up."""
        if self._given_up:
            raise SnapshotError("given up: the server is shutting down")


class _Writer(io.RawIOBase):
    """A target as a file that can only be written; to close it says nothing about the snapshot."""

    def __init__(self, target: Target, progress: Progress) -> None:
        self._target = target
        self._progress = progress
        self.discards = False
        """Whether bytes go nowhere: the snapshot has failed."""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        piece = bytes(cast("memoryview", data))
        if not self.discards:
            self._progress.passed(len(piece))
            self._target.write(piece)
        return len(piece)


class _Reader(io.RawIOBase):
    """A file that counts what is read. Closing it closes the file."""

    def __init__(self, source: BinaryIO, progress: Progress) -> None:
        self._source = source
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = cast("memoryview", buffer)
        data = self._source.read(len(view))
        self._progress.passed(len(data))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._source.close()


def _counted(source: BinaryIO, progress: Progress) -> BinaryIO:
    """The same bytes, counted."""
    return cast("BinaryIO", io.BufferedReader(_Reader(source, progress), _BUFFER_BYTES))


class Target:
    """A snapshot being written, step by step. Any step may be the last but `cancel` or `close`."""

    def __init__(
        self,
        store: SnapshotStore,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
    ) -> None:
        self.store = store
        self._args = (index, term, configuration, configuration_index)
        self.sink: SnapshotSink | None = None
        self._size = 0

    def open(self) -> SnapshotSink:
        """Begin."""
        self.sink = self.store.create(*self._args)
        return self.sink

    def write(self, data: bytes) -> None:
        """Append bytes."""
        assert self.sink is not None, "opened first"
        self.sink.write(data)
        self._size += len(data)

    def close(self) -> SnapshotMeta:
        """Make it visible. Where that fails, `cancel` is still to come."""
        sink = self.sink
        assert sink is not None, "opened first"
        sink.close()
        self.sink = None
        return SnapshotMeta(sink.id, *self._args, self._size)

    def cancel(self) -> None:
        """Remove what was written, unless it was closed. Idempotent."""
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.cancel()


def persist(target: Target, snapshot: FSMSnapshot, progress: Progress) -> SnapshotMeta:
    """Write an application's snapshot; it is released in any case.

    Raises:
        Exception: the application's, the store's or the disk's; nothing of it is left.
    """
    try:
        try:
            target.open()
            writer = _Writer(target, progress)
            # Not a `with`: after a failure, what is in the buffer must go nowhere.
            buffered = io.BufferedWriter(writer, _BUFFER_BYTES)
            try:
                snapshot.persist(cast("BinaryIO", buffered))
                if not buffered.closed:
                    buffered.flush()
            finally:
                writer.discards = True
                buffered.close()
            progress.check()
            meta = target.close()
        except BaseException:
            target.cancel()
            raise
    finally:
        snapshot.release()
    if meta.id not in [kept.id for kept in target.store.list()]:
        # Nothing may be built on it, least of all a shorter log.
        raise StorageError(f"snapshot {meta.id} was written, and the store does not list it")
    return meta


def copy(source: BinaryIO, target: Target, progress: Progress) -> None:
    """Write what `source` holds, which is as long as `progress.size` says.

    Raises:
        SnapshotError: it is shorter or longer, or was given up.
    """
    target.open()
    while data := source.read(_BUFFER_BYTES):
        progress.passed(len(data))
        target.write(data)
    if progress.done != progress.size:
        raise SnapshotError(f"the snapshot has {progress.done} bytes, not {progress.size}")


def restore(
    take: Callable[[BinaryIO], None],
    store: SnapshotStore,
    snapshot_id: str,
    on_open: Callable[[Progress], None],
) -> SnapshotMeta:
    """Let the application `take` a snapshot's state; `on_open` gets how far it is.

    Raises:
        Exception: the application's, the store's or the disk's.
    """
    meta, source = store.open(snapshot_id)
    progress = Progress(meta.index, meta.size)
    on_open(progress)
    with closing(_counted(source, progress)) as file:
        take(file)
    return meta
