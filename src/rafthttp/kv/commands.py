"""The key-value service's commands as bytes: what stands in `Log.data`.

Knows nothing of Raft and HTTP. A command is: version byte (1), operation byte, key length (two
bytes, big-endian), key (UTF-8), and for a put the value up to the end.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1

# A path of the file system fits (PATH_MAX is 4096), and so does the key percent-encoded (three
# bytes for one) under the 64 KiB that HTTP servers allow for a request line.
KEY_SIZE_BYTES_MAX: Final = 4096

_HEAD: Final = struct.Struct(">BBH")
_HEADER_SIZE_BYTES: Final = _HEAD.size


class CommandError(ValueError):
    """Bytes that are no command, or a key that nobody may use; the text says what is wrong."""


class Operation(IntEnum):
    """What a command does; the number stands in the log for ever."""

    PUT = 1
    DELETE = 2


class Command(NamedTuple):
    """One change of one key. `value` is empty for a delete."""

    operation: Operation
    key: str
    value: bytes = b""


class KeyInfo(NamedTuple):
    """A key and the size of its value."""

    key: str
    size: int


def check_key(key: str) -> bytes:
    """The key's UTF-8.

    Raises:
        CommandError: the key is empty, too long, or no valid Unicode text.
    """
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise CommandError("the key is not valid UTF-8") from error
    if not raw:
        raise CommandError("the key is empty")
    if len(raw) > KEY_SIZE_BYTES_MAX:
        raise CommandError(
            f"the key has {len(raw)} bytes; at most {KEY_SIZE_BYTES_MAX} are allowed"
        )
    return raw


def command_overhead(key: str) -> int:
    """How many bytes a command adds to its value."""
    return _HEADER_SIZE_BYTES + len(check_key(key))


def encode(command: Command) -> bytes:
    """The command's bytes.

    Raises:
        CommandError: see `check_key`.
    """
    return encode_checked(command.operation, check_key(command.key), command.value)


def encode_checked(operation: Operation, key: bytes, value: bytes = b"") -> bytes:
    """Likewise, of a key that comes from `check_key`."""
    return b"".join((_HEAD.pack(VERSION, operation, len(key)), key, value))


def decode(data: bytes) -> Command:
    """The command in `data`.

    Raises:
        CommandError: an unknown version or operation, or not a command at all.
    """
    if len(data) < _HEADER_SIZE_BYTES:
        raise CommandError(f"a command of {len(data)} bytes is too short")
    if data[0] != VERSION:
        raise CommandError(f"command version {data[0]} is unknown here (this is version {VERSION})")
    try:
        operation = Operation(data[1])
    except ValueError as error:
        raise CommandError(f"operation {data[1]} is unknown") from error
    end = _HEADER_SIZE_BYTES + int.from_bytes(data[2:4], "big")
    if not _HEADER_SIZE_BYTES < end <= len(data):
        raise CommandError("the key's length does not fit the command")
    try:
        key = data[_HEADER_SIZE_BYTES:end].decode()
    except UnicodeDecodeError as error:
        raise CommandError("the key is not valid UTF-8") from error
    value = data[end:]
    if operation is Operation.DELETE and value:
        raise CommandError("a delete carries a value")
    return Command(operation, key, value)
