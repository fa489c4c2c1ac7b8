"""How full sqlite's wal is, and when it should be moved into the database (a checkpoint).

sqlite's own automatic checkpoints come in the middle of a commit: 6 ms at 4 MB, 27 ms at 16 MB
where batches are large. Measured with 68 KB a commit, a checkpoint takes 1.5 ms at 1 MB, and
throughput is the same: so from `DUE_BYTES` on one is done as soon as nobody waits for the disk, and
at `BOUND_BYTES` it is done in any case. A wal that stays small is also written over in place; one
that grows costs 4 ms wherever the file system has to note its new size.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rafthttp.raft.storage.rows import Row

DUE_BYTES: Final = 1 << 20
BOUND_BYTES: Final = 4 << 20

_FRAME_BYTES: Final = 4096 + 24  # a page and its header


class Wal:
    """The wal of one connection. sqlite does not tell how full it is, so that is reckoned."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """`path` is the database's."""
        self._connection = connection
        try:
            self._size_bytes = path.with_name(f"{path.name}-wal").stat().st_size
        except FileNotFoundError:
            self._size_bytes = 0

    @property
    def due(self) -> bool:
        """Whether a checkpoint is to be done when nobody waits."""
        return self._size_bytes >= DUE_BYTES

    @property
    def full(self) -> bool:
        """Whether it is to be done now."""
        return self._size_bytes >= BOUND_BYTES

    def wrote_rows(self, rows: Iterable[Row]) -> None:
        """Count inserted rows: a leaf page each, three more where it is full, and the bytes."""
        for row in rows:
            size_bytes = len(row.data) + len(row.sizes)
            self._size_bytes += _FRAME_BYTES + size_bytes + 3 * min(size_bytes, _FRAME_BYTES)

    def wrote_state(self, size_bytes: int) -> None:
        """Count a rewritten state row."""
        self._size_bytes += _FRAME_BYTES + size_bytes

    def deleted_rows(self, count: int) -> None:
        """Count deleted rows. The pages they leave are not written, only those that name them."""
        self._size_bytes += 2 * _FRAME_BYTES + 600 * count

    def checkpoint(self) -> None:
        """Move everything into the database, and flush that; the next commit starts the wal anew.

        Raises:
            sqlite3.Error: the wal still holds everything.
        """
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()
        self._size_bytes = 0
