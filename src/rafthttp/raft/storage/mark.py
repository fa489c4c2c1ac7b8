"""The high-water mark: what was committed last, noted in a file outside the database.

A flipped bit in the live wal makes sqlite drop that commit and all behind it, without a word: it
looks like a torn tail. The mark tells the two apart. It is (generation, index): the index of the
log's last entry, and a number that grows with every commit that is not merely an append. Both
together only ever grow, so a mark above what the database holds means that a commit is gone.

It is written in place after each commit and never flushed. After kill -9 it is exact; after a power
loss it may be old, which is harmless: every mark ever written stays true. One `pwrite` of 20 bytes
into one sector is not torn by the disks we know of; a checksum is there for those we do not. A mark
that is missing or cannot be read is ignored: it is a second witness, and the database may be whole.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from rafthttp.raft.types import Index

MARK_FILE: Final = "raft.mark"

_MARK: Final = struct.Struct("<QQ")
_CRC: Final = struct.Struct("<I")
_SIZE_BYTES: Final = _MARK.size + _CRC.size


class Mark(NamedTuple):
    """What had been committed; ordered as commits are."""

    generation: int
    last_index: Index


class MarkFile:
    """The file, kept open: a write costs 2 µs then."""

    def __init__(self, data_dir: Path) -> None:
        """Open or create it.

        Raises:
            OSError: it cannot be opened for writing.
        """
        self._descriptor = os.open(data_dir / MARK_FILE, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self) -> Mark | None:
        """The mark, or None where there is none that can be trusted."""
        data = os.pread(self._descriptor, _SIZE_BYTES, 0)
        mark = data[: _MARK.size]
        if data[_MARK.size :] != _CRC.pack(crc32(mark)):
            return None
        return Mark(*_MARK.unpack(mark))

    def write(self, mark: Mark) -> None:
        """Replace the mark. Not flushed.

        Raises:
            OSError: the file has kept the old mark, or a broken one.
        """
        data = _MARK.pack(*mark)
        os.pwrite(self._descriptor, data + _CRC.pack(crc32(data)), 0)

    def close(self) -> None:
        """Close the file. Once only."""
        os.close(self._descriptor)
