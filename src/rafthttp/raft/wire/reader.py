"""Incremental, strict decoding of hashicorp/raft's msgpack: bytes in, one value at a time out.

Knows msgpack and what go-msgpack tolerates (any width of integer and length, str, bin and raw
alike, nil for anything, unknown fields of any type); knows no RPC. Nothing a peer claims is
allocated before its bytes are there, and what nobody asked for is skipped, not built.

Every decoder here is a generator. It yields the number of bytes it must see from `pos` on before it
can go on, so a frame delivered byte by byte costs one resume a byte, never a second parse:
C msgpack's `Unpacker` resumes as well, but builds whatever a peer claims, and cannot tell the bin
from the raw types.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, TypeAlias, TypeVar

from rafthttp.raft.errors import FrameTooLargeError, ProtocolError
from rafthttp.raft.wire.limits import DEFAULT_LIMITS, WireLimits

_T = TypeVar("_T")
Steps: TypeAlias = Generator[Any, None, _T]
"""A decoder at work: yields how many bytes it needs (an int), or an event; returns its value."""

# Kinds of a first byte.
BAD: Final = 0
NIL: Final = 1
BOOL: Final = 2
INT: Final = 3
FLOAT: Final = 4
RAW: Final = 5
BIN: Final = 6
ARRAY: Final = 7
MAP: Final = 8
EXT: Final = 9

# Of each first byte: its kind, the width of the big-endian number behind it, and, where that width
# is 0, the number itself.
_KINDS: Final = bytearray(256)
_WIDTHS: Final = bytearray(256)
_VALUES: Final = list(range(256))
_SIGNED: Final = frozenset((0xD0, 0xD1, 0xD2, 0xD3))


def _fill(first: int, last: int, kind: int, base: int) -> None:
    for byte in range(first, last + 1):
        _KINDS[byte] = kind
        _VALUES[byte] = byte - base


_fill(0x00, 0x7F, INT, 0)
_fill(0x80, 0x8F, MAP, 0x80)
_fill(0x90, 0x9F, ARRAY, 0x90)
_fill(0xA0, 0xBF, RAW, 0xA0)
_fill(0xC0, 0xC0, NIL, 0xC0)
_fill(0xC2, 0xC3, BOOL, 0xC2)
_fill(0xE0, 0xFF, INT, 0x100)
for _byte, _kind, _width in (
    *((0xC4 + i, BIN, 1 << i) for i in range(3)),
    *((0xC7 + i, EXT, 1 << i) for i in range(3)),
    (0xCA, FLOAT, 4),
    (0xCB, FLOAT, 8),
    *((0xCC + i, INT, 1 << i) for i in range(4)),
    *((0xD0 + i, INT, 1 << i) for i in range(4)),
    *((0xD9 + i, RAW, 1 << i) for i in range(3)),
    *((0xDC + i, ARRAY, 2 << i) for i in range(2)),
    *((0xDE + i, MAP, 2 << i) for i in range(2)),
):
    _KINDS[_byte] = _kind
    _WIDTHS[_byte] = _width
for _power in range(5):
    _KINDS[0xD4 + _power] = EXT
    _VALUES[0xD4 + _power] = 1 << _power

_CONTAINERS: Final = (ARRAY, MAP)
_STRINGS: Final = (RAW, BIN)

# What a field holds; `Reader.value` decodes it. An id or address comes as str, empty for nil.
UINT: Final = 1
SIGNED: Final = 2
FLAG: Final = 3
BYTES: Final = 4
NAME: Final = 5
TIME: Final = 6


class Reader:
    """A buffer, a position in it, and the generators that decode from there.

    Invariant: what stands before `pos` is consumed for good.
    """

    def __init__(self, limits: WireLimits = DEFAULT_LIMITS, data: bytes = b"") -> None:
        self.limits = limits
        self.buf = data
        self.pos = 0
        self._elements_left = limits.elements_max

    def head(self) -> Steps[tuple[int, int]]:
        """The kind of the next value, and its number, size or count."""
        while self.pos >= len(self.buf):
            yield 1
        byte = self.buf[self.pos]
        width = _WIDTHS[byte]
        if not width:
            self.pos += 1
            return _KINDS[byte], _VALUES[byte]
        while len(self.buf) - self.pos <= width:
            yield 1 + width
        start = self.pos + 1
        self.pos = end = start + width
        signed = byte in _SIGNED
        return _KINDS[byte], int.from_bytes(self.buf[start:end], "big", signed=signed)

    def take(self, size: int) -> Steps[bytes]:
        """The next `size` bytes."""
        if size > self.limits.frame_size_bytes_max:
            raise FrameTooLargeError(
                f"a value of {size} bytes", option="WireLimits.frame_size_bytes_max"
            )
        while len(self.buf) - self.pos < size:
            yield size
        start = self.pos
        self.pos = end = start + size
        return self.buf[start:end]

    def key(self) -> Steps[bytes]:
        """The key of a map's next pair."""
        kind, size = yield from self.head()
        if kind != RAW and kind != BIN:
            raise ProtocolError("a key is not a string")
        return (yield from self.take(size))

    def struct(self, fields: dict[bytes, int], count: int | None = None) -> Steps[dict[bytes, Any]]:
        """A Go struct as a dict of the fields that came; nil is the zero struct.

        Args:
            fields: what each known field holds; others are skipped.
            count: pairs left, where the map's head is already consumed.
        """
        values: dict[bytes, Any] = {}
        if count is None:
            count = yield from self.struct_head(len(fields))
        for _ in range(count):
            key = yield from self.key()
            what = fields.get(key)
            if what is None:
                yield from self.skip()
            else:
                values[key] = yield from self.value(what, key)
        return values

    def struct_head(self, known: int) -> Steps[int]:
        """How many pairs the next map has; 0 for nil. More than `known` are charged."""
        kind, count = yield from self.head()
        if kind == NIL:
            return 0
        if kind != MAP:
            raise ProtocolError("a map was expected")
        if count > known:
            self.charge(count - known)
        return count

    def array_head(self) -> Steps[int]:
        """How many elements the next array has; -1 for nil. To Go an empty map is one, too."""
        kind, count = yield from self.head()
        if kind == NIL:
            return -1
        if kind != ARRAY and (kind != MAP or count):
            raise ProtocolError("an array was expected")
        return count

    def value(self, what: int, key: bytes) -> Steps[Any]:
        """The value of a field; nil is its zero (None for BYTES and TIME).

        Raises:
            ProtocolError: what go-msgpack would not decode into this field.
        """
        kind, number = yield from self.head()
        if what >= BYTES:
            if kind == NIL:
                return "" if what == NAME else None
            if kind == EXT and what == TIME:
                return (yield from self._timestamp(number))
            if kind != RAW and kind != BIN:
                raise ProtocolError(f"{_text(key)} is not a string")
            if what == NAME:
                return (yield from self._name(number, key))
            return (yield from self.take(number))
        if kind == NIL:
            return 0
        if what == FLAG:
            # go-msgpack takes the integers 0 and 1 as well.
            if kind == BOOL or (kind == INT and 0 <= number <= 1):
                return bool(number)
            raise ProtocolError(f"{_text(key)} is not a bool")
        if kind != INT:
            raise ProtocolError(f"{_text(key)} is not an integer")
        if what == UINT:
            if number < 0:
                raise ProtocolError(f"{_text(key)} is negative")
        elif number >= 1 << 63:
            raise ProtocolError(f"{_text(key)} overflows a signed integer")
        return number

    def _name(self, size: int, key: bytes) -> Steps[str]:
        if size > self.limits.name_size_bytes_max:
            raise FrameTooLargeError(
                f"{_text(key)} of {size} bytes", option="WireLimits.name_size_bytes_max"
            )
        raw = yield from self.take(size)
        return raw.decode("utf-8", "surrogateescape")

    def _timestamp(self, size: int) -> Steps[bytes]:
        """The timestamp extension (type -1); its payload is go-msgpack's new time format."""
        if size not in (4, 8, 12):
            raise ProtocolError("AppendedAt is an extension that is not a timestamp")
        raw = yield from self.take(size + 1)
        if raw[0] != 0xFF:
            raise ProtocolError("AppendedAt is an extension that is not a timestamp")
        return raw[1:]

    def skip(self) -> Steps[None]:
        """Pass over one value of any type, without building it."""
        self.charge(1)
        # One level a number: values left in it. A map counts two a pair.
        levels = [1]
        while levels:
            if not levels[-1]:
                levels.pop()
                continue
            levels[-1] -= 1
            kind, number = yield from self.head()
            if kind in _CONTAINERS:
                count = number if kind == ARRAY else number * 2
                self.charge(count)
                if len(levels) > self.limits.depth_max:
                    raise FrameTooLargeError(
                        f"nesting deeper than {self.limits.depth_max}",
                        option="WireLimits.depth_max",
                    )
                levels.append(count)
            elif kind in _STRINGS:
                yield from self.take(number)
            elif kind == EXT:
                yield from self.take(number + 1)
            elif kind == BAD:
                raise ProtocolError("the byte c1 is not msgpack")

    def begin_frame(self) -> None:
        """A new frame has a new allowance of elements."""
        self._elements_left = self.limits.elements_max

    def charge(self, count: int) -> None:
        """Take from the frame's allowance of elements.

        Raises:
            FrameTooLargeError: it is used up.
        """
        self._elements_left -= count
        if self._elements_left < 0:
            raise FrameTooLargeError(
                "more unknown values than are skipped in a frame",
                option="WireLimits.elements_max",
            )


def run(steps: Steps[_T]) -> _T:
    """Run a decoder over a buffer that holds everything.

    Raises:
        ProtocolError: the value is cut short, or what the decoder raises.
    """
    try:
        next(steps)
    except StopIteration as stop:
        value: _T = stop.value
        return value
    raise ProtocolError("the value is cut short")


def _text(key: bytes) -> str:
    return key.decode("ascii", "replace")
