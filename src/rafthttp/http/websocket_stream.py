"""A raft stream in WebSocket frames, over a connection whose socket is ours.

Knows streams and the clock of the event loop, for pings; the frames are `websocket.py`'s. It stands
between a `TransportStream` and the receiver: `Stream` to the one, `StreamReceiver` to the other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from rafthttp.http.handshake import printable
from rafthttp.http.stream import TransportStream
from rafthttp.http.websocket import PING_SECONDS, Framing
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.transport.protocols import StreamReceiver

PIECE_SIZE_BYTES_MAX: Final = 64 << 10
"""Bytes of a read that are unframed at a time. Event loops read up to 256 KiB; with as much again
for its payload, malloc gives memory back to the system and takes it anew with every read, which
costs more than everything else on a connection."""

log: Final = logging.getLogger("rafthttp.http")


class WebSocketStream:
    """Implements `Stream`.

    Args:
        stream: not started; begins behind the 101.
        is_client: whether this side dialled; it masks its frames.
        ping_seconds: how long it may send nothing before it sends a ping.
    """

    def __init__(
        self, stream: TransportStream, *, is_client: bool, ping_seconds: float = PING_SECONDS
    ) -> None:
        self._stream = stream
        self._framing = Framing(is_client=is_client)
        self._ping_seconds = ping_seconds
        self._receiver: StreamReceiver | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wrote = True
        self._writing_paused = False
        self._closing = False
        self._error: Exception | None = None

    # -- Stream

    @property
    def peer(self) -> str:
        """The peer's socket address, for messages."""
        return self._stream.peer

    def start(self, receiver: StreamReceiver) -> None:
        """Begin delivery."""
        assert self._receiver is None, "a stream is started once"
        self._receiver = receiver
        self._schedule_ping()
        self._stream.start(self)

    def write(self, data: bytes) -> None:
        """Send bytes; ignored once closed."""
        if not self._closing:
            self._wrote = True
            self._stream.write(self._framing.send(data))

    def pause_reading(self) -> None:
        """Stop delivery."""
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        """Go on with delivery."""
        self._stream.resume_reading()

    def close(self) -> None:
        """Close after what is buffered has gone out.

        The peer's close frame is not waited for: as with the raw carrier, whoever closes wants
        nothing more of the peer.
        """
        if not self._closing:
            self._closing = True
            self._stream.write(self._framing.close())
            self._stream.close()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._stream.abort()

    # -- StreamReceiver, of the connection below

    def data_received(self, data: bytes) -> None:
        """Frames, or parts of them."""
        if len(data) <= PIECE_SIZE_BYTES_MAX:
            self._take(data)
            return
        whole = memoryview(data)
        for start in range(0, len(data), PIECE_SIZE_BYTES_MAX):
            self._take(whole[start : start + PIECE_SIZE_BYTES_MAX])

    def closed(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self._receiver is not None, "nothing comes before `start`"
        self._receiver.closed(self._error or error)

    def pause_writing(self) -> None:
        """The connection's buffer is full."""
        self._writing_paused = True
        assert self._receiver is not None, "nothing comes before `start`"
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """The connection's buffer has drained."""
        self._writing_paused = False
        assert self._receiver is not None, "nothing comes before `start`"
        self._receiver.resume_writing()

    def _take(self, data: bytes | memoryview) -> None:
        if self._closing:
            return
        framing, receiver = self._framing, self._receiver
        assert receiver is not None, "nothing comes before `start`"
        payload, answer = framing.receive(data, answer_pings=not self._writing_paused)
        if answer:
            self._stream.write(answer)
        if payload:
            receiver.data_received(payload)
        if framing.ended and not self._closing:
            self._closing = True
            if framing.error is not None:
                text = printable(framing.error)
                log.warning("%s broke the WebSocket protocol: %s", self.peer, text)
                self._error = PeerUnreachableError(f"broken WebSocket protocol: {text}")
            self._stream.close()

    # -- pings

    def _schedule_ping(self) -> None:
        loop = asyncio.get_running_loop()
        # Twice in the time, so that no pause gets longer than it.
        self._timer = loop.call_later(self._ping_seconds / 2, self._ping)

    def _ping(self) -> None:
        if self._closing:
            return
        if not self._wrote and not self._writing_paused:
            self._stream.write(self._framing.ping())
        self._wrote = False
        self._schedule_ping()
