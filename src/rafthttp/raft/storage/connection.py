"""The one connection to the store's database, its settings, and what its errors mean.

Knows sqlite and paths; nothing of logs.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from rafthttp.raft.errors import CorruptLogError, DataDirectoryError, StorageError


def connect(path: Path) -> sqlite3.Connection:
    """The one connection, with every setting checked to have taken effect.

    Raises:
        DataDirectoryError: the files do not belong together, or a setting did not take effect.
        OSError, sqlite3.Error: to be told with `refusal`.
    """
    if path.exists():
        # What sqlite opens read-only for want of permission fails later, with less to say.
        os.close(os.open(path, os.O_RDWR))
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
            "wal_autocheckpoint": 0,  # the store chooses the moment, see wal.py
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


def one(
    connection: sqlite3.Connection, statement: str, parameters: tuple[Any, ...] = ()
) -> tuple[Any, ...] | None:
    """The first row that a statement finds."""
    with closing(connection.execute(statement, parameters)) as cursor:
        found: tuple[Any, ...] | None = cursor.fetchone()
        return found


def failure(path: Path, what: str, error: sqlite3.Error) -> StorageError:
    """What a failed statement means."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    ):
        return CorruptLogError(f"{path} is damaged: {error}")
    return StorageError(f"{what} of {path} failed: {error}")


def is_full(error: BaseException | None) -> bool:
    """Whether a statement failed because the disk is full.

    Only a write says so, before the flush it was to be followed by: nothing on disk is in doubt,
    and it may be tried again. (A flush that failed has another code, whatever the cause.)
    """
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def refusal(path: Path, error: sqlite3.Error | OSError) -> StorageError:
    """Why a store could not be opened, in one line."""
    if isinstance(error, OSError):
        name = Path(error.filename).name if error.filename else path.name
        return DataDirectoryError(
            f"data directory {path.parent} cannot be used: {name}: {error.strerror}"
        )
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
