"""`Raft`: the public server. One instance is one member of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from rafthttp.raft.config import Config
from rafthttp.raft.fsm import FSM
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    ServerAddress,
    ServerID,
    State,
    Term,
)


@dataclass(frozen=True, slots=True)
class Applied:
    """Where a command stands in the log, and what the state machine answered."""

    index: Index
    response: Any


@dataclass(frozen=True, slots=True)
class LatestConfiguration:
    """The latest configuration, committed or not, and its index."""

    configuration: Configuration
    index: Index


class Raft:
    """A Raft server (hashicorp/raft's `Raft`). Create it with `start`, end it with `shutdown`."""

    @classmethod
    async def start(
        cls,
        config: Config,
        fsm: FSM,
        log_store: LogStore,
        stable_store: StableStore,
        snapshot_store: SnapshotStore | None,
        transport: Transport,
        *,
        forward_read: Callable[[Leader, float], Awaitable[Index]] | None = None,
    ) -> Raft:
        """Start a server on its stores; it takes part as soon as this returns.

        `forward_read` asks the leader for a read index (used by `read_index` on a follower).
        The stores and the transport are closed by `shutdown`.
        """
        raise NotImplementedError

    # -- commands

    async def apply(self, data: bytes, *, timeout: float | None = None) -> Any:
        """Replicate one command; returns what the state machine answered once it is applied here.

        Raises NotLeaderError, OverloadedError, EntryTooLargeError (definite), LeadershipLostError
        (unknown), TimedOutError, ShutdownError, StorageFailedError (see `outcome`).
        """
        raise NotImplementedError

    async def apply_log(
        self, data: bytes, extensions: bytes = b"", *, timeout: float | None = None
    ) -> Applied:
        """`apply` with extensions, and with the index in the answer."""
        raise NotImplementedError

    async def barrier(self, *, timeout: float | None = None) -> Index:
        """Wait until everything before this call is applied here (leader only)."""
        raise NotImplementedError

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        """Check with a quorum that this server still leads; NotLeaderError if not."""
        raise NotImplementedError

    async def read_index(self, *, timeout: float | None = None) -> Index:
        """Wait until a local read is linearizable (Raft thesis §6.4); returns its index.

        A quorum round on the leader, shared by all readers of a turn; on a follower one forward for
        the index, then the wait until it is applied here.
        """
        raise NotImplementedError

    async def confirm_read_index(self, *, timeout: float | None = None) -> Index:
        """The leader's half of a follower's `read_index`: a confirmed index, not waited for."""
        raise NotImplementedError

    # -- membership

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a voter, promote a nonvoter, or change a member's address.

        With `prev_index` the change is refused unless the latest configuration stands there.
        Returns when the change is committed. Raises ConfigurationChangeError, and as `apply`.
        """
        raise NotImplementedError

    async def add_nonvoter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a member that gets the log and does not vote; never demotes a voter."""
        raise NotImplementedError

    async def demote_voter(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Make a voter a nonvoter."""
        raise NotImplementedError

    async def remove_server(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Remove a member; the leader may remove itself and then steps down."""
        raise NotImplementedError

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        """Leader only: wait until that member has everything committed by now; TimedOutError."""
        raise NotImplementedError

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        """Dial `address` and ask who is there, changing no state. Raises TransportError."""
        raise NotImplementedError

    def get_configuration(self) -> LatestConfiguration:
        """The latest configuration in this server's log."""
        raise NotImplementedError

    # -- state

    @property
    def id(self) -> ServerID:
        """This server's id."""
        raise NotImplementedError

    @property
    def address(self) -> ServerAddress:
        """This server's own address."""
        raise NotImplementedError

    @property
    def state(self) -> State:
        """Role now."""
        raise NotImplementedError

    @property
    def current_term(self) -> Term:
        """Term now."""
        raise NotImplementedError

    @property
    def last_index(self) -> Index:
        """Last index in the log."""
        raise NotImplementedError

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        raise NotImplementedError

    @property
    def applied_index(self) -> Index:
        """Highest index applied to the state machine."""
        raise NotImplementedError

    @property
    def last_contact(self) -> float | None:
        """Seconds since the leader was heard; 0 on the leader, None if never heard."""
        raise NotImplementedError

    def leader_with_id(self) -> Leader | None:
        """Who leads, as far as this server knows."""
        raise NotImplementedError

    def leader_changes(self) -> AsyncIterator[Leader | None]:
        """The leader now, then each change, until shutdown. A slow reader sees the newest only."""
        raise NotImplementedError

    def stats(self) -> dict[str, str | int | float | None]:
        """Figures for people and monitoring."""
        raise NotImplementedError

    async def shutdown(self) -> None:
        """Stop taking part; pending calls end. Closes transport, layer and stores. Idempotent."""
        raise NotImplementedError


async def bootstrap_cluster(
    config: Config,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
    configuration: Configuration,
) -> None:
    """Write the first configuration of a new cluster (index 1, term 1).

    Raises:
        CantBootstrapError: there is state already.
    """
    raise NotImplementedError


def has_existing_state(
    log_store: LogStore, stable_store: StableStore, snapshot_store: SnapshotStore | None
) -> bool:
    """Whether these stores have ever taken part in a cluster."""
    raise NotImplementedError
