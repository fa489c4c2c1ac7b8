"""The table of log rows: looking up, reading in order, inserting and deleting.

Knows one table of one connection. Transactions, checks of arguments and the log's ends are the
caller's; so is the translation of sqlite's errors.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from rafthttp.raft.errors import CorruptLogError
from rafthttp.raft.storage import rows
from rafthttp.raft.storage.connection import one
from rafthttp.raft.storage.rows import Head, Row
from rafthttp.raft.storage.wal import Wal
from rafthttp.raft.types import Index

# One transaction of a compaction: it holds up the writes behind it for some milliseconds.
_PREFIX_ROWS: Final = 512
_PREFIX_SIZE_BYTES: Final = 8 << 20

SCHEMA: Final = (
    # A row a batch, named by its first index; the small columns first, so that they can be read
    # without the records.
    "CREATE TABLE log (first INTEGER PRIMARY KEY, term INTEGER, entries INTEGER,"
    " head_crc INTEGER, data_crc INTEGER, sizes BLOB, data BLOB)"
)
_INSERT: Final = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)"
_HEAD: Final = "SELECT first, term, entries, head_crc FROM log"
_ROW_AT: Final = "SELECT * FROM log WHERE first <= ? ORDER BY first DESC LIMIT 1"
_ROWS: Final = "SELECT * FROM log WHERE first BETWEEN ? AND ? ORDER BY first"
_LENGTHS: Final = "SELECT first, term, entries, head_crc, length(data) FROM log ORDER BY first"


class LogTable:
    """The rows. Where a method takes an index, an entry of the log must have it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, wal: Wal) -> None:
        """`path` is for the texts of errors; `wal` is told what is written."""
        self._path = path
        self._connection = connection
        self._wal = wal

    def head_at(self, index: Index) -> Head:
        """Head of the row that holds `index`."""
        found = one(
            self._connection, f"{_HEAD} WHERE first <= ? ORDER BY first DESC LIMIT 1", (index,)
        )
        head = None if found is None else rows.check_head(*found)
        if head is None or head.last < index:
            raise CorruptLogError(f"entry {index} is missing from {self._path}")
        return head

    def last_index(self, otherwise: Index) -> Index:
        """Index of the last entry; `otherwise` where there are no rows."""
        found = one(self._connection, f"{_HEAD} ORDER BY first DESC LIMIT 1")
        return otherwise if found is None else rows.check_head(*found).last

    def records(self, first: Index, last: Index) -> Generator[bytes]:
        """Records `first..last`, row after row, each row checked and following the one before."""
        start = self.head_at(first).first
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

    def check(self, first: Index, last: Index) -> None:
        """Check the ends and a path of about log2(n) places between, not every row.

        A gap off the path is found when it is read: no read crosses one.
        """
        low, high = self.head_at(first), self.head_at(last)
        rows.unpack(self._row_at(last))
        while low.last + 1 < high.first:
            middle = self.head_at((low.last + 1 + high.first) // 2)
            if not low.term <= middle.term <= high.term:
                raise CorruptLogError(f"the terms of {self._path} fall around {middle.first}")
            low = middle
        if low.term > high.term:
            raise CorruptLogError(f"the terms of {self._path} fall at {high.first}")

    def insert(self, packed: Sequence[Row]) -> None:
        """Insert new rows."""
        self._connection.executemany(_INSERT, packed)
        self._wal.wrote_rows(packed)

    def clear(self) -> None:
        """Delete all rows."""
        self._delete("DELETE FROM log")

    def truncate(self, index: Index, first: Index) -> None:
        """Delete `index` and all after it; a row it falls into is written again, shorter.

        `first` is where the log begins.
        """
        if index == first:
            # The first row too, which may begin below `first`: nothing of it is left.
            self.clear()
            return
        self._delete("DELETE FROM log WHERE first >= ?", index)
        row = self._row_at(index - 1)
        if row.last >= index:
            records = rows.unpack(row)[: index - row.first]
            self._delete("DELETE FROM log WHERE first = ?", row.first)
            self.insert([rows.pack(row.first, row.term, records)])

    def delete_some(self, first: Index, last: Index) -> Index:
        """Delete some rows that end at or below `last`, of a log from `first`; its new first."""
        deleted = size_bytes = 0
        with closing(self._connection.execute(_LENGTHS)) as cursor:
            for *found, length in cursor.fetchmany(_PREFIX_ROWS):
                head = rows.check_head(*found)
                if head.last > last:
                    first = last + 1
                    break
                first, deleted = head.last + 1, head.first
                size_bytes += length
                if size_bytes >= _PREFIX_SIZE_BYTES:
                    break
        self._delete("DELETE FROM log WHERE first <= ?", deleted)
        return first

    def _delete(self, statement: str, *parameters: int) -> None:
        with closing(self._connection.execute(statement, parameters)) as cursor:
            self._wal.deleted_rows(cursor.rowcount)

    def _row_at(self, index: Index) -> Row:
        found = one(self._connection, _ROW_AT, (index,))
        if found is None:
            raise CorruptLogError(f"entry {index} is missing from {self._path}")
        return Row(*found)
