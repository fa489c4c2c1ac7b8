"""`SqliteStore`: log and stable store in one sqlite file, one flush a write.

Knows rows and pairs of bytes; nothing of what a record means. The file is in WAL mode with
`synchronous=FULL`, locked for one process, and used through exactly one connection.

What sqlite does not do by itself is added here: a write error closes the store for writes until a
fresh open (sqlite accepts a retry after a failed fsync as if nothing had happened), a durable
commit at open comes before anything is reported (after kill -9 the tail may be in the page cache
only), and every row and pair carries checksums.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from rafthttp.raft.errors import (
    CorruptLogError,
    DataDirectoryError,
    StorageError,
    StoragePoisonedError,
)
from rafthttp.raft.storage import rows
from rafthttp.raft.storage.lock import DirectoryLock, sync_directory
from rafthttp.raft.storage.rows import Head, Row
from rafthttp.raft.types import Index, LogWrite, ServerID, Term

DATABASE_FILE: Final = "raft.db"
FORMAT: Final = 1
"""Version of the disk format; a store of a greater one is refused."""
APPLICATION_ID: Final = 0x52414654  # "RAFT", in the database's header

# A checkpoint each 1000 pages (4 MB) costs 6 ms; rarer ones cost more at once (16 MB: 27 ms).
_CHECKPOINT_PAGES: Final = 1000
# One transaction of a compaction: it holds up the writes behind it for some milliseconds.
_PREFIX_ROWS: Final = 512
_PREFIX_SIZE_BYTES: Final = 8 << 20

_SCHEMA: Final = (
    "CREATE TABLE meta (key BLOB PRIMARY KEY, value BLOB, crc INTEGER) WITHOUT ROWID",
    "CREATE TABLE stable (key BLOB PRIMARY KEY, value BLOB, crc INTEGER) WITHOUT ROWID",
    # A row a batch, named by its first index; the small columns first, so that they can be read
    # without the records.
    (
        "CREATE TABLE log (first INTEGER PRIMARY KEY, term INTEGER, entries INTEGER,"
        " head_crc INTEGER, data_crc INTEGER, sizes BLOB, data BLOB)"
    ),
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
_INSERT: Final = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)"
_HEAD: Final = "SELECT first, term, entries, head_crc FROM log"
_ROW_AT: Final = "SELECT * FROM log WHERE first <= ? ORDER BY first DESC LIMIT 1"
_ROWS: Final = "SELECT * FROM log WHERE first BETWEEN ? AND ? ORDER BY first"

_NODE_ID: Final = b"node_id"
_FIRST_INDEX: Final = b"first_index"
_OPENED: Final = b"opened"


class SqliteStore:
    """LogStore and StableStore in the file `raft.db` of a data directory. Open it with `open`."""

    def __init__(self, path: Path, lock: DirectoryLock, connection: sqlite3.Connection) -> None:
        self._path = path
        self._directory_lock = lock
        self._connection = connection
        self._mutex = threading.Lock()
        self._closed = False
        self._poison: str | None = None
        self._first: Index = 1
        self._last: Index = 0
        self._last_term: Term | None = None  # of the entry at `_last`, where it is known

    @classmethod
    def open(cls, data_dir: Path, node_id: ServerID) -> SqliteStore:
        """Open the store of `node_id`, or create it. Waits for the disk.

        Raises:
            DataDirectoryError: in use by another process, not a directory or not writable, not a
                store of ours, of a newer format, or of another id.
            CorruptLogError: what can be checked without reading the whole log is damaged.
        """
        path = data_dir / DATABASE_FILE
        lock = DirectoryLock.acquire(data_dir)
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(path)
            store = cls(path, lock, connection)
            store._load(node_id)
            sync_directory(data_dir)
        except BaseException as error:
            if connection is not None:
                connection.close()
            lock.release()
            if isinstance(error, sqlite3.Error | OSError):
                raise _refusal(path, error) from error
            raise
        return store

    # -- stable store

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        with self._reading():
            return self._pair("stable", key)

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs or none; durable on return."""
        with self._mutex, self._transaction():
            self._put("stable", values)

    # -- log store

    @property
    def blocking(self) -> bool:
        """True: calls wait for the disk."""
        return True

    def first_index(self) -> Index:
        """Index of the first record held, or where the next would go."""
        return self._first

    def last_index(self) -> Index:
        """Index of the last record held; everything up to it is durable."""
        return self._last

    def term_at(self, index: Index) -> Term:
        """Term of one record."""
        with self._reading():
            rows.check_range(index, index, self._first, self._last)
            return self._head_at(index).term

    def term_runs(self, first: Index, last: Index) -> list[tuple[Index, Term]]:
        """First index and term of each run of equal terms, by binary search over the rows."""
        with self._reading():
            rows.check_range(first, last, self._first, self._last)
            return list(rows.term_runs(self._head_at, first, last))

    def get_records(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from `first` on, to `last` or until `size_bytes_max` is reached; at least one."""
        with self._reading():
            rows.check_range(first, last, self._first, self._last)
            return rows.take(self._records(first, last), size_bytes_max)

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Do all writes in order, all or nothing: one transaction, one flush.

        Raises:
            ValueError: the writes do not fit the log (see `rows.fold`); nothing was written.
            StorageError: the disk failed; poisoned from here on.
        """
        with self._mutex:
            self._check_writable()
            with self._translated("read"):
                folded = rows.fold(writes, self._first, self._last, self._term_at)
            first, last, last_term = self._first, self._last, self._last_term
            with self._transaction():
                self._put("stable", folded.stable)
                if folded.reset_to is not None:
                    first, last, last_term = folded.reset_to + 1, folded.reset_to, None
                    self._connection.execute("DELETE FROM log")
                    self._put("meta", {_FIRST_INDEX: _pack_number(first)})
                elif folded.truncate_from is not None:
                    last, last_term = folded.truncate_from - 1, None
                    self._truncate(folded.truncate_from)
                for batch in folded.batches:
                    self._connection.executemany(_INSERT, rows.pack_batch(batch))
                    last, last_term = batch.last, batch.term
            self._first, self._last, self._last_term = first, last, last_term

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to `last` (at most all that are held), a bounded piece a transaction.

        Each piece is durable on its own. A row that `last` cuts stays until all of it may go.
        """
        with self._mutex:
            last = min(last, self._last)
            while self._first <= last:
                with self._transaction():
                    first = self._delete_piece(last)
                self._first = first

    def close(self) -> None:
        """Release the database and the directory. Waits for a call under way. Idempotent."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            try:
                self._connection.close()
            finally:
                self._directory_lock.release()

    # -- inside; the mutex is held

    def _check_writable(self) -> None:
        if self._closed:
            raise StorageError(f"the store {self._path} is closed")
        if self._poison is not None:
            raise StoragePoisonedError(
                f"{self._path} takes no writes until it is opened afresh: {self._poison}"
            )

    @contextmanager
    def _reading(self) -> Generator[None]:
        with self._mutex:
            if self._closed:
                raise StorageError(f"the store {self._path} is closed")
            with self._translated("read"):
                yield

    @contextmanager
    def _translated(self, what: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _failure(self._path, what, error) from error

    @contextmanager
    def _transaction(self) -> Generator[None]:
        """One commit, one flush. Whatever fails inside, what is on disk is unknown from then on."""
        self._check_writable()
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")
        except BaseException as error:
            self._poison = str(error) or type(error).__name__
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _failure(self._path, "write", error) from error
            raise

    def _put(self, table: str, values: Mapping[bytes, bytes | None]) -> None:
        for key, value in values.items():
            if value is None:
                self._connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608 - a literal of this module
            else:
                self._connection.execute(
                    f"REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608 - as above
                    (key, value, crc32(value, crc32(key))),
                )

    def _pair(self, table: str, key: bytes) -> bytes | None:
        found = self._one(f"SELECT value, crc FROM {table} WHERE key = ?", (key,))  # noqa: S608 - as above
        if found is None:
            return None
        value, crc = found
        if not isinstance(value, bytes) or crc32(value, crc32(key)) != crc:
            raise CorruptLogError(f"the value of {key!r} in {self._path} has a wrong checksum")
        return value

    def _one(self, statement: str, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        with closing(self._connection.execute(statement, parameters)) as cursor:
            found: tuple[Any, ...] | None = cursor.fetchone()
            return found

    def _head_at(self, index: Index) -> Head:
        """Head of the row that holds `index`, which must be within the log."""
        found = self._one(f"{_HEAD} WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,))
        head = None if found is None else rows.check_head(*found)
        if head is None or head.last < index:
            raise CorruptLogError(f"entry {index} is missing from {self._path}")
        return head

    def _term_at(self, index: Index) -> Term:
        if index == self._last and self._last_term is not None:
            return self._last_term
        return self._head_at(index).term

    def _row_at(self, index: Index) -> Row:
        found = self._one(_ROW_AT, (index,))
        if found is None:
            raise CorruptLogError(f"entry {index} is missing from {self._path}")
        return Row(*found)

    def _records(self, first: Index, last: Index) -> Iterator[bytes]:
        """Records `first..last`, row after row, each row checked and following the one before."""
        start = self._head_at(first).first
        expected = start
        with closing(self._connection.execute(_ROWS, (start, last))) as cursor:
            for found in cursor:
                row = Row(*found)
                records = rows.unpack(row)
                if row.first != expected:
                    break
                expected = row.last + 1
                yield from records[max(first - row.first, 0) : last + 1 - row.first]
        if expected <= last:
            raise CorruptLogError(f"entry {expected} is missing from {self._path}")

    def _truncate(self, index: Index) -> None:
        """Delete `index` and all after it; a row it falls into is written again, shorter."""
        self._connection.execute("DELETE FROM log WHERE first >= ?", (index,))
        if index > self._first:
            row = self._row_at(index - 1)
            if row.last >= index:
                records = rows.unpack(row)[: index - row.first]
                self._connection.execute("DELETE FROM log WHERE first = ?", (row.first,))
                self._connection.execute(_INSERT, rows.pack(row.first, row.term, records))

    def _delete_piece(self, last: Index) -> Index:
        """Delete some rows that end at or below `last`; the new first index."""
        first, deleted, size_bytes = self._first, 0, 0
        statement = "SELECT first, term, entries, head_crc, length(data) FROM log ORDER BY first"
        with closing(self._connection.execute(statement)) as cursor:
            for *found, length in cursor.fetchmany(_PREFIX_ROWS):
                head = rows.check_head(*found)
                if head.last > last:
                    first = last + 1
                    break
                first, deleted = head.last + 1, head.first
                size_bytes += length
                if size_bytes >= _PREFIX_SIZE_BYTES:
                    break
        self._connection.execute("DELETE FROM log WHERE first <= ?", (deleted,))
        self._put("meta", {_FIRST_INDEX: _pack_number(first)})
        return first

    def _load(self, node_id: ServerID) -> None:
        """Check whose store this is, flush what is there, and find the ends of the log."""
        self._check_identity(node_id)
        opened = _unpack_number(self._pair("meta", _OPENED))
        with self._transaction():
            self._put("meta", {_OPENED: _pack_number(opened + 1)})
        self._first = _unpack_number(self._pair("meta", _FIRST_INDEX))
        self._last = self._first - 1
        found = self._one(f"{_HEAD} ORDER BY first DESC LIMIT 1")
        if found is not None:
            self._last = rows.check_head(*found).last
            self._check_contiguity()

    def _check_identity(self, node_id: ServerID) -> None:
        application_id = self._number("application_id")
        version = self._number("user_version")
        tables = self._one("SELECT count(*) FROM sqlite_master") or (0,)
        if application_id == 0 and version == 0 and tables[0] == 0:
            with self._transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
                identity = {_NODE_ID: node_id.encode(), _FIRST_INDEX: _pack_number(1)}
                self._put("meta", identity | {_OPENED: _pack_number(0)})
            return
        directory = self._path.parent
        if application_id != APPLICATION_ID:
            raise DataDirectoryError(
                f"data directory {directory}: {self._path.name} is not a database of rafthttp"
            )
        if version > FORMAT:
            raise DataDirectoryError(
                f"data directory {directory} has format {version};"
                f" this version of rafthttp knows formats up to {FORMAT}"
            )
        owner = (self._pair("meta", _NODE_ID) or b"").decode(errors="replace")
        if owner != node_id:
            raise DataDirectoryError(
                f"data directory {directory} belongs to id {owner!r}, not {node_id!r}"
            )

    def _check_contiguity(self) -> None:
        """Check the ends and a path of about log2(n) places between, not every row.

        A gap off the path is found when it is read: no read crosses one.
        """
        low, high = self._head_at(self._first), self._head_at(self._last)
        rows.unpack(self._row_at(self._last))
        while low.last + 1 < high.first:
            middle = self._head_at((low.last + 1 + high.first) // 2)
            if not low.term <= middle.term <= high.term:
                raise CorruptLogError(f"the terms of {self._path} fall around {middle.first}")
            low = middle
        if low.term > high.term:
            raise CorruptLogError(f"the terms of {self._path} fall at {high.first}")

    def _number(self, pragma: str) -> int:
        found = self._one(f"PRAGMA {pragma}")
        return int(found[0]) if found else 0


def _connect(path: Path) -> sqlite3.Connection:
    """The one connection, with every setting checked to have taken effect."""
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size and not (path.exists() and path.stat().st_size):
        raise DataDirectoryError(
            f"data directory {path.parent}: {path.name} is gone, its wal is not"
        )
    # Transactions are begun and ended by hand; nobody waits for a lock that one process holds.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = bytes
        settings = {
            "locking_mode": "exclusive",  # before the first access: then there is no -shm file
            "journal_mode": "wal",
            "synchronous": 2,  # FULL: each commit flushes the wal
            "fullfsync": 1,  # macOS: flush the drive too
            "checkpoint_fullfsync": 1,
            "wal_autocheckpoint": _CHECKPOINT_PAGES,
            "cell_size_check": 1,  # notice damaged pages early
            "secure_delete": 0,  # freed pages need not be overwritten
        }
        for name, value in settings.items():
            connection.execute(f"PRAGMA {name} = {value}").close()
            found = connection.execute(f"PRAGMA {name}").fetchone()[0]
            if (found.decode() if isinstance(found, bytes) else found) != value:
                raise DataDirectoryError(
                    f"data directory {path.parent} cannot be used:"
                    f" sqlite keeps {name} at {found!r}, not {value!r}"
                )
    except BaseException:
        connection.close()
        raise
    return connection


def _failure(path: Path, what: str, error: sqlite3.Error) -> StorageError:
    """What a failed statement means."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    ):
        return CorruptLogError(f"{path} is damaged: {error}")
    return StorageError(f"{what} of {path} failed: {error}")


def _refusal(path: Path, error: sqlite3.Error | OSError) -> StorageError:
    """Why a store could not be opened, in one line."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CORRUPT:
        return CorruptLogError(f"{path} is damaged: {error}")
    if code == sqlite3.SQLITE_NOTADB:
        return DataDirectoryError(f"data directory {path.parent}: {path.name} is not a database")
    if code == sqlite3.SQLITE_BUSY:
        return DataDirectoryError(
            f"data directory {path.parent} is in use: another process has {path.name} open"
        )
    return DataDirectoryError(f"data directory {path.parent} cannot be used: {error}")


def _pack_number(number: int) -> bytes:
    return struct.pack("<Q", number)


def _unpack_number(value: bytes | None) -> int:
    if value is None or len(value) != 8:
        raise CorruptLogError("a number the store keeps of itself is missing")
    number: int = struct.unpack("<Q", value)[0]
    return number
