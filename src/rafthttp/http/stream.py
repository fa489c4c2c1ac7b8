"""A byte stream over one asyncio transport, plain or TLS, on any event loop.

Knows asyncio transports, and no HTTP. Once started, a chunk goes from the event loop straight into
the receiver: not one Python frame of ours lies between.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from rafthttp.raft.transport.protocols import StreamReceiver

BACKLOG_SIZE_BYTES_MAX: Final = 256 << 10
"""Bytes held before `start`; reading pauses above. A dialer may not speak before it has read the
101, so an honest peer sends one RPC here; the bound is a few socket reads of 64 KiB."""

LINGER_SECONDS: Final = 10.0
"""How long `close` lets buffered bytes drain towards a peer that does not read."""


def socket_peer(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Host and port of the socket's other end; None for a socket that has none."""
    name: Any = transport.get_extra_info("peername")
    if not isinstance(name, (tuple, list)):
        return None
    parts = cast("tuple[Any, ...]", name)
    return (str(parts[0]), int(parts[1])) if len(parts) >= 2 else None


def peer_certificate(transport: asyncio.BaseTransport) -> dict[str, Any] | None:
    """The verified TLS certificate of the other end, or None."""
    ssl_object: Any = transport.get_extra_info("ssl_object")
    certificate: dict[str, Any] | None = None if ssl_object is None else ssl_object.getpeercert()
    return certificate or None


class TransportStream(asyncio.Protocol):
    """Implements `Stream`. Before `start` it is its transport's protocol and holds what arrives.

    Make one by giving the class to `create_connection`, or by `adopt` where another protocol held
    the transport before.
    """

    def __init__(self, on_connected: Callable[[TransportStream], None] | None = None) -> None:
        self._on_connected = on_connected
        self._on_lost: list[Callable[[], None]] = []
        self._transport: asyncio.Transport | None = None
        self._receiver: StreamReceiver | None = None
        self._backlog: list[bytes] = []
        self._backlog_size_bytes = 0
        self._reading_paused = False
        self._writing_paused = False
        self._lost = False
        self._error: Exception | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._peer = "unknown"

    @classmethod
    def adopt(cls, transport: asyncio.Transport, leftover: bytes) -> TransportStream:
        """Take over a transport; `leftover` came before and is delivered first."""
        stream = cls()
        stream._attach(transport)
        if leftover:
            stream.data_received(leftover)
        transport.set_protocol(stream)
        # h11-based servers pause reading at any `Upgrade`; nobody else would undo it.
        if not stream._reading_paused and not transport.is_closing():
            transport.resume_reading()
        return stream

    # -- what a carrier needs

    @property
    def transport(self) -> asyncio.Transport:
        """The transport; only for its `get_extra_info`."""
        assert self._transport is not None, "not connected"
        return self._transport

    @property
    def is_tls(self) -> bool:
        """Whether TLS lies below."""
        return self.transport.get_extra_info("ssl_object") is not None

    @property
    def is_closing(self) -> bool:
        """Whether the stream is closed, or about to be."""
        return self._lost or self.transport.is_closing()

    @property
    def client(self) -> tuple[str, int] | None:
        """Host and port of the socket's other end; None for a socket that has none."""
        return socket_peer(self.transport)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The peer's verified TLS certificate, or None."""
        return peer_certificate(self.transport)

    def add_lost_callback(self, callback: Callable[[], None]) -> None:
        """Call back when the connection is gone, before the receiver's `closed`."""
        self._on_lost.append(callback)

    def rewind(self, leftover: bytes) -> None:
        """Undo `start`: the handshake is over, and `leftover` is what came behind it."""
        self._receiver = None
        self._backlog.clear()
        self._backlog_size_bytes = 0
        if self._lost:
            if leftover:
                self._backlog.append(leftover)
            return
        if leftover:
            self.data_received(leftover)
        # A closing transport may keep its delivering protocol: only `connection_lost` comes now,
        # and that asks for the receiver of this moment.
        self.transport.set_protocol(self)

    # -- Stream

    @property
    def peer(self) -> str:
        """The peer's socket address, for messages."""
        return self._peer

    def start(self, receiver: StreamReceiver) -> None:
        """Begin delivery: the backlog at once, inside this call, then what arrives."""
        assert self._receiver is None, "a stream is started once"
        self._receiver = receiver
        backlog = b"".join(self._backlog)
        self._backlog.clear()
        self._backlog_size_bytes = 0
        if self._lost:
            if backlog:
                receiver.data_received(backlog)
            asyncio.get_running_loop().call_soon(receiver.closed, self._error)
            return
        # uvloop binds `data_received` when the protocol is set, so the receiver's own method must
        # be in place before; the backlog is delivered inside this call, before a later read.
        self.transport.set_protocol(_Delivery(self, receiver))
        if self._writing_paused:
            receiver.pause_writing()
        self.resume_reading()
        if backlog:
            receiver.data_received(backlog)

    def write(self, data: bytes) -> None:
        """Send bytes; ignored once closed."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def pause_reading(self) -> None:
        """Stop delivery."""
        if not self._reading_paused and not self.is_closing:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on with delivery."""
        if self._reading_paused:
            self._reading_paused = False
            if not self.is_closing:
                self.transport.resume_reading()

    def close(self) -> None:
        """Close after what is buffered has gone out, or after `LINGER_SECONDS`."""
        if self._transport is None or self.is_closing:
            return
        self._transport.close()
        self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None and not self._lost:
            self._transport.abort()

    # -- asyncio.Protocol, before `start`

    def _attach(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        raw: Any = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self.client
        if client is not None:
            host, port = client
            self._peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        self._attach(cast("asyncio.Transport", transport))
        if self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Hold what comes before `start`."""
        self._backlog.append(data)
        self._backlog_size_bytes += len(data)
        if self._backlog_size_bytes > BACKLOG_SIZE_BYTES_MAX:
            self.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, before or after `start`."""
        if self._lost:
            return
        self._lost = True
        self._error = exc
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        for callback in self._on_lost:
            callback()
        if self._receiver is not None:
            self._receiver.closed(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._writing_paused = False
        if self._receiver is not None:
            self._receiver.resume_writing()


class _Delivery(asyncio.BaseProtocol):
    """The transport's protocol after `start`: its `data_received` *is* the receiver's."""

    data_received: Callable[[bytes], None]

    def __init__(self, stream: TransportStream, receiver: StreamReceiver) -> None:
        self.data_received = receiver.data_received
        self._stream = stream

    def eof_received(self) -> bool:
        """Half-closed streams are of no use: the transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()
