"""What a server tells of itself: role, indexes, configuration, figures, observers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from rafthttp.raft.config import Config
from rafthttp.raft.observer import Observer
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.storage.protocols import StableStore
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import (
    PROTOCOL_VERSION,
    Configuration,
    Index,
    Leader,
    ServerAddress,
    ServerID,
    State,
    Term,
)

# What is spoken and read, as `wire.rpc` and the snapshot stores have it.
_PROTOCOL_VERSION_MIN: Final = 2
_SNAPSHOT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LatestConfiguration:
    """The latest configuration, committed or not, and its index."""

    configuration: Configuration
    index: Index


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """What a leader knows of another member.

    Attributes:
        match_index: up to where its log is known to be durable; 0 until it answered this leader.
        contact: when it was last heard, on the event loop's clock in seconds; until then, when
            this leader began.
    """

    match_index: Index
    contact: float


class RaftStatus:
    """The half of `Raft` that only looks."""

    def __init__(self, config: Config, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._driver: Driver
        self._stable_store: StableStore
        self._stop: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def get_configuration(self) -> LatestConfiguration:
        """The latest configuration in this server's log."""
        core = self._driver.core
        return LatestConfiguration(core.configuration, core.configuration_index)

    @property
    def id(self) -> ServerID:
        """This server's id."""
        return self._config.local_id

    @property
    def address(self) -> ServerAddress:
        """This server's own address."""
        return self._transport.local_address

    @property
    def state(self) -> State:
        """Role now."""
        return State.SHUTDOWN if self._stop is not None else self._driver.core.state

    @property
    def current_term(self) -> Term:
        """Term now."""
        return self._driver.core.term

    @property
    def last_index(self) -> Index:
        """Last index in the log, durable or not."""
        return self._driver.core.last_index

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        return self._driver.core.commit_index

    @property
    def applied_index(self) -> Index:
        """Highest index applied to the state machine."""
        return self._driver.applier.applied

    @property
    def last_contact(self) -> float | None:
        """Seconds since the leader was heard; 0 on the leader, None if never heard."""
        core = self._driver.core
        if core.state is State.LEADER:
            return 0.0
        heard = core.last_contact_ns
        return None if heard is None else max(0, self._driver.now_ns() - heard) / 1e9

    def peer_progress(self, server_id: ServerID) -> PeerProgress | None:
        """How far another member is known to be; None for others, and where this does not lead."""
        core = self._driver.core
        heard = core.contact_ns(server_id)
        return None if heard is None else PeerProgress(core.match_index(server_id), heard / 1e9)

    @property
    def failure(self) -> Exception | None:
        """Why this server takes no part any more, or None."""
        return self._failure or self._driver.failure

    def leader_with_id(self) -> Leader | None:
        """Who leads, as far as this server knows."""
        return None if self._stop is not None else self._driver.leader

    def leader_changes(self) -> AsyncIterator[Leader | None]:
        """The leader now, then each change, until shutdown. A slow reader sees the newest only."""
        return self._driver.notices.leaders()

    def register_observer(self, observer: Observer) -> None:
        """Tell `observer` of what happens from now on, until `deregister_observer` or shutdown."""
        self._driver.notices.register(observer)

    def deregister_observer(self, observer: Observer) -> None:
        """Tell it no more; its iterator ends. Idempotent."""
        self._driver.notices.deregister(observer)

    def stats(self) -> dict[str, str | int | float | None]:
        """Figures for people and monitoring; the keys are hashicorp/raft's where it has them."""
        core, snapshots = self._driver.core, self._driver.snapshots
        return {
            "state": self.state.value,
            "term": core.term,
            "last_log_index": core.last_index,
            "last_log_term": core.last_term,
            "last_snapshot_index": snapshots.last_index,
            "last_snapshot_term": snapshots.last_term,
            "snapshot_error": snapshots.error,
            "commit_index": core.commit_index,
            "applied_index": self.applied_index,
            "fsm_pending": core.commit_index - self.applied_index,
            "pending_applies": len(self._driver.pending),
            "last_contact": self.last_contact,
            "num_peers": self._num_peers(),
            "latest_configuration_index": core.configuration_index,
            "latest_configuration": ", ".join(
                f"{s.id} at {s.address} ({s.suffrage.name.lower()})" for s in core.configuration
            ),
            "protocol_version": PROTOCOL_VERSION,
            "protocol_version_min": _PROTOCOL_VERSION_MIN,
            "protocol_version_max": PROTOCOL_VERSION,
            "snapshot_version_min": _SNAPSHOT_VERSION,
            "snapshot_version_max": _SNAPSHOT_VERSION,
            "failure": None if self.failure is None else str(self.failure),
            **_snapshot_figures(self._driver),
        }

    def _num_peers(self) -> int:
        """The other voters; 0 for one that does not vote itself (as hashicorp/raft counts)."""
        voters = self._driver.core.configuration.voters
        return len(voters) - 1 if any(server.id == self.id for server in voters) else 0

    def __repr__(self) -> str:
        return f"<Raft {self.id} at {self.address}: {self.state.value} in term {self.current_term}>"


def _snapshot_figures(driver: Driver) -> dict[str, int | None]:
    """How far snapshots on their way have come, in bytes; None where none is."""
    persisting, restoring = driver.snapshots.persisting, driver.restores.progress
    receiving, sending = driver.inbound.installer.progress, driver.sender.progress.values()
    return {
        "snapshot_persisting_bytes": None if persisting is None else persisting.done,
        "snapshot_receiving_bytes": None if receiving is None else receiving.done,
        "snapshot_receiving_size": None if receiving is None else receiving.size,
        "snapshot_restoring_bytes": None if restoring is None else restoring.done,
        "snapshot_restoring_size": None if restoring is None else restoring.size,
        "snapshot_sending_peers": len(sending),
        "snapshot_sending_bytes": sum(p.done for p in sending) if sending else None,
        "snapshot_sending_size": sum(p.size or 0 for p in sending) if sending else None,
    }
