"""The envelope around a command in `Log.data`: 40 bytes (docs/reference/sessions.md).

Knows bytes; nothing of who remembers what.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from rafthttp.raft.errors import ConfigError

MAGIC: Final = b"\xf7RHSES"
VERSION: Final = 1
ENVELOPE_SIZE_BYTES: Final = 40
ID_SIZE_BYTES: Final = 16

HEAD: Final = struct.Struct(">6sBB16sQQ")
"""Magic, version, kind, id, a, b."""

_NO_ID: Final = bytes(ID_SIZE_BYTES)
_FINGERPRINT_SIZE_BYTES: Final = 8
_NUMBER_END: Final = 1 << 64


class Kind(IntEnum):
    """What an envelope is for; the number stands in the log for ever."""

    PLAIN = 0
    OPEN = 1
    REQUEST = 2
    ONCE = 3


class SessionRequest(NamedTuple):
    """One numbered request of a session that a client of the application has opened itself.

    A retry carries the same `sequence`; `lowest` promises that every request below it is answered
    or given up.
    """

    session: bytes
    sequence: int
    lowest: int


def plain(command: bytes) -> bytes:
    """A command that is applied each time it comes; in an envelope only where it looks like one."""
    if command.startswith(MAGIC):
        return HEAD.pack(MAGIC, VERSION, Kind.PLAIN, _NO_ID, 0, 0) + command
    return command


def opening(session: bytes) -> bytes:
    """The beginning of a session under 16 random bytes."""
    return HEAD.pack(MAGIC, VERSION, Kind.OPEN, session, 0, 0)


def numbered(request: SessionRequest, command: bytes) -> bytes:
    """One request of a session.

    Raises:
        ConfigError: the id has not 16 bytes, or a number not 64 bits.
    """
    session, sequence, lowest = request
    if len(session) != ID_SIZE_BYTES:
        raise ConfigError(f"a session's id has {len(session)} bytes; it must have {ID_SIZE_BYTES}")
    if not 0 <= lowest <= sequence < _NUMBER_END:
        raise ConfigError(f"sequence {sequence} with lowest {lowest}: 0 <= lowest <= sequence")
    return HEAD.pack(MAGIC, VERSION, Kind.REQUEST, session, sequence, lowest) + command


def once(key: str | bytes, payload: bytes | None, command: bytes) -> bytes:
    """One request under a key of its client's choice; a repeat is held against `payload`.

    Raises:
        ConfigError: the key is empty.
    """
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    if not raw:
        raise ConfigError("request_id is empty")
    digest = hashlib.sha256(raw).digest()[:ID_SIZE_BYTES]
    return HEAD.pack(MAGIC, VERSION, Kind.ONCE, digest, 0, _fingerprint(payload)) + command


def _fingerprint(payload: bytes | None) -> int:
    if payload is None:
        return 0
    return int.from_bytes(hashlib.sha256(payload).digest()[:_FINGERPRINT_SIZE_BYTES], "big")
