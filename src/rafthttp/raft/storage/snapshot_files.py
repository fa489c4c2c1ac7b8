"""`FileSnapshotStore`: each snapshot a directory with `meta.json` and `state.bin`.

Knows files and bytes; nothing of what a state means, nor whose server it is. A snapshot is written
as `ID.tmp`, flushed, and renamed: what has no such ending was whole once. What is no longer whole
is found by checksums: those of `meta.json` when it is listed, that of the state when it is opened,
or as it is read.

The directory lies under the lock of the server's data directory (lock.py) and takes none itself:
one process at a time. All calls may wait for the disk. Memory stays bounded by `_BUFFER_BYTES` a
snapshot being written or opened; disk by `retain` snapshots and those being written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, cast

from rafthttp.raft.errors import CorruptSnapshotError, DataDirectoryError, StorageError
from rafthttp.raft.storage.lock import sync_directory
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.storage.snapshot_meta import (
    FORMAT,
    BrokenMetaError,
    NewerFormatError,
    StoredMeta,
    decode_meta,
    encode_meta,
)
from rafthttp.raft.storage.snapshots import SNAPSHOT_VERSION, check_new
from rafthttp.raft.types import Configuration, Index, Term

_logger = logging.getLogger("rafthttp.raft.storage")

META_FILE: Final = "meta.json"
STATE_FILE: Final = "state.bin"
PARTIAL_SUFFIX: Final = ".tmp"

# Term, index, and a number that grows: sorted as text they are sorted by age. Whatever is no such
# name is none of ours, which is also why no id leads out of the directory.
_ID: Final = re.compile(r"[0-9]{20}-[0-9]{20}-[0-9]{10}", re.ASCII)
# A state machine may write it byte by byte. Larger pieces save nothing: 2 GB/s go through SHA-256.
_BUFFER_BYTES: Final = 256 << 10
# So much at a time is not copied together with more: a write of it costs less than that.
_DIRECT_BYTES: Final = 64 << 10
# The most servers that come off the wire (4096), with an id and an address of 2 kB each.
_META_SIZE_BYTES_MAX: Final = 16 << 20
# What a disk says of a bad sector, and a file system of a bad checksum of its own.
_DAMAGE: Final = frozenset(
    {errno.EIO, errno.EBADMSG, errno.ENODATA, getattr(errno, "EUCLEAN", errno.EIO)}
)


class FileSnapshotSink:
    """A snapshot being written. Calls may come from any thread; they are done one by one."""

    def __init__(self, meta: SnapshotMeta, partial: Path, publish: Callable[[Path], None]) -> None:
        self._publish = publish
        self._meta = meta
        self._partial = partial
        self._mutex = threading.Lock()  # a cancel waits for the write under way
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0
        self._ended = False
        self._failure: str | None = None
        partial.mkdir()
        try:
            self._file = (partial / STATE_FILE).open("xb", buffering=0)
        except BaseException:
            _remove(partial)
            raise

    @property
    def id(self) -> str:
        """Name of the snapshot."""
        return self._meta.id

    def write(self, data: bytes, /) -> int:
        """Append bytes of the state.

        Raises:
            StorageError: the disk failed, now or before, or the snapshot has ended.
        """
        with self._mutex:
            if self._ended:
                raise StorageError(self._failure or f"snapshot {self.id} has ended")
            size = memoryview(data).nbytes
            try:
                if size >= _DIRECT_BYTES or len(self._buffer) + size >= _BUFFER_BYTES:
                    self._write(self._buffer)
                    self._buffer.clear()
                if size >= _DIRECT_BYTES:
                    self._write(data)
                else:
                    self._buffer += data
            except BaseException as error:  # noqa: BLE001 - raised again
                self._fail(error)
            return size

    def close(self) -> None:
        """Make it durable and visible, atomically; nothing after `cancel` or a first `close`.

        Raises:
            StorageError: the disk failed, now or before: the snapshot is not kept.
        """
        with self._mutex:
            if self._failure is not None:
                raise StorageError(self._failure)
            if self._ended:
                return
            try:
                self._write(self._buffer)
                os.fsync(self._file.fileno())
                self._file.close()
                self._write_meta()
                sync_directory(self._partial)
                self._publish(self._partial)
            except BaseException as error:  # noqa: BLE001 - raised again
                self._fail(error)
            self._ended = True
            self._buffer.clear()

    def cancel(self) -> None:
        """Remove what was written; nothing after `close`. What cannot be removed now is later."""
        with self._mutex:
            if not self._ended:
                self._end()

    # -- inside; the mutex is held

    def _write(self, data: bytes | bytearray) -> None:
        with memoryview(data) as view, view.cast("B") as left:
            self._hash.update(left)
            self._size += left.nbytes
            at = 0
            while at < left.nbytes:
                at += self._file.write(left[at:])

    def _write_meta(self) -> None:
        meta = replace(self._meta, size=self._size)
        data = encode_meta(StoredMeta(meta, self._hash.hexdigest()))
        if len(data) > _META_SIZE_BYTES_MAX:
            raise StorageError("its configuration is too large")
        with (self._partial / META_FILE).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _fail(self, error: BaseException) -> NoReturn:
        """End here, once and for all, and say so."""
        self._end()
        reason = error.strerror if isinstance(error, OSError) else None
        self._failure = (
            f"snapshot {self.id} cannot be written to {self._partial.parent}:"
            f" {reason or error or type(error).__name__}"
        )
        if isinstance(error, Exception):
            raise StorageError(self._failure) from error
        raise error

    def _end(self) -> None:
        self._ended = True
        self._buffer.clear()
        with suppress(OSError):
            self._file.close()
        _remove(self._partial)


class FileSnapshotStore:
    """Keeps the newest snapshots in a directory.

    Args:
        directory: made where missing. It belongs to one process: put it into the data directory,
            and open what locks that first.
        retain: how many to keep, at least 1. Older ones go once a newer one is durable.

    Raises:
        ValueError: `retain` is below 1.
        DataDirectoryError: it cannot be used, or holds a snapshot of a newer format.
    """

    def __init__(self, directory: str | Path, retain: int = 2) -> None:
        if retain < 1:
            raise ValueError(f"retain is {retain}; it must be at least 1")
        self._directory = Path(directory)
        self._retain = retain
        self._mutex = threading.Lock()  # names come and go under it
        self._warned: set[str] = set()
        self._broken: set[str] = set()  # whose state was found broken
        try:
            self._make_directory()
            names = [path.name for path in self._directory.iterdir()]
            partial = [n for n in names if _ID.fullmatch(n.removesuffix(PARTIAL_SUFFIX))]
            self._created = max((int(name[42:52]) for name in partial), default=0)
            for name in partial:
                if name.endswith(PARTIAL_SUFFIX):
                    _remove(self._directory / name)
        except OSError as error:
            raise DataDirectoryError(
                f"snapshot directory {directory} cannot be used: {error.strerror or error}"
            ) from error
        self._whole()

    def create(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        version: int = SNAPSHOT_VERSION,
    ) -> FileSnapshotSink:
        """Begin a snapshot. Several may be under way.

        Raises:
            ValueError: a number is out of its bounds, or the version is unknown.
            StorageError: the disk failed.
        """
        check_new(index, term, configuration_index, version)
        with self._mutex:
            self._created += 1
            snapshot_id = f"{term:020d}-{index:020d}-{self._created:010d}"
        meta = SnapshotMeta(
            snapshot_id, index, term, configuration, configuration_index, 0, version
        )
        try:
            partial = self._directory / (snapshot_id + PARTIAL_SUFFIX)
            return FileSnapshotSink(meta, partial, self._publish)
        except OSError as error:
            raise StorageError(
                f"snapshot {snapshot_id} cannot be written to {self._directory}: {error.strerror}"
            ) from error

    def list(self) -> Sequence[SnapshotMeta]:
        """All that look whole, newest first: `meta.json` is checked, and the size of the state.

        Broken ones are left out with a warning, those too whose state `open` found broken.

        Raises:
            StorageError: the directory cannot be read, or holds a snapshot of a newer format.
        """
        return [stored.meta for stored in self._whole()]

    def open(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """One snapshot and its state, which is read once as a whole before it is handed out.

        The file goes on being readable when the snapshot is superseded.

        Raises:
            CorruptSnapshotError: a bit is wrong. It is not listed any more.
            StorageError: there is none of this name, or the disk failed.
        """
        path = self._path(snapshot_id)
        with self._noticing(path):
            stored = self._stored(snapshot_id)
            return stored.meta, _open_whole(path, stored)

    def open_checking(self, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
        """As `open`, but each piece is checked as it is handed out, and the last one held back.

        Its last piece comes only once the checksum of all is right (`CheckingSnapshotStore`).

        Raises:
            CorruptSnapshotError: something else than the state is broken already. It is not listed
                any more; nor once a read has found the state broken.
            StorageError: there is none of this name, or the disk failed.
        """
        path = self._path(snapshot_id)
        with self._noticing(path):
            stored = self._stored(snapshot_id)
            file = (path / STATE_FILE).open("rb", buffering=0)
        checked = _CheckedFile(file, path, stored, self._noticing)
        return stored.meta, cast("BinaryIO", checked)

    # -- inside

    def _path(self, snapshot_id: str) -> Path:
        path = self._directory / snapshot_id
        if not _ID.fullmatch(snapshot_id) or not path.exists():
            raise StorageError(f"there is no snapshot {snapshot_id!r}")
        return path

    @contextmanager
    def _noticing(self, path: Path) -> Generator[None]:
        """For reading one snapshot: what is found broken is not listed any more.

        Raises:
            CorruptSnapshotError: it is broken.
            StorageError: the disk failed.
        """
        try:
            yield
        except CorruptSnapshotError:
            self._broken.add(path.name)
            raise
        except OSError as error:
            failure = _failure(path, error)
            if isinstance(failure, CorruptSnapshotError):
                self._broken.add(path.name)
            raise failure from error

    def _publish(self, partial: Path) -> None:
        """For a sink: let a flushed snapshot count, then remove those it makes superfluous.

        Raises:
            OSError: it does not count.
        """
        with self._mutex:
            final = partial.with_suffix("")
            partial.rename(final)
            try:
                sync_directory(self._directory)
            except BaseException:
                # Who is told that it failed must not meet it later.
                final.rename(partial)
                raise
            try:
                self._reap()
            except (OSError, StorageError) as error:
                # The new one is durable whatever becomes of the old ones.
                _logger.warning("old snapshots in %s stay: %s", self._directory, error)

    def _make_directory(self) -> None:
        missing = [p for p in (self._directory, *self._directory.parents) if not p.exists()]
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_directory(path.parent)
        if not os.access(self._directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(0, "it is not writable")

    def _names(self) -> Sequence[str]:
        """All that were whole once, newest first."""
        try:
            names = [name for name in os.listdir(self._directory) if _ID.fullmatch(name)]
        except OSError as error:
            raise StorageError(
                f"snapshot directory {self._directory} cannot be read: {error.strerror}"
            ) from error
        return sorted(names, reverse=True)

    def _whole(self) -> Sequence[StoredMeta]:
        """All that look whole, newest first."""
        found: list[StoredMeta] = []
        for name in self._names():
            if name in self._broken:
                continue
            try:
                found.append(self._stored(name))
            except OSError as error:
                path = self._directory / name
                failure = _failure(path, error)
                # It may have been superseded since.
                if not isinstance(failure, CorruptSnapshotError):
                    raise failure from error
                if path.exists():
                    self._warn(name, failure)
            except CorruptSnapshotError as error:
                self._warn(name, error)
        return found

    def _stored(self, snapshot_id: str) -> StoredMeta:
        """One snapshot's meta, and whether its state has the right size.

        Raises:
            CorruptSnapshotError: not whole.
            DataDirectoryError: of a newer format.
            OSError: the disk failed; told with `_failure`.
        """
        path = self._directory / snapshot_id
        with (path / META_FILE).open("rb") as file:
            if os.fstat(file.fileno()).st_size > _META_SIZE_BYTES_MAX:
                raise CorruptSnapshotError(f"{META_FILE} of snapshot {path} is broken")
            data = file.read()
        try:
            stored = decode_meta(data)
        except BrokenMetaError:
            raise CorruptSnapshotError(f"{META_FILE} of snapshot {path} is broken") from None
        except NewerFormatError as error:
            raise DataDirectoryError(
                f"snapshot {path} has format {error.format};"
                f" this version of rafthttp knows formats up to {FORMAT}"
            ) from None
        if stored.meta.id != snapshot_id:
            raise CorruptSnapshotError(f"snapshot {path} was {stored.meta.id} when it was written")
        size = (path / STATE_FILE).stat().st_size
        if size != stored.meta.size:
            raise CorruptSnapshotError(
                f"the state of snapshot {path} has {size} bytes; {stored.meta.size} were written"
            )
        return stored

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            _logger.warning("%s; it is not used", error)

    def _reap(self) -> None:
        """Remove what is older than the newest `retain` whole ones, broken or not.

        A broken one that claims to be newer stays until it is overtaken: somebody may save it.
        """
        kept = {stored.meta.id for stored in self._whole()[: self._retain]}
        newest = max(kept, default="")  # less than any name
        for name in self._names():
            if name not in kept and name < newest:
                path = self._directory / name
                partial = path.with_name(name + PARTIAL_SUFFIX)
                path.rename(partial)
                _remove(partial)
                self._warned.discard(name)
                self._broken.discard(name)


class _CheckedFile(io.RawIOBase):
    """A state that is checked as it is read: its last piece comes once all of it was right.

    Args:
        noticing: in which it is read.
    """

    def __init__(
        self,
        file: io.FileIO,
        path: Path,
        stored: StoredMeta,
        noticing: Callable[[Path], AbstractContextManager[None]],
    ) -> None:
        self._file = file
        self._path = path
        self._sha256 = stored.state_sha256
        self._noticing = noticing
        self._left = stored.meta.size
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        with self._noticing(self._path):
            data = self._file.read(min(size, self._left))
            if size and self._left and not data:
                raise CorruptSnapshotError(f"the state of snapshot {self._path} was cut")
            self._hash.update(data)
            self._left -= len(data)
            if not self._left and self._hash.hexdigest() != self._sha256:
                raise CorruptSnapshotError(_wrong_checksum(self._path))
        return data

    def readinto(self, buffer: object, /) -> int:
        # Not straight into the buffer: it would have the last piece also where that is broken.
        with memoryview(cast("bytearray", buffer)) as view, view.cast("B") as target:
            data = self.read(len(target))
            target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


def _open_whole(path: Path, stored: StoredMeta) -> BinaryIO:
    """Read the state once, and open it for the caller."""
    file = (path / STATE_FILE).open("rb")
    try:
        if _digest(file) != (stored.meta.size, stored.state_sha256):
            raise CorruptSnapshotError(_wrong_checksum(path))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _wrong_checksum(path: Path) -> str:
    return f"the state of snapshot {path} has a wrong checksum"


def _digest(file: io.BufferedReader) -> tuple[int, str]:
    """Size and SHA-256 of what is left in a file."""
    digest = hashlib.sha256()
    size = 0
    piece = bytearray(_BUFFER_BYTES)
    with memoryview(piece) as view:
        while count := file.readinto(piece):
            digest.update(view[:count])
            size += count
    return size, digest.hexdigest()


def _failure(path: Path, error: OSError) -> StorageError:
    """What an error of reading a snapshot means: a broken one is passed over, a failure is not.

    Too many open files, say, must not make a server take itself for a new one.
    """
    text = f"snapshot {path} cannot be read: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in _DAMAGE:
        return CorruptSnapshotError(text)
    return StorageError(text)


def _remove(partial: Path) -> None:
    """Remove a snapshot that does not count. What cannot be removed is tried again at an open."""
    try:
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        _logger.warning("%s stays: %s", partial, error.strerror)
