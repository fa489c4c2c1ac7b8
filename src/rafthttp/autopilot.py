"""Autopilot: what a leader does about its members by itself (hashicorp/raft-autopilot).

Gives the vote to servers that are being joined once they have been well for a while, removes dead
ones where that was asked for, and tells how everybody is. Stands above `Raft` and uses its public
calls alone; every change of membership it makes could be an operator's.

Who is being joined stands in the log, as suffrage *staging*, so that the next leader knows it too.
Nothing else is remembered from one leader to the next: each counts health and silence anew, from
what it hears itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, Protocol

from rafthttp.health import ClusterHealth, HealthCounter, ServerHealth, Sight
from rafthttp.raft.errors import (
    ConfigError,
    NotLeaderError,
    Outcome,
    RaftHttpError,
    RemoteError,
    TimedOutError,
    TransportError,
    UnknownLeaderError,
)
from rafthttp.raft.status import LatestConfiguration, PeerProgress
from rafthttp.raft.types import (
    Configuration,
    Index,
    ServerAddress,
    ServerID,
    State,
    Suffrage,
    Term,
)

_log = logging.getLogger("rafthttp.autopilot")

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "server_stabilization_time": (0, 86400),
    "last_contact_threshold": (0.005, 3600),
    "max_trailing_logs": (1, 1 << 40),
    "dead_server_last_contact_threshold": (0.1, 365 * 86400),
    "min_quorum": (3, 1000),
    "update_interval": (0.01, 60),
}
# One look, one change at most; a change that hangs must not keep autopilot from seeing the rest.
_CHANGE_SECONDS: Final = 10.0
# Nobody answers at a dead server's address: three seconds are two retransmissions of a SYN.
_LAST_TRY_SECONDS: Final = 3.0
# What survives the loss of one server.
_VOTERS_LEFT_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class AutopilotConfig:
    """Settings of autopilot, with HashiCorp's names. The leader's count: give all nodes the same.

    Attributes:
        server_stabilization_time: seconds for which a server that joins has to be healthy before it
            gets its vote. HashiCorp's servers take 10; with 0 it is as soon as it has caught up.
        last_contact_threshold: seconds without an answer after which a server is not healthy; None:
            twice the heartbeat timeout, which is ten heartbeats at least.
        max_trailing_logs: entries by which a healthy server may lag. More than one full pipeline of
            a busy cluster, or health would flicker with the load.
        cleanup_dead_servers: remove dead servers. Off: a server that is removed while it is away
            has to join again.
        dead_server_last_contact_threshold: seconds of silence after which a server is dead, counted
            only while its leader is heard by a quorum.
        min_quorum: no voter is removed where fewer than this many would be left.
        update_interval: seconds between two looks.
    """

    server_stabilization_time: float = 0.0
    last_contact_threshold: float | None = None
    max_trailing_logs: int = 10_000
    cleanup_dead_servers: bool = False
    dead_server_last_contact_threshold: float = 86400.0
    min_quorum: int = 3
    update_interval: float = 1.0

    def contact_threshold(self, heartbeat_timeout: float) -> float:
        """Seconds: `last_contact_threshold`, or its default for that heartbeat timeout."""
        return self.last_contact_threshold or 2 * heartbeat_timeout

    def validate(self, heartbeat_timeout: float) -> None:
        """Check every field, for servers with that heartbeat timeout in seconds.

        Raises:
            ConfigError: names the field and the bound.
        """
        for field in fields(self):
            value: float | None = getattr(self, field.name)
            if field.name not in _BOUNDS or value is None:
                continue
            least, most = _BOUNDS[field.name]
            if not math.isfinite(value) or not least <= value <= most:
                raise ConfigError(f"{field.name} is {value}; it must be from {least:g} to {most:g}")
        threshold = self.contact_threshold(heartbeat_timeout)
        if self.dead_server_last_contact_threshold <= threshold:
            raise ConfigError(
                "dead_server_last_contact_threshold is"
                f" {self.dead_server_last_contact_threshold}; it must be above"
                f" last_contact_threshold ({threshold:g})"
            )


class Promote(NamedTuple):
    """Give this server its vote."""

    server: ServerHealth


class Remove(NamedTuple):
    """Remove this server, which is dead."""

    server: ServerHealth


def decide(config: AutopilotConfig, servers: Sequence[ServerHealth]) -> Promote | Remove | None:
    """The next thing to do, if any: one change at a time, promotions first.

    A promotion adds to what the cluster can lose; a removal may rely on it.
    """
    for server in servers:
        if server.suffrage is Suffrage.STAGING and is_stable(config, server):
            return Promote(server)
    if not config.cleanup_dead_servers:
        return None
    limit = config.dead_server_last_contact_threshold
    dead = [s for s in servers if not s.healthy and s.silent_for >= limit]
    # Who has no vote takes nothing away with it.
    dead.sort(key=lambda s: (s.suffrage is Suffrage.VOTER, -s.silent_for))
    for server in dead:
        if server.suffrage is not Suffrage.VOTER or _can_lose(config, servers):
            return Remove(server)
    return None


def is_stable(config: AutopilotConfig, server: ServerHealth) -> bool:
    """Whether it has been healthy for the stabilization time."""
    return server.stable_for is not None and server.stable_for >= config.server_stabilization_time


def _can_lose(config: AutopilotConfig, servers: Sequence[ServerHealth]) -> bool:
    """Whether the quorum allows to remove one dead voter.

    The voters left are `min_quorum` or more, the healthy ones among them are a majority, and these
    alone could lose one more: of three servers a dead one is worth more as the third, should it
    come back, than two are without it.
    """
    voters = [server for server in servers if server.suffrage is Suffrage.VOTER]
    healthy = sum(server.healthy for server in voters)
    left = len(voters) - 1
    return left >= config.min_quorum and healthy >= max(_VOTERS_LEFT_MIN, left // 2 + 1)


# -- acting


class AutopilotRaft(Protocol):
    """What autopilot needs of a `Raft`; see there."""

    @property
    def id(self) -> ServerID:
        """This server's id."""
        ...

    @property
    def state(self) -> State:
        """Role now."""
        ...

    @property
    def current_term(self) -> Term:
        """Term now."""
        ...

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        ...

    def get_configuration(self) -> LatestConfiguration:
        """The latest configuration, committed or not."""
        ...

    def peer_progress(self, server_id: ServerID) -> PeerProgress | None:
        """How far a member is known to be; leader only."""
        ...

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        """Wait until that member has everything committed by now."""
        ...

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        """Check with a quorum that this server leads."""
        ...

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        """Ask who is at an address."""
        ...

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add, promote, or change the address of a voter."""
        ...

    async def remove_server(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Remove a member."""
        ...


class Autopilot:
    """Looks after the members while this server leads.

    Args:
        raft: the server.
        config: checked here.
        heartbeat_timeout: the server's, seconds.

    Raises:
        ConfigError: a setting is out of bounds.
    """

    def __init__(
        self, raft: AutopilotRaft, config: AutopilotConfig, heartbeat_timeout: float
    ) -> None:
        config.validate(heartbeat_timeout)
        self._raft = raft
        self._config = config
        self._threshold = config.contact_threshold(heartbeat_timeout)
        self._counter = self._new_counter()
        self._term: Term = 0

    async def run(self) -> None:
        """Look and act until cancelled, or until the server is shut down."""
        while self._raft.state is not State.SHUTDOWN:
            try:
                await self._step()
            except NotLeaderError:
                pass  # the next leader's autopilot goes on
            except (RaftHttpError, TimeoutError) as error:
                _log.info("%s: autopilot tries again: %s", self._raft.id, error or "timed out")
            except Exception:  # noqa: BLE001 - the task's top: the next look may fare better
                _log.exception("%s: autopilot failed", self._raft.id)
            await asyncio.sleep(self._config.update_interval)

    def health(self) -> ClusterHealth | None:
        """How the cluster is; None where this server does not lead."""
        if self._raft.state is not State.LEADER:
            return None
        servers = self._servers()
        voters = [server for server in servers if server.suffrage is Suffrage.VOTER]
        healthy = sum(server.healthy for server in voters)
        tolerance = max(0, healthy - (len(voters) // 2 + 1))
        return ClusterHealth(all(server.healthy for server in servers), tolerance, servers)

    async def wait_stable(self, server_id: ServerID, *, timeout: float) -> None:
        """Leader only: wait until a member has been healthy for the stabilization time.

        Raises:
            TimedOutError, NotLeaderError: definite; nothing was changed.
        """
        wanted = self._config.server_stabilization_time
        if not wanted:
            return
        deadline = self._now() + timeout
        while True:
            if self._raft.state is not State.LEADER:
                raise UnknownLeaderError(f"server {self._raft.id} leads no more")
            server = next((s for s in self._servers() if s.id == server_id), None)
            if server is None or is_stable(self._config, server):
                return
            if self._now() >= deadline:
                raise TimedOutError(
                    f"{server_id} is a member without a vote, healthy for"
                    f" {server.stable_for or 0:.1f} of {wanted:g} s",
                    outcome=Outcome.DEFINITE,
                )
            await asyncio.sleep(min(self._config.update_interval, deadline - self._now()))

    # -- inside

    async def _step(self) -> None:
        if self._raft.state is not State.LEADER:
            return
        self._counter_of_term().look(self._now(), self._sights())
        if (decision := decide(self._config, self._servers())) is None:
            return
        latest = self._raft.get_configuration()
        if self._raft.commit_index < latest.index:
            return  # one change after the other
        async with asyncio.timeout(_CHANGE_SECONDS):
            if isinstance(decision, Promote):
                await self._promote(decision.server, latest.index)
            else:
                await self._remove(decision.server, latest.index)

    async def _promote(self, server: ServerHealth, prev_index: Index) -> None:
        await self._raft.wait_caught_up(server.id, timeout=_CHANGE_SECONDS)
        await self._raft.add_voter(server.id, server.address, prev_index, timeout=_CHANGE_SECONDS)
        _log.info("%s: autopilot gave %s its vote", self._raft.id, server.id)

    async def _remove(self, server: ServerHealth, prev_index: Index) -> None:
        """Remove it, unless it gives a sign of life, or this server does not lead any more."""
        if await self._answers(server):
            _log.warning("%s: %s is silent, but answers when asked", self._raft.id, server.id)
            return
        await self._raft.verify_leader(timeout=_CHANGE_SECONDS)
        still = decide(self._config, self._servers())
        if not isinstance(still, Remove) or still.server.id != server.id:
            return  # something was heard meanwhile
        _log.warning(
            "%s: autopilot removes %s, silent for %.0f s",
            self._raft.id,
            server.id,
            server.silent_for,
        )
        await self._raft.remove_server(server.id, prev_index, timeout=_CHANGE_SECONDS)

    async def _answers(self, server: ServerHealth) -> bool:
        try:
            found = await self._raft.identify(server.address, timeout=_LAST_TRY_SECONDS)
        except RemoteError:
            return True  # it refuses, as one does that has lost its state
        except TransportError:
            return False
        return found == server.id

    def _servers(self) -> tuple[ServerHealth, ...]:
        return self._counter_of_term().health(self._now(), self._sights())

    def _counter_of_term(self) -> HealthCounter:
        """A leader begins anew: what it counted in an earlier term may be long ago."""
        if self._term != self._raft.current_term:
            self._term = self._raft.current_term
            self._counter = self._new_counter()
        return self._counter

    def _new_counter(self) -> HealthCounter:
        config = self._config
        return HealthCounter(self._threshold, config.max_trailing_logs, config.update_interval)

    def _sights(self) -> list[Sight]:
        raft, now = self._raft, self._now()
        configuration: Configuration = raft.get_configuration().configuration
        sights: list[Sight] = []
        for server in configuration:
            if server.id == raft.id:
                sights.append(Sight(*server, now, True, 0))
                continue
            progress = raft.peer_progress(server.id)
            if progress is None:
                progress = PeerProgress(0, now)
            lag = max(0, raft.commit_index - progress.match_index)
            heard = progress.match_index > 0
            sights.append(Sight(*server, progress.contact, heard, lag))
        return sights

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
