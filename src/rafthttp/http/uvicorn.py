"""uvicorn's protocol classes, able to hand over their socket.

Knows uvicorn 0.30 and later, httptools and h11, asyncio and uvloop. Give one of the classes to
uvicorn as `http=`; every route works as before, and the endpoint can take over a connection.

    uvicorn.Config(app, http=raft_protocol())
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rafthttp.http.asgi import EXTENSION
from rafthttp.http.handshake import RAFT_PROTOCOL
from rafthttp.http.messages import PeerCertificate, SocketAddress
from rafthttp.http.stream import TransportStream, peer_certificate, socket_peer
from rafthttp.http.websocket import WEBSOCKET

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

HELD_SIZE_BYTES_MAX: Final = 64 << 10
"""Bytes held behind an upgrade request before reading pauses; no dialer may send any."""

HEAD_SIZE_BYTES_MAX: Final = 64 << 10
"""Bytes of a request head, and of the trailer and chunk heads in a row: h11's limit in uvicorn.
httptools has none, and 140 MB of header fields took 2.9 GB and a follower's whole time."""

BODY_SECONDS_AT_STOP: Final = 0.5
"""How long a body may go on coming once the server stops. The application then sees its client go;
uvicorn would cancel it at its own timeout, which prints a traceback for each."""

HEAD_SECONDS: Final = 10.0
"""How long a client may take for a request head; uvicorn itself waits for ever."""

if TYPE_CHECKING:
    _Base = H11Protocol
else:
    _Base = object


class _Takeover(_Base):
    """Goes before a uvicorn protocol class. It relies on what both have had since 0.30.

    An upgrade request is found after its head was parsed; from then on what arrives is held, for
    the stream or, if the application answers instead, for the parser.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._application: Any = self.app
        self.app = self._run_application
        self._held: bytearray | None = None
        self._tail = b""
        self._head_timer: asyncio.TimerHandle | None = None
        self._shutting_down = False
        self._on_stop: Callable[[], object] | None = None

    async def _run_application(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[EXTENSION] = _Connection(self)
        await self._application(scope, receive, send)

    # -- the connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # theirs
        """A client is there."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        """A client is gone."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: nothing can be taken over any more."""
        self._shutting_down = True
        super().shutdown()
        if self._on_stop is not None:
            self._on_stop()
        cycle: Any = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            self.loop.call_later(BODY_SECONDS_AT_STOP, self._end_body, cycle)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, stopping behind each head."""
        if self._held is not None:
            self._held += data
            if len(self._held) > HELD_SIZE_BYTES_MAX:
                self.flow.pause_reading()
            return
        while data:
            cut = self._head_end(data)
            piece, data = data[:cut], data[cut:]
            before = self.cycle
            if self._is_too_much(len(piece)):
                self._refuse_head()
                return
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._is_too_much(0):
                self._refuse_head()
                return
            protocol = cast("asyncio.Protocol", self.transport.get_protocol())
            if protocol is not self:  # a WebSocket now
                self._stop_head_timer()
                if data:
                    protocol.data_received(data)
                return
            alone = cast("Any", before) is None or before.response_complete
            if self.cycle is not before and alone and self._asks_for_raft():
                self._held = bytearray(data)
                break
        if not self._head_is_incomplete():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)

    def on_response_complete(self) -> None:
        """The application answered; if it was an upgrade, what was held is the next request."""
        super().on_response_complete()
        if self._held is not None:
            held, self._held = bytes(self._held), None
            if held and not self.transport.is_closing():
                self.loop.call_soon(self.data_received, held)

    # -- the takeover

    def take(self, connection: _Connection, head: bytes) -> TransportStream:
        """Hand over the connection of the upgrade request that was given this extension.

        Raises:
            ConnectionError: it is gone, answered, or the server is stopping.
        """
        cycle: Any = self.cycle
        if (
            self._held is None
            or cycle is None
            or cycle.scope.get("extensions", {}).get(EXTENSION) is not connection
            or cycle.response_started
            or self._shutting_down
            or self.transport.is_closing()
        ):
            raise ConnectionResetError("the connection cannot be taken over any more")
        transport, connections, leftover = self.transport, self.connections, bytes(self._held)
        self._unset_keepalive_if_required()
        # To uvicorn the client has gone: it forgets the connection, and what the application or its
        # middleware still sends goes nowhere. With an error given it leaves the transport open.
        self.connection_lost(ConnectionResetError("taken over"))
        transport.write(head)
        stream = TransportStream.adopt(transport, leftover)
        shim = _Shim(stream)
        # uvicorn closes, and waits for, what is in this set before the lifespan's shutdown.
        known = cast("set[_Shim]", connections)
        known.add(shim)
        stream.add_lost_callback(lambda: known.discard(shim))
        return stream

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call back when the server stops, or at once when it does already."""
        if self._shutting_down:
            callback()
        self._on_stop = callback  # of the request under way; there is one at a time

    def _asks_for_raft(self) -> bool:
        if self.scope["method"] != "GET":
            return False
        wanted = {RAFT_PROTOCOL.encode("ascii")}
        if self.ws_protocol_class is None:  # otherwise uvicorn frames WebSockets itself
            wanted.add(WEBSOCKET.encode("ascii"))
        found = False
        for name, value in self.headers:
            if name == b"upgrade":
                tokens = value.lower().split(b",")
                found = found or not wanted.isdisjoint(token.strip() for token in tokens)
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                return False  # what follows is a body, and the answer a refusal
        return found

    def _unsupported_upgrade_warning(self) -> None:
        if not self._asks_for_raft():
            super()._unsupported_upgrade_warning()

    # -- heads

    def _head_end(self, data: bytes) -> int:
        """How many bytes to feed at once: up to the end of a head, or all of a body."""
        cycle: Any = self.cycle
        if cycle is not None and cycle.more_body:
            self._tail = b""
            return len(data)
        joined = self._tail + data
        end = joined.find(b"\r\n\r\n")
        if end < 0:
            self._tail = joined[-3:]
            return len(data)
        cut = end + 4 - len(self._tail)
        self._tail = b""
        return cut

    def _head_is_incomplete(self) -> bool:
        raise NotImplementedError

    def _is_too_much(self, size: int) -> bool:
        """Whether, with `size` bytes more, the parser holds too much of a head. h11 sees to it."""
        del size
        return False

    def _refuse_head(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
                b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
                b"the request head is too long\n"
            )
        self.transport.close()

    def _end_body(self, cycle: Any) -> None:
        if self.cycle is cycle and cycle.more_body:
            self.transport.close()

    def _head_overdue(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class RaftH11Protocol(_Takeover, H11Protocol):
    """uvicorn's h11 protocol, able to hand over its socket."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what is malformed; uvicorn would raise into the event loop where it cannot.

        After a HEAD there is no room for its sentence, and behind an answer under way for none of
        it.
        """
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def _head_is_incomplete(self) -> bool:
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])


class _Connection:
    """What `scope["extensions"]` tells the endpoint; implements `asgi.Connection`.

    It does not refer to the scope that holds it: each request would leave a cycle behind, and the
    garbage collector's rounds over those took a fifth of a busy service's time.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: _Takeover) -> None:
        self._protocol = protocol

    @property
    def client(self) -> SocketAddress | None:
        """The socket peer, as the transport knows it; no header can rewrite it."""
        return socket_peer(self._protocol.transport)

    @property
    def certificate(self) -> PeerCertificate | None:
        """The verified TLS client certificate."""
        return peer_certificate(self._protocol.transport)

    def take(self, head: bytes) -> TransportStream:
        """Write `head` and hand over the connection; ConnectionError if it is gone."""
        return self._protocol.take(self, head)

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call back when the server stops; it waits for what is unanswered."""
        self._protocol.on_stop(callback)


class _Shim:
    """Stands for a stream in uvicorn's set of connections."""

    def __init__(self, stream: TransportStream) -> None:
        self._stream = stream

    def shutdown(self) -> None:
        """The server stops."""
        self._stream.close()


def raft_protocol() -> type[asyncio.Protocol]:
    """The protocol class to give uvicorn as `http=`: httptools where it is installed, else h11."""
    if importlib.util.find_spec("httptools") is None:
        return RaftH11Protocol
    from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol

    return RaftHttpToolsProtocol
