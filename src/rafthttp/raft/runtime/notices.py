"""Who is told of what happens: observers, and those who follow the leader.

Turns the driver's state into observations; never waits for anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from rafthttp.raft.core.ready import SoftState
from rafthttp.raft.observer import (
    LeaderObservation,
    Observation,
    Observer,
    PeerObservation,
    RaftState,
)
from rafthttp.raft.types import Leader, Server, ServerID, State, Term


class Notices:
    """The audience of one server.

    Args:
        servers: the members at start; only changes are told.
    """

    def __init__(self, servers: Iterable[Server]) -> None:
        self._state = State.FOLLOWER
        self._leader: Leader | None = None
        self._servers: dict[ServerID, Server] = {s.id: s for s in servers}
        self._observers: list[Observer] = []
        self._changed = asyncio.Event()
        self._ended = False

    def register(self, observer: Observer) -> None:
        """Tell it from now on."""
        if self._ended:
            observer.end()
        elif observer not in self._observers:
            self._observers.append(observer)

    def deregister(self, observer: Observer) -> None:
        """Tell it no more; its iterator ends. Idempotent."""
        if observer in self._observers:
            self._observers.remove(observer)
        observer.end()

    def observe(self, observation: Observation) -> None:
        """Tell all observers."""
        for observer in self._observers:
            observer.tell(observation)

    def soft_state(self, soft: SoftState, leader: Leader | None) -> None:
        """Role, term or leader changed."""
        if soft.state is not self._state:
            self._state = soft.state
            self.observe(RaftState(soft.state, soft.term))
        if leader != self._leader:
            self._leader = leader
            self.observe(LeaderObservation(leader))
            self._wake()

    def configuration(self, servers: Iterable[Server]) -> None:
        """The latest configuration changed."""
        seen, self._servers = self._servers, {s.id: s for s in servers}
        for server_id, server in self._servers.items():
            if seen.get(server_id) != server:
                self.observe(PeerObservation(server, removed=False))
        for server_id, server in seen.items():
            if server_id not in self._servers:
                self.observe(PeerObservation(server, removed=True))

    async def leaders(self) -> AsyncIterator[Leader | None]:
        """The leader now, then each change, to the end. A slow reader sees the newest only."""
        told: Leader | None = None
        first = True
        while not self._ended:
            if first or told != self._leader:
                first = False
                told = self._leader
                yield told
            else:
                await self._changed.wait()

    def end(self, term: Term) -> None:
        """The server is shut down: everybody's iterator ends. Idempotent."""
        if not self._ended:
            self.observe(RaftState(State.SHUTDOWN, term))
            self._ended = True
            for observer in tuple(self._observers):
                self.deregister(observer)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
