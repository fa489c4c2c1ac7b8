"""`Ledger`: a state machine that remembers every command, byte for byte that of `interop/go`.

Knows its own commands, its digest and its snapshot format (interop/README.md); nothing of clusters.
Replicas in two languages are equal exactly when their digests are.
"""

from __future__ import annotations

import hashlib
import struct
from itertools import islice
from typing import Any, BinaryIO, Final

from rafthttp import FSM, Log

MAGIC: Final = b"ledger 1"
_COUNTS: Final = struct.Struct(">QQ")
_SIZE: Final = struct.Struct(">I")
# Bounds what one length of a damaged snapshot can make us allocate.
_FIELD_SIZE_BYTES_MAX: Final = 128 << 20
# Small fields are gathered into writes of this size.
_WRITE_SIZE_BYTES: Final = 64 << 10


class LedgerFormatError(ValueError):
    """These bytes are no snapshot of a ledger."""


def command(command_id: str, value: bytes = b"") -> bytes:
    """A command: an id that is to be applied once, and any value."""
    return command_id.encode() + b"\0" + value


class Ledger(FSM):
    """All commands in the order in which they were applied; an id counts once.

    `apply` answers the position of the id, from 1 on.

    Attributes:
        entries: id and value of each command; append-only, so that a snapshot is a length.
        twice: ids that were applied again, once for each time.
        digest: of all entries in order; each is hashed together with the digest before it.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, bytes]] = []
        self.twice: list[bytes] = []
        self.digest = bytes(hashlib.sha256().digest_size)
        self._position: dict[bytes, int] = {}

    def apply(self, log: Log) -> int:
        """`id NUL value`, or an id alone (`FSM`)."""
        command_id, _, value = log.data.partition(b"\0")
        at = self._position.get(command_id)
        if at is not None:
            self.twice.append(command_id)
            return at
        self._add(command_id, value)
        return len(self.entries)

    def ids(self, first: int, count: int) -> list[str]:
        """The ids at positions `first`, `first + 1`, …; at most `count` of them."""
        if first < 1:
            return []
        chosen = islice(self.entries, first - 1, first - 1 + count)
        return [command_id.decode(errors="replace") for command_id, _ in chosen]

    def stats(self) -> dict[str, Any]:
        """What the admin API tells of the state machine."""
        return {
            "applied": len(self.entries),
            "twice": [command_id.decode(errors="replace") for command_id in self.twice],
            "digest": self.digest.hex(),
        }

    def snapshot(self) -> LedgerSnapshot:
        """A length of each list (`FSM`)."""
        return LedgerSnapshot(self.entries, len(self.entries), self.twice, len(self.twice))

    def restore(self, source: BinaryIO) -> None:
        """Read it piece by piece; the old state stays on an error (`FSM`).

        Raises:
            LedgerFormatError: it is damaged.
        """
        if _exactly(source, len(MAGIC)) != MAGIC:
            raise LedgerFormatError("not a snapshot of a ledger")
        count, twice = _COUNTS.unpack(_exactly(source, _COUNTS.size))
        fresh = Ledger()
        for _ in range(count):
            command_id = _read_field(source)
            fresh._add(command_id, _read_field(source))
        fresh.twice = [_read_field(source) for _ in range(twice)]
        if source.read(1):
            raise LedgerFormatError("bytes behind the snapshot's end")
        self.entries, self.twice = fresh.entries, fresh.twice
        self.digest, self._position = fresh.digest, fresh._position

    def _add(self, command_id: bytes, value: bytes) -> None:
        self.entries.append((command_id, value))
        self._position[command_id] = len(self.entries)
        chain = hashlib.sha256(self.digest)
        for field in (command_id, value):
            chain.update(_SIZE.pack(len(field)))
            chain.update(field)
        self.digest = chain.digest()


class LedgerSnapshot:
    """A prefix of a ledger (`FSMSnapshot`); its lists only grow, and `restore` replaces them."""

    def __init__(
        self,
        entries: list[tuple[bytes, bytes]],
        count: int,
        twice: list[bytes],
        twice_count: int,
    ) -> None:
        self._entries, self._count = entries, count
        self._twice, self._twice_count = twice, twice_count

    def persist(self, sink: BinaryIO) -> None:
        """Stream it: nothing but one buffer is held besides the entries themselves."""
        buffer = bytearray(MAGIC + _COUNTS.pack(self._count, self._twice_count))
        for number in range(self._count):
            for field in self._entries[number]:
                buffer = _put(sink, buffer, field)
        for number in range(self._twice_count):
            buffer = _put(sink, buffer, self._twice[number])
        sink.write(bytes(buffer))

    def release(self) -> None:
        """Nothing is held (`FSMSnapshot`)."""


def _put(sink: BinaryIO, buffer: bytearray, field: bytes) -> bytearray:
    buffer += _SIZE.pack(len(field))
    buffer += field
    if len(buffer) < _WRITE_SIZE_BYTES:
        return buffer
    sink.write(bytes(buffer))
    return bytearray()


def _read_field(source: BinaryIO) -> bytes:
    (size,) = _SIZE.unpack(_exactly(source, _SIZE.size))
    if size > _FIELD_SIZE_BYTES_MAX:
        raise LedgerFormatError(f"a field claims {size} bytes")
    return _exactly(source, size)


def _exactly(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, also from a source that gives fewer at a time."""
    data = source.read(size)
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise LedgerFormatError("the snapshot ends too early")
        data += more
    return data
