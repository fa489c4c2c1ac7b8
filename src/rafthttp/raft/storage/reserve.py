"""Disk space kept for a full disk: a file that is given up so that compaction can go on.

sqlite cannot delete a row without writing to its wal, so a full disk would keep the log from being
compacted, and with it itself from ever becoming less full.

Knows one file and the file system under it; nothing of sqlite.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

RESERVE_FILE: Final = "raft.reserve"

# The largest wal is `wal.BOUND_BYTES` (4 MB) and one write more (a flush of the disk lane: 8 MB).
# Moving that into the database may make it grow by as much, and then the wal is used again from its
# start: so 16 MiB let a compaction of any length go on. A piece of it takes up to 300 KB.
RESERVE_SIZE_BYTES: Final = 16 << 20


class Reserve:
    """The file in one data directory. Nothing is held until `hold`."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / RESERVE_FILE
        self._held = False

    def hold(self) -> None:
        """See that the space is set aside. Made anew only where the disk has twice as much free.

        Otherwise it would be the reserve that fills the disk. Costs nothing while it is held.

        Raises:
            OSError: it is not: the disk is full, or the file cannot be written.
        """
        if self._held:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(descriptor).st_blocks * 512 < RESERVE_SIZE_BYTES:
                disk = os.fstatvfs(descriptor)
                if disk.f_bavail * disk.f_frsize < 2 * RESERVE_SIZE_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _allocate(descriptor)
        finally:
            os.close(descriptor)
        self._held = True

    def spend(self) -> bool:
        """Give the space back to the disk; False where there was none to give."""
        self._held = False
        try:
            size_bytes = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        return size_bytes > 0


def _allocate(descriptor: int) -> None:
    """Give the file blocks of its own, not only a size."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, RESERVE_SIZE_BYTES)
        else:
            _fill(descriptor)
    except OSError:
        os.ftruncate(descriptor, 0)
        raise


def _fill(descriptor: int) -> None:
    """For systems without `posix_fallocate` (macOS)."""
    piece = bytes(1 << 20)
    for offset in range(0, RESERVE_SIZE_BYTES, len(piece)):
        os.pwrite(descriptor, piece, offset)
