"""How the members of a cluster are, as their leader sees it: contact, lag, and for how long.

Knows numbers and times, which it is given; no clock, no server, and nothing of what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rafthttp.raft.types import ServerAddress, ServerID, Suffrage


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """How one member is, as its leader sees it.

    Attributes:
        healthy: it answers, and does not lag.
        last_contact: seconds since it was heard; None if this leader has not heard it yet.
        lag: entries it is behind.
        stable_for: seconds since it became healthy; None while it is not.
        silent_for: seconds of silence that count: while this leader was heard by a quorum.
    """

    id: ServerID
    address: ServerAddress
    suffrage: Suffrage
    healthy: bool
    last_contact: float | None
    lag: int
    stable_for: float | None
    silent_for: float


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """How a cluster is, as its leader sees it.

    Attributes:
        healthy: every member is.
        failure_tolerance: how many healthy voters may be lost without losing the quorum.
        servers: every member, in the configuration's order.
    """

    healthy: bool
    failure_tolerance: int
    servers: tuple[ServerHealth, ...]


class Sight(NamedTuple):
    """One member, as the leader's server has it now.

    Attributes:
        contact: when it was last heard, on the event loop's clock.
        heard: whether it was, under this leader.
    """

    id: ServerID
    address: ServerAddress
    suffrage: Suffrage
    contact: float
    heard: bool
    lag: int


@dataclass(slots=True)
class _Count:
    contact: float
    silent: float = 0.0
    stable_since: float | None = None


class HealthCounter:
    """Turns looks at the members into how long they have been well, or silent.

    Silence counts only over an interval in which a quorum was heard and which had its usual length:
    a leader that was paused or cut off blames nobody for what it could not hear.

    Args:
        last_contact_threshold: seconds without an answer after which a server is not healthy.
        max_trailing_logs: entries by which a healthy server may lag.
        interval: seconds between two looks; twice that is not usual.
    """

    def __init__(
        self, last_contact_threshold: float, max_trailing_logs: int, interval: float
    ) -> None:
        self._threshold = last_contact_threshold
        self._lag_max = max_trailing_logs
        self._interval_max = 2 * interval
        self._counts: dict[ServerID, _Count] = {}
        self._looked_at: float | None = None

    def look(self, now: float, sights: Sequence[Sight]) -> None:
        """Count the time since the last look; those who are members no more are forgotten."""
        last, self._looked_at = self._looked_at, now
        elapsed = 0.0 if last is None else now - last
        if elapsed > self._interval_max or not self._has_quorum(last, sights):
            elapsed = 0.0
        counts: dict[ServerID, _Count] = {}
        for sight in sights:
            count = counts[sight.id] = self._counts.get(sight.id) or _Count(sight.contact)
            if sight.contact > count.contact:
                count.contact, count.silent = sight.contact, 0.0
            else:
                count.silent += elapsed
            if not self._is_healthy(now, sight):
                count.stable_since = None
            elif count.stable_since is None:
                count.stable_since = now
        self._counts = counts

    def health(self, now: float, sights: Sequence[Sight]) -> tuple[ServerHealth, ...]:
        """How the members are now, with what was counted up to the last look."""
        return tuple(self._health(now, sight) for sight in sights)

    def _health(self, now: float, sight: Sight) -> ServerHealth:
        count = self._counts.get(sight.id) or _Count(sight.contact)
        healthy = self._is_healthy(now, sight)
        since = count.stable_since
        return ServerHealth(
            sight.id,
            sight.address,
            sight.suffrage,
            healthy,
            max(0.0, now - sight.contact) if sight.heard else None,
            sight.lag,
            None if since is None or not healthy else max(0.0, now - since),
            0.0 if sight.contact > count.contact else count.silent,
        )

    def _is_healthy(self, now: float, sight: Sight) -> bool:
        recent = now - sight.contact <= self._threshold
        return sight.heard and recent and sight.lag <= self._lag_max

    def _has_quorum(self, since: float | None, sights: Sequence[Sight]) -> bool:
        voters = [sight for sight in sights if sight.suffrage is Suffrage.VOTER]
        heard = sum(since is not None and sight.contact > since for sight in voters)
        return heard > len(voters) // 2
