"""The state machine of the simulated servers: registers, and everything that was ever applied."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, Final

from rafthttp.raft.fsm import FSM, BytesSnapshot
from rafthttp.raft.types import Index, Log

COMMAND: Final = struct.Struct(">qq")
"""Register and value; more may follow. Values are unique, so a value names its command."""
_HEAD: Final = struct.Struct(">QII")
_ROW: Final = struct.Struct(">qqQ")


class Registers(FSM):
    """Registers. A snapshot holds all of it, and so many bytes of nothing.

    Attributes:
        values: what each register holds.
        applied: value and index of each command, in order.
        digest: names all of that.
    """

    def __init__(self, on_applied: Callable[[Registers, Log], None], ballast_bytes: int) -> None:
        self.values: dict[int, int] = {}
        self.applied: dict[int, Index] = {}
        self.twice: list[int] = []
        self.digest = 0
        self._rows: list[bytes] = []
        self._on_applied = on_applied
        self._ballast_bytes = ballast_bytes

    def apply(self, log: Log) -> int:
        """Set a register (`FSM`)."""
        key, value = COMMAND.unpack_from(log.data)
        self._put(key, value, log.index)
        self._on_applied(self, log)
        return int(value)

    def snapshot(self) -> BytesSnapshot:
        """All of it (`FSM`)."""
        rows = b"".join(self._rows)
        head = _HEAD.pack(len(self._rows), zlib.crc32(rows), self.digest)
        return BytesSnapshot(head + rows + bytes(self._ballast_bytes))

    def restore(self, source: BinaryIO) -> None:
        """Built aside, put in place at once (`FSM`)."""
        count, checksum, digest = _HEAD.unpack(source.read(_HEAD.size))
        rows = source.read()
        rows, ballast = rows[: count * _ROW.size], rows[count * _ROW.size :]
        if zlib.crc32(rows) != checksum or len(ballast) != self._ballast_bytes:
            raise ValueError("the snapshot is damaged")
        fresh = Registers(self._on_applied, 0)
        for row in _ROW.iter_unpack(rows):
            fresh._put(*row)
        assert fresh.digest == digest, "the same rows"
        self.values, self.applied, self._rows = fresh.values, fresh.applied, fresh._rows
        self.digest, self.twice = fresh.digest, fresh.twice

    def _put(self, key: int, value: int, index: Index) -> None:
        if value in self.applied:
            self.twice.append(value)
        row = _ROW.pack(key, value, index)
        self.values[key] = value
        self.applied[value] = index
        self._rows.append(row)
        self.digest = zlib.crc32(row, self.digest)
