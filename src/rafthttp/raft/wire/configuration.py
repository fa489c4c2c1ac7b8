"""The configuration of a cluster as hashicorp/raft's msgpack (`configuration.go`).

It is the data of a LogConfiguration entry and `InstallSnapshot.Configuration`. A Go process crashes
on garbage there, so it is checked before it is stored or sent on.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage
from rafthttp.raft.wire.dialect import array_head, map_head, pack_int, pack_name
from rafthttp.raft.wire.reader import NAME, SIGNED, Reader, Steps, run

_SERVER: Final = {b"Address": NAME, b"ID": NAME, b"Suffrage": SIGNED}
# Far above any real cluster; bounds what a lying peer makes us build.
_SERVERS_MAX: Final = 4096


def encode_configuration(configuration: Configuration) -> bytes:
    """The configuration's bytes, fields in hashicorp/raft's order."""
    parts = [map_head(1), b"\xa7Servers", array_head(len(configuration.servers))]
    for server in configuration.servers:
        parts += (
            b"\x83\xa7Address",
            pack_name(server.address),
            b"\xa2ID",
            pack_name(server.id),
            b"\xa8Suffrage",
            pack_int(server.suffrage),
        )
    return b"".join(parts)


def decode_configuration(data: bytes) -> Configuration:
    """The configuration in `data`.

    Raises:
        ProtocolError: garbage, or a configuration no cluster can have.
    """
    return run(_decode(Reader(data=data)))


def _decode(reader: Reader) -> Steps[Configuration]:
    servers: list[Server] = []
    for _ in range((yield from reader.struct_head(1))):
        if (yield from reader.key()) != b"Servers":
            yield from reader.skip()
            continue
        count = yield from reader.array_head()
        if count > _SERVERS_MAX:
            raise ProtocolError(f"a configuration of {count} servers; {_SERVERS_MAX} is the most")
        servers = []
        for _ in range(count):
            fields = yield from reader.struct(_SERVER)
            servers.append(
                Server(
                    ServerID(fields.get(b"ID", "")),
                    ServerAddress(fields.get(b"Address", "")),
                    _suffrage(fields.get(b"Suffrage", 0)),
                )
            )
    try:
        return Configuration(tuple(servers))
    except ValueError as error:
        raise ProtocolError(f"no cluster has this configuration: {error}") from error


def _suffrage(number: int) -> Suffrage:
    try:
        return Suffrage(number)
    except ValueError:
        raise ProtocolError(f"{number} is no suffrage") from None
