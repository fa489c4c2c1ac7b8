"""The table before the inner state machine's snapshot (docs/reference/sessions.md).

Knows bytes and the table; reads and writes as a stream, whatever the inner snapshot's size.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, BinaryIO, Final

from rafthttp.raft.errors import SessionFormatError
from rafthttp.raft.fsm import FSMSnapshot
from rafthttp.sessions.answers import ANSWER_SIZE_BYTES_MAX, NOT_KEPT
from rafthttp.sessions.envelope import MAGIC, VERSION
from rafthttp.sessions.table import Key, Session, SessionTable, Waiting

_MARK: Final = 0xFF
_HEAD: Final = struct.Struct(">6sBBQQQQ")
_SESSION: Final = struct.Struct(">16sQQQ")
_SEQUENCE: Final = struct.Struct(">Q")
_KEY: Final = struct.Struct(">16sQQ")
_ANSWER: Final = struct.Struct(">BI")
_CHECKSUM: Final = struct.Struct(">I")
_PREFIX_SIZE_BYTES: Final = len(MAGIC) + 2
_BUFFER_SIZE_BYTES: Final = 64 << 10


class TableSnapshot:
    """An `FSMSnapshot` of the table, if there is anything in it, and of the inner state machine."""

    def __init__(self, table: SessionTable, inner: FSMSnapshot) -> None:
        self._inner = inner
        self._is_pristine = table.is_pristine
        self._times = (table.clock_ns, table.last_ns)
        # Copies: commands go on being applied while these are written on another thread.
        self._sessions = [
            (key, session.used_ns, session.lowest, session.answers.copy())
            for key, session in table.sessions.items()
        ]
        # Between batches an entry does not change any more: these need no copy each.
        self._keys = list(table.keys.items())

    def persist(self, sink: BinaryIO) -> None:
        """Write both (`FSMSnapshot`)."""
        if not self._is_pristine:
            out = _Out(sink)
            counts = (len(self._sessions), len(self._keys))
            out.write(_HEAD.pack(MAGIC, VERSION, _MARK, *self._times, *counts))
            for key, used_ns, lowest, answers in self._sessions:
                out.write(_SESSION.pack(key, used_ns, lowest, len(answers)))
                for sequence in sorted(answers):
                    out.write(_SEQUENCE.pack(sequence) + _answer(answers[sequence]))
            for key, entry in self._keys:
                out.write(_KEY.pack(key, entry.fingerprint, entry.at_ns) + _answer(entry.answer))
            out.finish()
        self._inner.persist(sink)

    def release(self) -> None:
        """Let both go (`FSMSnapshot`)."""
        self._sessions, self._keys = [], []
        self._inner.release()


def _answer(remembered: bytes | Waiting) -> bytes:
    assert isinstance(remembered, bytes), "nothing waits between batches"
    return _ANSWER.pack(remembered[0], len(remembered) - 1) + remembered[1:]


def split(source: BinaryIO) -> tuple[SessionTable, BinaryIO]:
    """The table at the beginning of a snapshot, empty where none is, and the rest.

    Raises:
        SessionFormatError: it is cut short, damaged, or of a newer version.
    """
    begin = _read(source, _PREFIX_SIZE_BYTES)
    if not begin.startswith(MAGIC) or len(begin) < _PREFIX_SIZE_BYTES:
        return SessionTable(), _joined(begin, source)
    if begin[len(MAGIC) :] != bytes((VERSION, _MARK)):
        raise SessionFormatError(f"a table of sessions of version {begin[-2]} is unknown here")
    buffered = _joined(begin, source)
    return _read_table(_In(buffered)), buffered


def _read_table(source: _In) -> SessionTable:
    table = SessionTable()
    _, _, _, table.clock_ns, table.last_ns, sessions, keys = source.unpack(_HEAD)
    for _ in range(sessions):
        key, used_ns, lowest, count = source.unpack(_SESSION)
        session = Session(used_ns)
        session.lowest = lowest
        for _ in range(count):
            (sequence,) = source.unpack(_SEQUENCE)
            session.answers[sequence] = source.answer()
        table.add_session(key, session)
    for _ in range(keys):
        key, fingerprint, at_ns = source.unpack(_KEY)
        table.add_key(key, Key(at_ns, fingerprint, source.answer()))
    source.check()
    return table


class _Out:
    """Writes in pieces of a useful size, and counts the checksum."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._crc = 0

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER_SIZE_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._sink.write(_CHECKSUM.pack(self._crc))

    def _flush(self) -> None:
        self._crc = zlib.crc32(self._buffer, self._crc)
        self._sink.write(bytes(self._buffer))
        self._buffer.clear()


class _In:
    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._crc = 0

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._take(form.size))

    def answer(self) -> bytes:
        kind, size = _ANSWER.unpack(self._take(_ANSWER.size))
        if kind > NOT_KEPT or size > ANSWER_SIZE_BYTES_MAX:
            raise SessionFormatError("the table of sessions has an answer that cannot be")
        return bytes((kind,)) + self._take(size)

    def check(self) -> None:
        counted = self._crc
        if _CHECKSUM.unpack(self._take(_CHECKSUM.size))[0] != counted:
            raise SessionFormatError("the table of sessions is damaged: its checksum is another")

    def _take(self, size: int) -> bytes:
        data = _read(self._source, size)
        if len(data) < size:
            raise SessionFormatError("the table of sessions is cut short")
        self._crc = zlib.crc32(data, self._crc)
        return data


def _read(source: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end."""
    data = source.read(size)
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            break
        data += more
    return data


class _Rest(io.RawIOBase):
    """Bytes read already, then the rest of a source that stays its owner's to close."""

    def __init__(self, begin: bytes, source: BinaryIO) -> None:
        super().__init__()
        self._begin = begin
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what BufferedReader gives
        data = self._begin or self._source.read(len(buffer))
        taken = data[: len(buffer)]
        self._begin = self._begin[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _joined(begin: bytes, source: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Rest(begin, source), _BUFFER_SIZE_BYTES)
