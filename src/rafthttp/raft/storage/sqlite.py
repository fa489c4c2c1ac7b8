"""`SqliteStore`: log and stable store in one sqlite file, one flush a write.

Knows rows and pairs of bytes; nothing of what a record means. The file is in WAL mode with
`synchronous=FULL`, locked for one process, and used through exactly one connection.

What sqlite does not do by itself is added here: a write error closes the store for writes until a
fresh open (sqlite accepts a retry after a failed fsync as if nothing had happened), a durable
commit at open comes before anything is reported (after kill -9 the tail may be in the page cache
only), every row and pair carries checksums, a mark outside the database tells of commits that are
gone from it (mark.py), a reserve lets compaction go on when the disk is full (reserve.py), and
checkpoints come at chosen moments (wal.py).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final
from zlib import crc32

from rafthttp.raft.errors import (
    CorruptLogError,
    DataDirectoryError,
    StorageError,
    StoragePoisonedError,
)
from rafthttp.raft.storage import log_table, rows
from rafthttp.raft.storage.connection import connect, failure, is_full, one, refusal
from rafthttp.raft.storage.lock import DirectoryLock, sync_directory
from rafthttp.raft.storage.log_table import LogTable
from rafthttp.raft.storage.mark import MARK_FILE, Mark, MarkFile
from rafthttp.raft.storage.reserve import RESERVE_SIZE_BYTES, Reserve
from rafthttp.raft.storage.wal import Wal
from rafthttp.raft.types import Index, LogWrite, ServerID, Term

_logger = logging.getLogger("rafthttp.raft.storage")

DATABASE_FILE: Final = "raft.db"
FORMAT: Final = 1
"""Version of the disk format; a store of a greater one is refused."""
APPLICATION_ID: Final = 0x52414654  # "RAFT", in the database's header

_SCHEMA: Final = (
    # One row with all pairs, so that none can be lost without its checksum telling.
    "CREATE TABLE state (id INTEGER PRIMARY KEY, crc INTEGER, pairs BLOB)",
    log_table.SCHEMA,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
_PUT_STATE: Final = "REPLACE INTO state VALUES (1, ?, ?)"

# Keys in the state row: the store's own, and the stable store's with a prefix.
_NODE_ID: Final = b"node_id"
_FIRST_INDEX: Final = b"first_index"
_GENERATION: Final = b"generation"  # how often this row was written; see mark.py
_STABLE: Final = b"stable/"


class SqliteStore:
    """LogStore and StableStore in the file `raft.db` of a data directory. Open it with `open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, mark: MarkFile) -> None:
        self._path = path
        self._connection = connection
        self._mark = mark
        self._reserve = Reserve(path.parent)
        self._wal = Wal(path, connection)
        self._log = LogTable(path, connection, self._wal)
        self._files = ExitStack()  # what `close` releases
        self._mutex = threading.Lock()
        self._closed = False
        self._poison: str | None = None
        self._state: dict[bytes, bytes] = {}  # what the state row holds
        self._first: Index = 1
        self._last: Index = 0
        self._last_term: Term | None = None  # of the entry at `_last`, where it is known

    @classmethod
    def open(cls, data_dir: Path, node_id: ServerID | None) -> SqliteStore:
        """Open the store of `node_id`, or create it. Waits for the disk.

        With None, open the store that is there, whoever's it is (`node_id` tells).

        Raises:
            DataDirectoryError: in use by another process, not a directory or not writable, not a
                store of ours, of a newer format, or of another id; or with None, none is there.
            CorruptLogError: what can be checked without reading the whole log is damaged, or
                acknowledged writes are gone.
        """
        path = data_dir / DATABASE_FILE
        if node_id is None and not path.exists():
            raise _nobodys(path)  # before anything is created
        with ExitStack() as files:
            files.callback(DirectoryLock.acquire(data_dir).release)
            try:
                connection = files.enter_context(closing(connect(path)))
                mark = files.enter_context(closing(MarkFile(data_dir)))
                store = cls(path, connection, mark)
                store._spending(lambda: store._load(node_id))
                with suppress(OSError):  # a full disk: open, so that the log can be compacted
                    store._reserve.hold()
                sync_directory(data_dir)
            except (StorageError, sqlite3.Error, OSError) as error:
                cause = error.__cause__ if type(error) is StorageError else error
                if isinstance(cause, sqlite3.Error | OSError):
                    raise refusal(path, cause) from error
                raise
            store._files = files.pop_all()
        return store

    @property
    def node_id(self) -> ServerID:
        """Whose store this is."""
        return ServerID(self._state[_NODE_ID].decode(errors="replace"))

    # -- stable store

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None. From memory: never waits, not for a write either."""
        if self._closed:
            raise StorageError(f"the store {self._path} is closed")
        return self._state.get(_STABLE + key)

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs or none; durable on return."""
        with self._mutex:
            self._make_way()
            state = _changed(self._state, values)
            with self._transaction():
                self._put_state(state)
            self._committed(state, self._first, self._last, self._last_term)

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
            return self._log.head_at(index).term

    def term_runs(self, first: Index, last: Index) -> list[tuple[Index, Term]]:
        """First index and term of each run of equal terms, by binary search over the rows."""
        with self._reading():
            rows.check_range(first, last, self._first, self._last)
            return list(rows.term_runs(self._log.head_at, first, last))

    def get_records(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from `first` on, to `last` or until `size_bytes_max` is reached; at least one."""
        with self._reading():
            rows.check_range(first, last, self._first, self._last)
            with closing(self._log.records(first, last)) as records:
                return rows.take(records, size_bytes_max)

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Do all writes in order, all or nothing: one transaction, one flush.

        Raises:
            ValueError: the writes do not fit the log (see `rows.fold`); nothing was written.
            StorageError: the disk failed; poisoned from here on. Or the disk is too full for more
                entries; nothing was written.
        """
        with self._mutex:
            self._make_way()
            folded = rows.fold(writes, self._first, self._last, self._term_at)
            if folded.batches:
                self._check_room()
            first, last, last_term = self._first, self._last, self._last_term
            state = self._state
            if folded.stable or folded.reset_to is not None or folded.truncate_from is not None:
                state = _changed(state, folded.stable)
            with self._transaction():
                if folded.reset_to is not None:
                    first, last, last_term = folded.reset_to + 1, folded.reset_to, None
                    self._log.clear()
                    state[_FIRST_INDEX] = _pack_number(first)
                elif folded.truncate_from is not None:
                    last, last_term = folded.truncate_from - 1, None
                    self._log.truncate(folded.truncate_from, first)
                for batch in folded.batches:
                    self._log.insert(rows.pack_batch(batch))
                    last, last_term = batch.last, batch.term
                if state is not self._state:
                    self._put_state(state)
            self._committed(state, first, last, last_term)

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to `last` (at most all that are held), a bounded piece a transaction.

        Each piece is durable on its own. A row that `last` cuts stays until all of it may go. Goes
        on where the disk is full, as long as the reserve lasts.
        """
        with self._mutex:
            last = min(last, self._last)
            while self._first <= last:
                self._make_way()
                self._spending(lambda: self._delete_piece(last))

    def maintain(self) -> None:
        """Checkpoint, if it is due. To be called when nobody waits for the disk.

        Raises:
            StorageError: the disk failed; poisoned from here on.
        """
        with self._mutex:
            if self._wal.due and self._poison is None and not self._closed:
                self._checkpoint()

    def close(self) -> None:
        """Release the database and the directory. Waits for a call under way. Idempotent."""
        with self._mutex:
            self._closed = True
            self._files.close()

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

    def _committed(
        self, state: dict[bytes, bytes], first: Index, last: Index, last_term: Term | None
    ) -> None:
        """Note a commit: outside the database first, so that nobody is told of it before that."""
        try:
            self._mark.write(Mark(_unpack_number(state[_GENERATION]), last))
        except OSError as error:
            self._poison = str(error)
            raise StorageError(
                f"write of {self._path.with_name(MARK_FILE)} failed: {error}"
            ) from error
        self._state, self._first, self._last, self._last_term = state, first, last, last_term

    def _spending(self, action: Callable[[], None]) -> None:
        """Do it; where the disk is full, give the reserve up for it, and do it again."""
        try:
            action()
        except StorageError as error:
            if not is_full(error.__cause__) or not self._reserve.spend():
                raise
            _logger.warning("the disk of %s is full: its reserve is given up", self._path.parent)
            self._poison = None
            action()

    def _make_way(self) -> None:
        """What comes before each write."""
        self._check_writable()
        if self._wal.full:
            self._checkpoint()

    def _check_room(self) -> None:
        """Refuse entries that would fill up what a full disk has left for compaction.

        While the reserve is spent, they may only have what is free inside the database.
        """
        try:
            self._reserve.hold()
        except OSError as error:
            if self._number("freelist_count") * self._number("page_size") < RESERVE_SIZE_BYTES:
                raise StorageError(
                    f"data directory {self._path.parent} takes no more entries: {error.strerror}"
                    f" ({2 * RESERVE_SIZE_BYTES >> 20} MiB must be free)"
                ) from error

    def _checkpoint(self) -> None:
        """Do one. Where the disk is full, the wal goes on holding what it holds."""
        try:
            self._wal.checkpoint()
        except sqlite3.Error as error:
            if not is_full(error):
                self._poison = str(error)
                raise failure(self._path, "checkpoint", error) from error

    def _put_state(self, state: dict[bytes, bytes]) -> None:
        """Write the state row, as the next generation."""
        state[_GENERATION] = _pack_number(_unpack_number(self._state[_GENERATION]) + 1)
        pairs = rows.pack_pairs(state)
        self._connection.execute(_PUT_STATE, (crc32(pairs), pairs))
        self._wal.wrote_state(len(pairs))

    def _load_state(self) -> None:
        crc, pairs = one(self._connection, "SELECT crc, pairs FROM state") or (None, None)
        if not isinstance(pairs, bytes) or crc32(pairs) != crc:
            raise CorruptLogError(f"the state row of {self._path} has a wrong checksum")
        try:
            state = rows.unpack_pairs(pairs)
            if _NODE_ID not in state:
                raise KeyError
            _unpack_number(state[_FIRST_INDEX])
            _unpack_number(state[_GENERATION])
        except (CorruptLogError, KeyError, struct.error):
            raise CorruptLogError(f"the state row of {self._path} has lost its shape") from None
        self._state = state

    def _term_at(self, index: Index) -> Term:
        if index == self._last and self._last_term is not None:
            return self._last_term
        with self._translated("read"):
            return self._log.head_at(index).term

    def _delete_piece(self, last: Index) -> None:
        """Delete some rows that end at or below `last`, in one transaction."""
        state = dict(self._state)
        with self._transaction():
            first = self._log.delete_some(self._first, last)
            state[_FIRST_INDEX] = _pack_number(first)
            self._put_state(state)
        self._committed(state, first, self._last, self._last_term)

    def _load(self, node_id: ServerID | None) -> None:
        """Check whose store this is and that it is whole; find the log's ends; flush it."""
        with self._translated("read"):
            fresh = self._check_identity(node_id)
            first = self._first = _unpack_number(self._state[_FIRST_INDEX])
            last = self._last = first - 1 if fresh else self._log.last_index(first - 1)
            self._check_mark(fresh)
            if last >= first:
                self._log.check(first, last)
        state = dict(self._state)
        with self._transaction():
            for statement in _SCHEMA if fresh else ():
                self._connection.execute(statement)
            self._put_state(state)
        self._committed(state, first, last, None)

    def _check_mark(self, fresh: bool) -> None:
        """Refuse a database that lacks what the mark has seen committed."""
        seen = self._mark.read()
        if seen is None:
            if not fresh:
                _logger.warning(
                    "%s cannot be read: whether %s has lost its last writes is not known this time",
                    self._path.with_name(MARK_FILE),
                    self._path.name,
                )
            return
        here = Mark(_unpack_number(self._state[_GENERATION]), self._last)
        if seen <= here:
            return
        # Closing moves what is left of the wal into the database and removes it, and with it what
        # might be saved by hand, or was only misread once.
        wal = f"{self._path}-wal"
        with suppress(OSError):
            os.link(wal, f"{wal}.refused")
        gone = "the last term, vote or truncation"
        if seen.last_index > here.last_index:
            gone = f"entries {here.last_index + 1} to {seen.last_index}"
        raise CorruptLogError(
            f"{self._path} has lost acknowledged writes ({gone}): restore the file, or remove this"
            f" node from the cluster, delete {self._path.parent} and join anew"
        )

    def _check_identity(self, node_id: ServerID | None) -> bool:
        """Load the state row and check whose store this is; True if there is none yet."""
        application_id = self._number("application_id")
        version = self._number("user_version")
        tables = one(self._connection, "SELECT count(*) FROM sqlite_master") or (0,)
        if application_id == 0 and version == 0 and tables[0] == 0:
            if node_id is None:
                raise _nobodys(self._path)
            self._state = {
                _NODE_ID: node_id.encode(),
                _FIRST_INDEX: _pack_number(1),
                _GENERATION: _pack_number(0),
            }
            return True
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
        if node_id is not None and self.node_id != node_id:
            raise DataDirectoryError(
                f"data directory {directory} belongs to id {self.node_id!r}, not {node_id!r}"
            )
        return False

    def _number(self, pragma: str) -> int:
        found = one(self._connection, f"PRAGMA {pragma}")
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


def _nobodys(path: Path) -> DataDirectoryError:
    return DataDirectoryError(f"data directory {path.parent} has no server's data ({path.name})")


def _pack_number(number: int) -> bytes:
    return struct.pack("<Q", number)


def _unpack_number(value: bytes) -> int:
    number: int = struct.unpack("<Q", value)[0]
    return number
