"""The replicated dictionary behind the key-value service.

Knows commands and log entries; knows no HTTP and no clock. A snapshot is a stream of msgpack:
a header map (`format`, `version`, `keys`), then that many `[key, value]` pairs in order of their
keys, then nil.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, BinaryIO, Final, cast

import msgpack
from sortedcontainers import SortedDict

from rafthttp import FSM, Log
from rafthttp.kv.commands import KEY_SIZE_BYTES_MAX, KeyInfo, Operation, decode

_FORMAT: Final = "rafthttp-kv"
_VERSION: Final = 1
_READ_SIZE_BYTES: Final = 1 << 20
# Above `Config.entry_size_bytes_max`'s own upper bound: whatever was stored can be restored.
_VALUE_SIZE_BYTES_MAX: Final = 128 << 20


class SnapshotFormatError(ValueError):
    """A snapshot is not of this format, of a newer version, or cut short."""


class _Snapshot:
    """One point in time. The dictionary is a copy; the values are shared and immutable."""

    def __init__(self, data: Mapping[str, bytes]) -> None:
        self._data: Mapping[str, bytes] = data

    def persist(self, sink: BinaryIO) -> None:
        packer = msgpack.Packer(use_bin_type=True)
        header = {"format": _FORMAT, "version": _VERSION, "keys": len(self._data)}
        sink.write(packer.pack(header))
        for pair in self._data.items():  # noqa: FURB122 - a sink promises `write` only
            sink.write(packer.pack(pair))
        sink.write(packer.pack(None))

    def release(self) -> None:
        self._data = {}


class KVStateMachine(FSM):
    """Keys and values in memory, in order of the keys."""

    def __init__(self) -> None:
        self._data: SortedDict[str, bytes] = SortedDict()

    # -- reading, on the event loop

    def __len__(self) -> int:
        return len(self._data)

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        return self._data.get(key)

    def list(self, prefix: str = "", *, after: str | None = None, limit: int) -> list[KeyInfo]:
        """Keys that begin with `prefix`, in order, at most `limit`, those behind `after` only."""
        least, inclusive = prefix, True
        if after is not None and after >= prefix:
            least, inclusive = after, False
        keys = self._data.irange(least, inclusive=(inclusive, True))
        found: list[KeyInfo] = []
        for key in islice(keys, limit):
            if not key.startswith(prefix):
                break  # keys with a common prefix stand side by side
            found.append(KeyInfo(key, len(self._data[key])))
        return found

    # -- FSM

    def apply(self, log: Log) -> Any:
        """Do one command. A put answers None; a delete whether the key was there.

        Raises:
            CommandError: the entry is no command of this version.
        """
        command = decode(log.data)
        if command.operation is Operation.PUT:
            self._data[command.key] = command.value
            return None
        return self._data.pop(command.key, None) is not None

    def snapshot(self) -> _Snapshot:
        """The state now: a shallow copy, about 20 ms for a million keys."""
        return _Snapshot(dict(self._data))

    def restore(self, source: BinaryIO) -> None:
        """Replace the state; on an error the old one stays.

        Raises:
            SnapshotFormatError: another format, a newer version, or cut short.
        """
        self._data = SortedDict(_read_snapshot(source))


def _read_snapshot(source: BinaryIO) -> dict[str, bytes]:
    unpacker = msgpack.Unpacker(
        source,
        raw=False,
        read_size=_READ_SIZE_BYTES,
        max_buffer_size=_VALUE_SIZE_BYTES_MAX + 2 * _READ_SIZE_BYTES,
        max_bin_len=_VALUE_SIZE_BYTES_MAX,
        max_str_len=KEY_SIZE_BYTES_MAX,
        # A pair, a header with room for more fields: msgpack allocates what a length claims.
        max_array_len=2,
        max_map_len=64,
        max_ext_len=0,
    )
    try:
        keys = _check_header(unpacker.unpack())
        data: dict[str, bytes] = {}
        for _ in range(keys):
            key, value = unpacker.unpack()
            if not isinstance(key, str) or not isinstance(value, bytes):
                raise SnapshotFormatError("a snapshot's pair is not a key and a value")
            data[key] = value
        if unpacker.unpack() is not None or len(data) != keys or unpacker.read_bytes(1):
            raise SnapshotFormatError("the snapshot does not end where it says")
    except SnapshotFormatError:
        raise
    except msgpack.OutOfData as error:
        raise SnapshotFormatError("the snapshot is cut short") from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise SnapshotFormatError(f"the snapshot cannot be read: {error}") from error
    return data


def _check_header(header: object) -> int:
    if not isinstance(header, dict):
        raise SnapshotFormatError("this is no snapshot of the key-value service")
    fields = cast(dict[object, object], header)
    if fields.get("format") != _FORMAT:
        raise SnapshotFormatError("this is no snapshot of the key-value service")
    version, keys = fields.get("version"), fields.get("keys")
    if not isinstance(version, int) or version != _VERSION:
        raise SnapshotFormatError(
            f"snapshot version {version} is unknown here (this is version {_VERSION})"
        )
    if not isinstance(keys, int) or keys < 0:
        raise SnapshotFormatError("the snapshot does not say how many keys it has")
    return keys
