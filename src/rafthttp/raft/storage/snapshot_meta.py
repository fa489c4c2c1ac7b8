"""The file `meta.json` of a stored snapshot: what it stands for, and how to tell that it is whole.

One line of JSON with the keys in order, so that each state has exactly one spelling: bytes that do
not read back as themselves are broken, whichever bit it is. `checksum` is the SHA-256 of the other
fields. Knows no files. Every later format keeps `format` and `checksum` as they are.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, NamedTuple, TypeVar, cast

from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

FORMAT: Final = 1
"""Version of a stored snapshot's format; a directory that holds a greater one is refused."""

_T = TypeVar("_T")


class BrokenMetaError(Exception):
    """The bytes are not what was written."""


class NewerFormatError(Exception):
    """It is whole, and of a format of a later version.

    Attributes:
        format: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"format {number}")
        self.format = number


class StoredMeta(NamedTuple):
    """A snapshot's meta, and the SHA-256 of its state in hexadecimal."""

    meta: SnapshotMeta
    state_sha256: str


def encode_meta(stored: StoredMeta) -> bytes:
    """The bytes of `meta.json`."""
    meta = stored.meta
    return sealed(
        {
            "format": FORMAT,
            "id": meta.id,
            "index": meta.index,
            "term": meta.term,
            "configuration": [
                {"id": server.id, "address": server.address, "suffrage": int(server.suffrage)}
                for server in meta.configuration
            ],
            "configuration_index": meta.configuration_index,
            "size": meta.size,
            "version": meta.version,
            "state_sha256": stored.state_sha256,
        }
    )


def decode_meta(data: bytes) -> StoredMeta:
    """Read what `encode_meta` wrote.

    Raises:
        BrokenMetaError: a bit is wrong, or it is something else.
        NewerFormatError: a later version wrote it.
    """
    try:
        fields: object = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenMetaError from None
    if not isinstance(fields, dict):
        raise BrokenMetaError
    known = cast("dict[str, Any]", fields)
    known.pop("checksum", None)
    try:
        if sealed(known) != data:
            raise BrokenMetaError
    except RecursionError:  # the writer of JSON gives up before the reader does
        raise BrokenMetaError from None
    number = _typed(known.get("format"), int)
    if number > FORMAT:
        raise NewerFormatError(number)
    try:
        stored = _stored(known)
    except (KeyError, TypeError, ValueError):
        raise BrokenMetaError from None
    meta = stored.meta
    if min(meta.index, meta.term, meta.configuration_index, meta.size) < 0:
        raise BrokenMetaError
    if encode_meta(stored) != data:  # another writer's: a true for a 1, a field too many
        raise BrokenMetaError
    return stored


def _stored(fields: dict[str, Any]) -> StoredMeta:
    listed = cast("list[dict[str, Any]]", _typed(fields["configuration"], list))
    servers = tuple(
        Server(
            ServerID(_typed(server["id"], str)),
            ServerAddress(_typed(server["address"], str)),
            Suffrage(server["suffrage"]),
        )
        for server in listed
    )
    meta = SnapshotMeta(
        id=_typed(fields["id"], str),
        index=_typed(fields["index"], int),
        term=_typed(fields["term"], int),
        configuration=Configuration(servers),
        configuration_index=_typed(fields["configuration_index"], int),
        size=_typed(fields["size"], int),
        version=_typed(fields["version"], int),
    )
    return StoredMeta(meta, _typed(fields["state_sha256"], str))


def sealed(fields: dict[str, Any]) -> bytes:
    """The one spelling of these fields, with their checksum."""
    checksum = hashlib.sha256(_spelled(fields)).hexdigest()
    return _spelled({**fields, "checksum": checksum}) + b"\n"


def _spelled(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise BrokenMetaError
    return value
