"""The lane to one peer: its replication stream, its heartbeat stream, its votes.

Carries out what the core decided; decides nothing. Exists only while this server leads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from rafthttp.raft.core.ready import Heartbeat, Send
from rafthttp.raft.errors import RaftHttpError
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import AppendPipeline, Transport
from rafthttp.raft.types import Index, Server, ServerID
from rafthttp.raft.wire.records import AppendEntriesResponse

# Heartbeats go out ten times a heartbeat timeout; more than this unanswered are not worth sending.
_HEARTBEATS_INFLIGHT_MAX: Final = 16
_READ_BYTES: Final = 4 << 20


class PeerEvents(Protocol):
    """What a lane tells the driver, on the event loop."""

    def on_append_response(self, send: Send, response: AppendEntriesResponse) -> None:
        """The answer to `send`."""
        ...

    def on_heartbeat_response(self, heartbeat: Heartbeat, response: AppendEntriesResponse) -> None:
        """The answer to `heartbeat`."""
        ...

    def on_append_failed(self, peer: ServerID, epoch: int) -> None:
        """The replication stream is gone; what was in flight is lost."""
        ...

    def on_heartbeat_failed(self, peer: ServerID) -> None:
        """The heartbeat stream is gone, or could not be opened."""
        ...


class PeerLane:
    """Streams to one server, opened when there is something to send."""

    def __init__(
        self,
        server: Server,
        transport: Transport,
        cache: LogCache,
        read: Callable[[Index, Index, int], Awaitable[list[bytes]]],
        events: PeerEvents,
    ) -> None:
        self.server = server
        self._transport = transport
        self._cache = cache
        self._read = read
        self._events = events
        self._append: AppendPipeline | None = None
        self._inflight: deque[Send] = deque()
        self._outbox: deque[Send] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._beat: AppendPipeline | None = None
        self._beats: deque[Heartbeat] = deque()
        self._loop = asyncio.get_running_loop()
        self.epoch = 0
        self._closed = False

    def send(self, send: Send) -> None:
        """Send one AppendEntries, in order behind those before it."""
        self.epoch = send.epoch
        if self._reading is not None:
            self._outbox.append(send)
        elif self._cache.holds(send.prev_index + 1):
            self._send(send, self._cache.get(send.prev_index + 1, send.last))
        else:
            self._outbox.append(send)
            self._reading = self._loop.create_task(self._send_from_disk())

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Send a heartbeat, unless too many are unanswered; a stalled stream ends by itself."""
        if len(self._beats) >= _HEARTBEATS_INFLIGHT_MAX:
            return
        if self._beat is None:
            self._beat = self._transport.pipeline(
                self.server, self._on_beat_response, self._on_beat_closed
            )
        self._beats.append(heartbeat)
        self._beat.send(AppendFrame(heartbeat.term, 0, 0, [], 0))

    def close(self) -> None:
        """Close both streams. Idempotent; no event follows."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
        for pipeline in (self._append, self._beat):
            if pipeline is not None:
                pipeline.close()
        self._append = self._beat = None
        self._inflight.clear()
        self._outbox.clear()
        self._beats.clear()

    def _send(self, send: Send, records: list[bytes]) -> None:
        if self._append is None:
            self._append = self._transport.pipeline(
                self.server, self._on_append_response, self._on_append_closed
            )
        self._inflight.append(send)
        self._append.send(
            AppendFrame(send.term, send.prev_index, send.prev_term, records, send.leader_commit)
        )

    async def _send_from_disk(self) -> None:
        try:
            while self._outbox:
                send = self._outbox[0]
                first = send.prev_index + 1
                records: list[bytes] = []
                while first <= send.last:
                    if self._cache.holds(first):
                        records += self._cache.get(first, send.last)
                        break
                    upto = min(send.last, self._cache.first - 1)
                    part = await self._read(first, upto, _READ_BYTES)
                    records += part
                    first += len(part)
                self._outbox.popleft()
                self._send(send, records)
        except (RaftHttpError, IndexError):
            # Unreadable, or compacted away meanwhile: the core looks again where the peer stands.
            self._outbox.clear()
            if not self._closed:
                self._events.on_append_failed(self.server.id, self.epoch)
        finally:
            if self._reading is asyncio.current_task():
                self._reading = None

    def _on_append_response(self, response: AppendEntriesResponse) -> None:
        self._events.on_append_response(self._inflight.popleft(), response)

    def _on_append_closed(self, error: Exception) -> None:
        del error
        self._append = None
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._inflight.clear()
        self._outbox.clear()
        # Also when nothing was lost: a probe redials at once, so that the follower sees its leader
        # again before it campaigns (decision 7).
        if not self._closed:
            self._events.on_append_failed(self.server.id, self.epoch)

    def _on_beat_response(self, response: AppendEntriesResponse) -> None:
        self._events.on_heartbeat_response(self._beats.popleft(), response)

    def _on_beat_closed(self, error: Exception) -> None:
        del error
        self._beat = None
        self._beats.clear()
        if not self._closed:
            self._events.on_heartbeat_failed(self.server.id)
