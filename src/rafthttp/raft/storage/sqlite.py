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
from collections.abc import Generator, Mapping, Sequence
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
from rafthttp.raft.storage.connection import connect, failure, refusal
from rafthttp.raft.storage.lock import DirectoryLock, sync_directory
from rafthttp.raft.storage.rows import Head, Row
from rafthttp.raft.types import Index, LogWrite, ServerID, Term

DATABASE_FILE: Final = "raft.db"
FORMAT: Final = 1
"""Version of the disk format; a store of a greater one is refused."""
APPLICATION_ID: Final = 0x52414654  # "RAFT", in the database's header

# One transaction of a compaction: it holds up the writes behind it for some milliseconds.
_PREFIX_ROWS: Final = 512
_PREFIX_SIZE_BYTES: Final = 8 << 20

_SCHEMA: Final = (
    # One row with all pairs, so that none can be lost without its checksum telling.
    "CREATE TABLE state (id INTEGER PRIMARY KEY, crc INTEGER, pairs BLOB)",
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

_PUT_STATE: Final = "REPLACE INTO state VALUES (1, ?, ?)"

# Keys in the state row: the store's own, and the stable store's with a prefix.
_NODE_ID: Final = b"node_id"
_FIRST_INDEX: Final = b"first_index"
_OPENED: Final = b"opened"
_STABLE: Final = b"stable/"


class SqliteStore:
    """LogStore and StableStore in the file `raft.db` of a data directory. Open it with `open`."""

    def __init__(self, path: Path, lock: DirectoryLock, connection: sqlite3.Connection) -> None:
        self._path = path
        self._directory_lock = lock
        self._connection = connection
        self._mutex = threading.Lock()
        self._closed = False
        self._poison: str | None = None
        self._state: dict[bytes, bytes] = {}  # what the state row holds
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
            connection = connect(path)
            store = cls(path, lock, connection)
            store._load(node_id)
            sync_directory(data_dir)
        except BaseException as error:
            if connection is not None:
                connection.close()
            lock.release()
            cause = error.__cause__ if type(error) is StorageError else error
            if isinstance(cause, sqlite3.Error | OSError):
                raise refusal(path, cause) from error
            raise
        return store

    # -- stable store

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. From memory: never waits, not for a write either."""
        if self._closed:
            raise StorageError(f"the store {self._path} is closed")
        return self._state.get(_STABLE + key)

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs or none; durable on return."""
        with self._mutex:
            state = _changed(self._state, values)
            with self._transaction():
                self._put_state(state)
            self._state = state

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
            with closing(self._records(first, last)) as records:
                return rows.take(records, size_bytes_max)

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
            state = self._state
            if folded.stable or folded.reset_to is not None:
                state = _changed(state, folded.stable)
            with self._transaction():
                if folded.reset_to is not None:
                    first, last, last_term = folded.reset_to + 1, folded.reset_to, None
                    self._connection.execute("DELETE FROM log")
                    state[_FIRST_INDEX] = _pack_number(first)
                elif folded.truncate_from is not None:
                    last, last_term = folded.truncate_from - 1, None
                    self._truncate(folded.truncate_from)
                for batch in folded.batches:
                    self._connection.executemany(_INSERT, rows.pack_batch(batch))
                    last, last_term = batch.last, batch.term
                if state is not self._state:
                    self._put_state(state)
            self._state = state
            self._first, self._last, self._last_term = first, last, last_term

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to `last` (at most all that are held), a bounded piece a transaction.

        Each piece is durable on its own. A row that `last` cuts stays until all of it may go.
        """
        with self._mutex:
            last = min(last, self._last)
            while self._first <= last:
                state = dict(self._state)
                with self._transaction():
                    first = self._delete_piece(last)
                    state[_FIRST_INDEX] = _pack_number(first)
                    self._put_state(state)
                self._first, self._state = first, state

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
            raise failure(self._path, what, error) from error

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
                raise failure(self._path, "write", error) from error
            raise

    def _put_state(self, state: Mapping[bytes, bytes]) -> None:
        pairs = rows.pack_pairs(state)
        self._connection.execute(_PUT_STATE, (crc32(pairs), pairs))

    def _load_state(self) -> None:
        crc, pairs = self._one("SELECT crc, pairs FROM state") or (None, None)
        if not isinstance(pairs, bytes) or crc32(pairs) != crc:
            raise CorruptLogError(f"the state row of {self._path} has a wrong checksum")
        self._state = rows.unpack_pairs(pairs)

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

    def _records(self, first: Index, last: Index) -> Generator[bytes]:
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
        if index == self._first:
            # The first row too, which may begin below `_first`: nothing of it is left.
            self._connection.execute("DELETE FROM log")
            return
        self._connection.execute("DELETE FROM log WHERE first >= ?", (index,))
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
        return first

    def _load(self, node_id: ServerID) -> None:
        """Check whose store this is, flush what is there, and find the ends of the log."""
        self._check_identity(node_id)
        self._state[_OPENED] = _pack_number(_unpack_number(self._state[_OPENED]) + 1)
        with self._transaction():
            self._put_state(self._state)
        self._first = _unpack_number(self._state[_FIRST_INDEX])
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
            self._state = {
                _NODE_ID: node_id.encode(),
                _FIRST_INDEX: _pack_number(1),
                _OPENED: _pack_number(0),
            }
            with self._transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
                self._put_state(self._state)
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
        self._load_state()
        owner = self._state[_NODE_ID].decode(errors="replace")
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


def _changed(
    state: Mapping[bytes, bytes], values: Mapping[bytes, bytes | None]
) -> dict[bytes, bytes]:
    """`state` with these stable pairs set, or deleted where None."""
    changed = dict(state)
    for key, value in values.items():
        if value is None:
            changed.pop(_STABLE + key, None)
        else:
            changed[_STABLE + key] = value
    return changed


def _pack_number(number: int) -> bytes:
    return struct.pack("<Q", number)


def _unpack_number(value: bytes) -> int:
    number: int = struct.unpack("<Q", value)[0]
    return number
