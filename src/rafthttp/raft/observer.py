"""Observations of a server, for whoever wants to be told (hashicorp/raft's `observer.go`).

An observer is told without being waited for: one that is slow loses the oldest observations, and
counts them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import Leader, Server, ServerID, State, Term

# Enough for an observer that looks once a second at a cluster whose every peer fails.
_SIZE: Final = 256


@dataclass(frozen=True, slots=True)
class RaftState:
    """The role changed."""

    state: State
    term: Term


@dataclass(frozen=True, slots=True)
class LeaderObservation:
    """Who leads changed; None while nobody is known to."""

    leader: Leader | None


@dataclass(frozen=True, slots=True)
class PeerObservation:
    """A member came, changed (address or suffrage), or went."""

    peer: Server
    removed: bool


@dataclass(frozen=True, slots=True)
class FailedHeartbeatObservation:
    """Leader only: a peer's heartbeat stream failed. Once a failure, until it answers again."""

    peer: ServerID


@dataclass(frozen=True, slots=True)
class ResumedHeartbeatObservation:
    """Leader only: a peer whose heartbeats had failed answers again."""

    peer: ServerID


Observation: TypeAlias = (
    RaftState
    | LeaderObservation
    | PeerObservation
    | FailedHeartbeatObservation
    | ResumedHeartbeatObservation
)


class Observer:
    """An async iterator of observations, from `Raft.register_observer` to its end.

    Args:
        kinds: which observations; all where none is named.
        size: how many may wait to be read before the oldest are dropped.

    Attributes:
        dropped: how many were lost because nobody read in time.

    Raises:
        ConfigError: `size` is below 1.
    """

    def __init__(self, *kinds: type[Observation], size: int = _SIZE) -> None:
        if size < 1:
            raise ConfigError(f"size is {size}; it must be at least 1")
        self.dropped = 0
        self._kinds = kinds
        self._size = size
        self._waiting: deque[Observation] = deque()
        self._news = asyncio.Event()
        self._ended = False

    def tell(self, observation: Observation) -> None:
        """Keep an observation for the reader; never blocks."""
        if self._ended or (self._kinds and not isinstance(observation, self._kinds)):
            return
        if len(self._waiting) >= self._size:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(observation)
        self._news.set()

    def end(self) -> None:
        """No more will come: the iterator ends behind what waits. Idempotent."""
        self._ended = True
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Observation]:
        return self

    async def __anext__(self) -> Observation:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()
