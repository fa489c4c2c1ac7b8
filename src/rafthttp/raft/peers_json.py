"""hashicorp/raft's `peers.json`: the members of a cluster, written by hand for a recovery.

Both formats: an array of objects with `id`, `address` and, where it is true, `non_voter`; and the
older array of addresses, which are the ids too. Stricter than Go's reader: a field that is no field
would make a voter of a misspelt `non_voter`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

_FIELDS: Final = ("id", "address", "non_voter")
# Far above any real cluster; what is larger is another file.
_SIZE_BYTES_MAX: Final = 1 << 20


def read_config_json(path: str | Path) -> Configuration:
    """The configuration in a `peers.json` file (hashicorp/raft's `ReadConfigJSON`).

    Raises:
        ConfigError: it cannot be read, or is no such file; the text names the field.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        return _parse(data)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _parse(data: bytes) -> Configuration:
    if len(data) > _SIZE_BYTES_MAX:
        raise ValueError("it is too large for a list of servers")
    try:
        peers: object = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(peers, list):
        raise ValueError("it must be an array of servers")
    servers = [_server(n, peer) for n, peer in enumerate(cast("list[object]", peers))]
    _check_unique("id", [server.id for server in servers])
    _check_unique("address", [server.address for server in servers])
    configuration = Configuration(tuple(servers))
    if not configuration.voters:
        raise ValueError("it has no voter: at least one server must not be a non_voter")
    return configuration


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; its keys are matched whatever their case, as Go does."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key.lower() in fields:
            raise ValueError(f"the field {key!r} stands twice")
        fields[key.lower()] = value
    return fields


def _server(number: int, peer: object) -> Server:
    if isinstance(peer, str):
        if not peer:
            raise ValueError(f"[{number}] is empty; it must be an address")
        _check_encodes(f"[{number}]", peer)
        return Server(ServerID(peer), ServerAddress(peer))
    if not isinstance(peer, dict):
        raise ValueError(f"[{number}] must be an object with id and address")
    fields = cast("dict[str, object]", peer)
    for name in fields:
        if name not in _FIELDS:
            raise ValueError(f"[{number}].{name} is no field; they are {', '.join(_FIELDS)}")
    non_voter = fields.get("non_voter", False)
    if not isinstance(non_voter, bool):
        raise ValueError(f"[{number}].non_voter must be true or false")
    return Server(
        ServerID(_text(number, fields, "id")),
        ServerAddress(_text(number, fields, "address")),
        Suffrage.NONVOTER if non_voter else Suffrage.VOTER,
    )


def _text(number: int, fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise ValueError(f"[{number}].{name} is missing")
    if not isinstance(value, str) or not value:
        raise ValueError(f"[{number}].{name} must be a text that is not empty")
    _check_encodes(f"[{number}].{name}", value)
    return value


def _check_encodes(field: str, value: str) -> None:
    """Half of a surrogate pair, which JSON can write, has no bytes to be stored as."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} is no text: {value!a}") from None


def _check_unique(name: str, values: list[str] | list[ServerID] | list[ServerAddress]) -> None:
    first: dict[str, int] = {}
    for number, value in enumerate(values):
        if value in first:
            raise ValueError(
                f"[{number}].{name} is {value!r}, as [{first[value]}].{name} is already"
            )
        first[value] = number
