"""The msgpack dialect of hashicorp/raft (go-msgpack with its defaults), encoding side.

Strings and bytes are the old raw types only (fixraw, raw16, raw32); unsigned integers take the
shortest form; signed ones above 127 take `d1`, `d2`, `d3`. Decoding is `reader.py`.
"""

from __future__ import annotations

from typing import Final

NIL: Final = b"\xc0"
FALSE: Final = b"\xc2"
TRUE: Final = b"\xc3"


def pack_uint(value: int) -> bytes:
    """An unsigned integer, 0 to 2**64 - 1, in its shortest form."""
    if value < 0x80:
        return value.to_bytes(1, "big")
    if value < 0x100:
        return b"\xcc" + value.to_bytes(1, "big")
    if value < 0x10000:
        return b"\xcd" + value.to_bytes(2, "big")
    if value < 0x1_0000_0000:
        return b"\xce" + value.to_bytes(4, "big")
    return b"\xcf" + value.to_bytes(8, "big")


def pack_int(value: int) -> bytes:
    """A signed integer as go-msgpack writes Go's `int` and `int64`: never an unsigned type."""
    if -0x20 <= value < 0x80:
        return value.to_bytes(1, "big", signed=True)
    if -0x80 <= value < 0:
        return b"\xd0" + value.to_bytes(1, "big", signed=True)
    if -0x8000 <= value < 0x8000:
        return b"\xd1" + value.to_bytes(2, "big", signed=True)
    if -0x8000_0000 <= value < 0x8000_0000:
        return b"\xd2" + value.to_bytes(4, "big", signed=True)
    return b"\xd3" + value.to_bytes(8, "big", signed=True)


def raw_head(size: int) -> bytes:
    """What stands before `size` raw bytes."""
    if size < 0x20:
        return (0xA0 | size).to_bytes(1, "big")
    if size < 0x10000:
        return b"\xda" + size.to_bytes(2, "big")
    return b"\xdb" + size.to_bytes(4, "big")


def pack_raw(data: bytes | None) -> bytes:
    """Bytes as raw; None is Go's nil slice."""
    return NIL if data is None else raw_head(len(data)) + data


def pack_name(name: str) -> bytes:
    """An id or address. Empty is Go's nil slice, which is what a zero header carries."""
    return pack_raw(name.encode("utf-8", "surrogateescape")) if name else NIL


def pack_bool(value: bool) -> bytes:
    """A bool."""
    return TRUE if value else FALSE


def array_head(count: int) -> bytes:
    """What stands before the `count` elements of an array."""
    if count < 0x10:
        return (0x90 | count).to_bytes(1, "big")
    if count < 0x10000:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def map_head(count: int) -> bytes:
    """What stands before the `count` pairs of a map; structs here have fewer than 16 fields."""
    assert count < 0x10, "no struct of ours has more fields"
    return (0x80 | count).to_bytes(1, "big")
