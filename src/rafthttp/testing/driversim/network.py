"""The network below the event loop: connections as TCP has them, with what goes wrong in TCP.

Bytes of one direction arrive in order, in pieces cut anywhere, late, or never; what a partition
holds back arrives after it, as it was sent again. Nothing is lost but by the end of a connection.
Knows asyncio's transports and protocols, and no raft.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, cast

from rafthttp.testing.driversim.loop import Life, VirtualLoop

# Time between two tries of a connection that nobody answers.
_RETRY_SECONDS: Final = 0.02
_RESET: Final = b""
_Chunk = bytes | None
"""Bytes; None for the end of the direction; empty for a reset."""


class VirtualTransport(asyncio.Transport):
    """One end of a connection, as asyncio sees it, with its kernel's half of the connection."""

    def __init__(self, network: VirtualNetwork, life: Life, local: str, remote: str) -> None:
        super().__init__()
        self.network = network
        self.life = life
        self.local, self.remote = local, remote
        self.peer: VirtualTransport | None = None
        self.waits = False
        """Whether its head of the line is held back by the network."""
        self.is_mute = False
        """Whether what it sends goes nowhere, for good: a middlebox forgot it."""
        self._protocol: asyncio.BaseProtocol | None = None
        self._outgoing: deque[bytes] = deque()  # asyncio's buffer
        self._outgoing_bytes = 0
        self._flight: deque[tuple[float, _Chunk]] = deque()  # sent, and not arrived
        self._flight_bytes = 0
        self._last_arrival = 0.0
        self._timer: Any = None
        self._inbox: deque[_Chunk] = deque()  # arrived, and not read
        self._inbox_bytes = 0
        self._reading = True
        self._scheduled = False
        self._closing = False
        self._lost = False
        self._writing_paused = False
        self._high, self._low = 64 << 10, 16 << 10

    # -- asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The peer's address; there is no socket."""
        if name == "peername":
            return (self.remote, 50_000)
        if name == "sockname":
            return (self.local, 50_000)
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio's."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio's."""
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self._closing

    def is_reading(self) -> bool:
        """As asyncio's."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """As asyncio's."""
        self._reading = False

    def resume_reading(self) -> None:
        """As asyncio's."""
        self._reading = True
        self._schedule()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""
        self._high = (64 << 10) if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """As asyncio's."""
        return self._outgoing_bytes

    def can_write_eof(self) -> bool:
        """Nobody needs half a connection here."""
        return False

    def write(self, data: Any) -> None:
        """As asyncio's."""
        if self._lost or not data:
            return
        self._outgoing.append(bytes(data))
        self._outgoing_bytes += len(data)
        self._send()
        if self._outgoing_bytes > self._high and not self._writing_paused:
            self._writing_paused = True
            self.get_protocol().pause_writing()

    def close(self) -> None:
        """As asyncio's: what is buffered goes out first."""
        if not self._closing:
            self._closing = True
            self._reading = False
            if not self._outgoing:
                self._soon(self._finish, None)

    def abort(self) -> None:
        """As asyncio's."""
        self._force(None)

    # -- inside the process

    def _soon(self, callback: Callable[..., None], *args: object) -> None:
        self.network.loop.call_soon(callback, *args, context=self.life.context)

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """Both ends exist."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._schedule()

    def _schedule(self) -> None:
        if (
            not self._scheduled
            and self._protocol is not None
            and self._inbox
            and not self._lost
            and (self._reading or self._inbox[-1] == _RESET)
        ):
            self._scheduled = True
            self._soon(self._read)

    def _read(self) -> None:
        self._scheduled = False
        if self._lost or not self._inbox:
            return
        if self._inbox[-1] == _RESET:  # what was not read yet is gone
            self._force(ConnectionResetError(104, "Connection reset by peer"))
            return
        if not self._reading:
            return
        chunk = self._inbox.popleft()
        protocol = cast("asyncio.Protocol", self.get_protocol())
        if chunk is None:
            if not protocol.eof_received():
                self.close()
            return
        self._inbox_bytes -= len(chunk)
        if self.peer is not None:
            self.peer._send()
        protocol.data_received(chunk)
        self._schedule()

    def _force(self, error: Exception | None) -> None:
        if self._lost or (self._closing and error is None and not self._outgoing):
            return
        self._closing = True
        self._reading = False
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._launch(_RESET)
        self._soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._inbox.clear()
        self._inbox_bytes = 0
        self._launch(None)
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def die(self, *, silent: bool) -> None:
        """The process is gone; with `silent` its machine too, and says nothing."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._outgoing.clear()
        self._inbox.clear()
        self._inbox_bytes = 0
        if silent:
            self._flight.clear()
        else:
            self._launch(_RESET)

    # -- the way to the peer

    def _send(self) -> None:
        """Give the kernel what fits."""
        network, peer = self.network, self.peer
        if peer is None:
            return
        while self._outgoing:
            room = network.window_bytes - self._flight_bytes - peer._inbox_bytes
            if room <= 0:
                break
            data = self._outgoing.popleft()
            piece = data[: min(network.cut(len(data)), room)]
            if len(piece) < len(data):
                self._outgoing.appendleft(data[len(piece) :])
            self._outgoing_bytes -= len(piece)
            self._launch(piece)
        if self._writing_paused and self._outgoing_bytes <= self._low and not self._lost:
            self._writing_paused = False
            self._soon(self._drained)
        if self._closing and not self._outgoing and not self._lost:
            self._soon(self._finish, None)

    def _drained(self) -> None:
        if not self._lost and not self._writing_paused:
            self.get_protocol().resume_writing()

    def _launch(self, chunk: _Chunk) -> None:
        if self._flight and self._flight[-1][1] in (None, _RESET):
            return
        network = self.network
        latency = network.latency(self.local, self.remote)
        arrival = max(self._last_arrival, network.loop.now + latency)
        self._last_arrival = arrival
        self._flight.append((arrival, chunk))
        self._flight_bytes += len(chunk or b"")
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._flight and not self.waits:
            loop = self.network.loop
            self._timer = loop.at(max(self._flight[0][0], loop.now), self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if not self._flight:
            return
        network = self.network
        if network.is_held(self.local, self.remote):
            network.hold(self)
            return
        _, chunk = self._flight.popleft()
        self._flight_bytes -= len(chunk or b"")
        peer = self.peer
        assert peer is not None
        network.trace(self, chunk)
        if self.is_mute:
            self._arm()
            return
        if peer._lost:
            if chunk and network.answers(peer.local):  # nobody has this connection any more
                peer._launch(_RESET)
        elif peer._closing:
            if chunk == _RESET:
                peer._inbox.append(chunk)
                peer._schedule()
        else:
            peer._inbox.append(chunk)
            peer._inbox_bytes += len(chunk or b"")
            peer._schedule()
        self._send()
        self._arm()

    def release(self) -> None:
        """The network lets it through again."""
        self.waits = False
        self._arm()

    def break_off(self, keep: float) -> None:
        """The connection is reset from outside: a part of what is in flight still arrives."""
        kept = int(len(self._flight) * keep)
        while len(self._flight) > kept:
            self._flight_bytes -= len(self._flight.pop()[1] or b"")
        self._launch(_RESET)

    @property
    def is_lost(self) -> bool:
        """Whether the process has done with it."""
        return self._lost


class VirtualServer(asyncio.AbstractServer):
    """A port that is listened on."""

    def __init__(self, network: VirtualNetwork, life: Life, factory: Any, key: str) -> None:
        self.life = life
        self.factory = factory
        self.sockets: tuple[()] = ()
        self._network = network
        self._key = key

    def close(self) -> None:
        """As asyncio's."""
        if self._network.servers.get(self._key) is self:
            del self._network.servers[self._key]

    async def wait_closed(self) -> None:
        """As asyncio's."""

    def is_serving(self) -> bool:
        """As asyncio's."""
        return self._network.servers.get(self._key) is self


class VirtualNetwork:
    """Hosts and the ways between them. Times in virtual seconds.

    Attributes:
        window_bytes: what one direction holds outside of the sender's process: in flight, and not
            read yet.
        blocked: pairs of hosts, from and to, between which nothing comes through.
        clogged: likewise, each until a time.
        dark: hosts without power: they answer nothing, not even with a reset.
        distances: pairs of hosts, from and to, and what a piece takes at least between them.
        latency_max: a piece takes up to this, beyond the distance.
        delay_chance: it takes up to fifty times as long.
        reset_chance: a connection ends at this piece.
        refuse_chance: a dial is refused.
        cuts: how bytes are cut: `whole`, `pieces` of up to 64 bytes, or `mixed`.
        seen: how often each fault happened.
    """

    def __init__(
        self, loop: VirtualLoop, rng: random.Random, tell: Callable[[object], None]
    ) -> None:
        self.loop = loop
        self.servers: dict[str, VirtualServer] = {}
        self.ends: dict[VirtualTransport, None] = {}
        self.blocked: set[tuple[str, str]] = set()
        self.clogged: dict[tuple[str, str], float] = {}
        self.dark: set[str] = set()
        self.distances: dict[tuple[str, str], float] = {}
        self.latency_max = 0.001
        self.delay_chance = self.reset_chance = self.refuse_chance = 0.0
        self.cuts = "whole"
        self.window_bytes = 64 << 10
        self.seen: Counter[str] = Counter()
        self._rng = rng
        self._tell = tell
        self._held: dict[VirtualTransport, None] = {}
        loop.use_network(self)

    # -- what the faults ask

    def latency(self, source: str, target: str) -> float:
        """Of one piece, between two hosts."""
        seconds = self.latency_max * self._rng.random()
        if self.delay_chance and self._rng.random() < self.delay_chance:
            self.seen["delay"] += 1
            seconds *= 50 * self._rng.random()
        return self.distances.get((source, target), 0.0) + seconds

    def cut(self, size: int) -> int:
        """How much of `size` bytes goes in one piece."""
        if self.cuts == "whole" or size == 1 or (self.cuts == "mixed" and self._rng.random() < 0.7):
            return size
        self.seen["cut"] += 1
        return 1 + self._rng.randrange(min(size, 64 if self.cuts == "pieces" else size))

    def is_held(self, source: str, target: str) -> bool:
        """Whether nothing comes through that way now."""
        pair = (source, target)
        return pair in self.blocked or self.clogged.get(pair, 0.0) > self.loop.now

    def answers(self, host: str) -> bool:
        """Whether that machine runs."""
        return host not in self.dark

    def trace(self, end: VirtualTransport, chunk: _Chunk) -> None:
        """A piece arrives."""
        if chunk and self.reset_chance and self._rng.random() < self.reset_chance:
            self.seen["drop"] += 1
            self.reset(end)
        self._tell((end.local, end.remote, chunk and zlib.crc32(chunk), chunk and len(chunk)))

    # -- harm

    def reset(self, end: VirtualTransport) -> None:
        """Break one connection, somewhere in what is in flight."""
        assert end.peer is not None
        end.break_off(self._rng.random())
        end.peer.break_off(self._rng.random())

    def mute(self, end: VirtualTransport) -> None:
        """One connection is half-open for good: neither end hears of the other again."""
        assert end.peer is not None
        end.is_mute = end.peer.is_mute = True

    def live_ends(self, source: str, target: str) -> list[VirtualTransport]:
        """Dialled ends of the open connections between two hosts."""
        return [e for e in self.ends if e.local == source and e.remote == target and not e.is_lost]

    def hold(self, end: VirtualTransport) -> None:
        """It waits for the way to be free."""
        self.seen["blocked"] += 1
        end.waits = True
        self._held[end] = None
        until = self.clogged.get((end.local, end.remote), 0.0)
        if until > self.loop.now:
            self.loop.at(until, self.check)

    def check(self) -> None:
        """Ways may be free again."""
        for end in [e for e in self._held if not self.is_held(e.local, e.remote)]:
            del self._held[end]
            end.release()

    def crash(self, life: Life, *, silent: bool) -> None:
        """A process ends, with all its ends of connections."""
        for key in [key for key, server in self.servers.items() if server.life is life]:
            del self.servers[key]
        for end in [e for e in self.ends if e.life is life]:
            end.die(silent=silent)
        self._sweep()

    def _sweep(self) -> None:
        for end in [e for e in self.ends if e.is_lost and (e.peer is None or e.peer.is_lost)]:
            del self.ends[end]

    # -- what the loop asks

    def listen(self, life: Life, factory: Any, host: str, port: int) -> VirtualServer:
        """A server listens on a port."""
        key = f"{host}:{port}"
        if key in self.servers:
            raise OSError(98, f"{key} is in use")
        server: VirtualServer = cast("Any", VirtualServer)(self, life, factory, key)
        self.servers[key] = server
        return server

    async def connect(
        self, life: Life, factory: Any, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Dial; waits for as long as nobody answers."""
        key = f"{host}:{port}"
        await asyncio.sleep(self.latency(life.host, host))
        while (
            self.is_held(life.host, host) or self.is_held(host, life.host) or not self.answers(host)
        ):
            self.seen["hung_dial"] += 1
            await asyncio.sleep(_RETRY_SECONDS)
        server = self.servers.get(key)
        refused = self.refuse_chance > 0 and self._rng.random() < self.refuse_chance
        if server is None or refused:
            self.seen["refused_dial"] += 1
            raise ConnectionRefusedError(111, f"{key} refuses")
        near = VirtualTransport(self, life, life.host, host)
        far = VirtualTransport(self, server.life, host, life.host)
        near.peer, far.peer = far, near
        self.ends[near] = self.ends[far] = None
        if len(self.ends) % 32 == 0:
            self._sweep()
        self.loop.call_soon(_accept, far, server.factory, context=server.life.context)
        try:
            await asyncio.sleep(self.latency(host, life.host))
        except asyncio.CancelledError:
            near.die(silent=False)
            raise
        protocol = factory()
        near.begin(protocol)
        return near, protocol


def _accept(end: VirtualTransport, factory: Any) -> None:
    if not end.is_lost:
        end.begin(factory())
