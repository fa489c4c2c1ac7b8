"""`Log.AppendedAt`: Go's `time.Time` as raw bytes <-> nanoseconds since the Unix epoch.

Two forms are on the wire: `time.MarshalBinary` (15 bytes, 16 where the zone has seconds) and, from
nodes with `MsgpackUseNewTimeFormat`, the msgpack timestamp payload (4, 8 or 12 bytes). The zone is
dropped: an instant is what is kept. Go's zero time (year 1) is None.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.errors import ProtocolError

# Seconds from 0001-01-01 to 1970-01-01, both UTC (Go's time.go: unixToInternal).
_EPOCH_SECONDS: Final = 62_135_596_800
_NS: Final = 1_000_000_000
_UTC: Final = b"\xff\xff"
ZERO_TIME: Final = b"\x01" + bytes(12) + _UTC


def encode_time(ns: int | None, *, new_format: bool = False) -> bytes:
    """An instant as the bytes inside the raw, in UTC.

    Args:
        ns: nanoseconds since the Unix epoch; None is Go's zero time.
        new_format: the msgpack timestamp payload instead of `time.MarshalBinary`.
    """
    if new_format:
        return _encode_timestamp(-_EPOCH_SECONDS * _NS if ns is None else ns)
    if ns is None:
        return ZERO_TIME
    seconds, nanos = divmod(ns, _NS)
    return (
        b"\x01"
        + (seconds + _EPOCH_SECONDS).to_bytes(8, "big", signed=True)
        + nanos.to_bytes(4, "big")
        + _UTC
    )


def _encode_timestamp(ns: int) -> bytes:
    seconds, nanos = divmod(ns, _NS)
    if not 0 <= seconds < 1 << 34:
        return nanos.to_bytes(4, "big") + seconds.to_bytes(8, "big", signed=True)
    if nanos or seconds >= 1 << 32:
        return (nanos << 34 | seconds).to_bytes(8, "big")
    return seconds.to_bytes(4, "big")


def is_time(raw: bytes) -> bool:
    """Whether Go can decode these bytes of a raw as a time."""
    size = len(raw)
    if size == 15:
        return raw[0] == 1
    if size == 16:
        return raw[0] == 2
    return size in (4, 8, 12)


def decode_time(raw: bytes) -> int | None:
    """The instant in `raw`, either form; None for Go's zero time.

    Raises:
        ProtocolError: neither form.
    """
    if not is_time(raw):
        raise ProtocolError(f"AppendedAt of {len(raw)} bytes is not a time")
    size = len(raw)
    if size == 4:
        return int.from_bytes(raw, "big") * _NS
    if size == 8:
        value = int.from_bytes(raw, "big")
        return (value & (1 << 34) - 1) * _NS + (value >> 34)
    if size == 12:
        seconds = int.from_bytes(raw[4:], "big", signed=True)
        nanos = int.from_bytes(raw[:4], "big")
    else:
        seconds = int.from_bytes(raw[1:9], "big", signed=True) - _EPOCH_SECONDS
        nanos = int.from_bytes(raw[9:13], "big", signed=True)
    if seconds == -_EPOCH_SECONDS and not nanos:
        return None
    return seconds * _NS + nanos
