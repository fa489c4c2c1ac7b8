"""The words everybody uses: servers, configurations, log entries.

Knows no encoding, no clock and no I/O. Names and numbers are hashicorp/raft's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NamedTuple, NewType, TypeAlias

Index: TypeAlias = int
"""Position of an entry in the log; the first entry ever written is 1."""

Term: TypeAlias = int
"""Number of an election period (Raft §5.1); 0 before the first."""

ServerID = NewType("ServerID", str)
"""Name of a server, unique in its cluster for all time."""

ServerAddress = NewType("ServerAddress", str)
"""`HOST:PORT` at which a server is reached. Compared byte for byte, as hashicorp/raft does."""

PROTOCOL_VERSION: Final = 3
"""hashicorp/raft's `ProtocolVersionMax`; sent in every RPC header."""


class LogType(IntEnum):
    """Kind of a log entry, numbered as hashicorp/raft's `log.go`."""

    COMMAND = 0
    NOOP = 1
    ADD_PEER_DEPRECATED = 2
    REMOVE_PEER_DEPRECATED = 3
    BARRIER = 4
    CONFIGURATION = 5


class Suffrage(IntEnum):
    """Whether a server votes, numbered as hashicorp/raft's `configuration.go`."""

    VOTER = 0
    NONVOTER = 1
    STAGING = 2


class State(Enum):
    """Role of a server (Raft §5.1)."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    SHUTDOWN = "shutdown"


class Server(NamedTuple):
    """One member of a configuration."""

    id: ServerID
    address: ServerAddress
    suffrage: Suffrage = Suffrage.VOTER


@dataclass(frozen=True, order=True, slots=True)
class LogPosition:
    """Where a log ends, or is to reach; compares as Raft §5.4.1 says, the term first."""

    term: Term
    index: Index


class Leader(NamedTuple):
    """Who leads, as far as this server knows."""

    id: ServerID
    address: ServerAddress


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members of a cluster (Raft §6). Immutable; ids and addresses are unique.

    Raises:
        ValueError: an id or an address is empty or stands twice.
    """

    servers: tuple[Server, ...] = ()

    def __post_init__(self) -> None:
        if len({s.id for s in self.servers}) != len(self.servers):
            raise ValueError("a server id stands twice in the configuration")
        if len({s.address for s in self.servers}) != len(self.servers):
            raise ValueError("an address stands twice in the configuration")
        for server in self.servers:
            if not server.id or not server.address:
                raise ValueError("a server of the configuration has no id or no address")

    def __iter__(self) -> Iterator[Server]:
        return iter(self.servers)

    def get(self, server_id: ServerID) -> Server | None:
        """The member with this id, or None."""
        for server in self.servers:
            if server.id == server_id:
                return server
        return None

    def by_address(self, address: ServerAddress) -> Server | None:
        """The member at this address, or None."""
        for server in self.servers:
            if server.address == address:
                return server
        return None

    def has_vote(self, server_id: ServerID) -> bool:
        """Whether this id is a voter here."""
        server = self.get(server_id)
        return server is not None and server.suffrage is Suffrage.VOTER

    @property
    def voters(self) -> tuple[Server, ...]:
        """The members that vote."""
        return tuple(s for s in self.servers if s.suffrage is Suffrage.VOTER)

    @property
    def quorum_size(self) -> int:
        """A true majority of the voters, for even sizes too (S24)."""
        return len(self.voters) // 2 + 1

    def with_server(self, server: Server) -> Configuration:
        """This configuration with `server` added, or replaced where its id is already there."""
        if self.get(server.id) is None:
            return Configuration((*self.servers, server))
        return Configuration(tuple(server if s.id == server.id else s for s in self.servers))

    def without(self, server_id: ServerID) -> Configuration:
        """This configuration without that id."""
        return Configuration(tuple(s for s in self.servers if s.id != server_id))


@dataclass(slots=True)
class Log:
    """One log entry, as the state machine sees it; not to be changed.

    `appended_at_ns` is the leader's wall clock when it accepted the entry, in nanoseconds since the
    Unix epoch; None where the leader set none (Go's zero time).
    """

    index: Index
    term: Term
    type: LogType
    data: bytes
    extensions: bytes = b""
    appended_at_ns: int | None = None


class LogBatch(NamedTuple):
    """Contiguous entries of one term, as they go to disk, to the cache and to every peer.

    `records[i]` is the entry `first + i` encoded once (hashicorp/raft's msgpack map); stores treat
    it as opaque bytes.
    """

    first: Index
    term: Term
    records: list[bytes]

    @property
    def last(self) -> Index:
        """Index of the last entry; `first - 1` when empty."""
        return self.first + len(self.records) - 1


class LogWrite(NamedTuple):
    """One durable step, applied in this order: `stable`, `reset_to`, `truncate_from`, `batches`.

    `stable` are key-value pairs of the stable store (a None value deletes). `reset_to` discards the
    whole log: the next entry is `reset_to + 1` (after an installed snapshot). `truncate_from`
    deletes that entry and all after it.
    """

    stable: Mapping[bytes, bytes | None]
    truncate_from: Index | None = None
    batches: tuple[LogBatch, ...] = ()
    reset_to: Index | None = None
