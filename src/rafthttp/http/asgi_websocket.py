"""A raft stream over a WebSocket that an ASGI server frames.

Knows ASGI's `websocket` messages. Callbacks on the one side, awaitables on the other: two tasks
carry the bytes between them. The server keeps frames, pings, masks and the sizes it allows. Most
close a peer that answers no ping (uvicorn: after 20 s), so a stream that either side keeps paused
for longer may be cut; it is dialled again as after any other end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from rafthttp.http.handshake import RAFT_PROTOCOL, printable
from rafthttp.http.messages import CLUSTER_ID_HEADER
from rafthttp.http.stream import LINGER_SECONDS
from rafthttp.http.websocket import MESSAGE_SIZE_BYTES_MAX, RECEIVED_SIZE_BYTES_MAX
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.transport.protocols import StreamReceiver

log: Final = logging.getLogger("rafthttp.http")

HIGH_WATER_BYTES: Final = 64 << 10
LOW_WATER_BYTES: Final = 16 << 10
"""Between them `pause_writing` holds: asyncio's own defaults for a transport."""

ABORT_SECONDS: Final = 1.0
"""How long an abort waits for the server to take its close, while the peer does not read."""


class AsgiStream:
    """Implements `Stream`. Accepted when made; `run` is the application's whole life after that.

    Args:
        peer: the peer's socket address, as far as the server tells it.
        receive: ASGI's.
        send: ASGI's; it waits while the peer does not read.
        cluster_id: to tell the peer, where known.
    """

    def __init__(
        self,
        peer: str,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        cluster_id: str | None,
    ) -> None:
        self._peer = peer
        self._receive = receive
        self._send = send
        self._cluster_id = cluster_id
        self._receiver: StreamReceiver | None = None
        self._buffer: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._writing_paused = False
        self._may_read = asyncio.Event()
        self._may_write = asyncio.Event()
        self._closing = False
        self._close_code = 1000
        self._aborted = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._lost = False
        self._error: Exception | None = None

    # -- Stream

    @property
    def peer(self) -> str:
        """The peer's socket address, for messages."""
        return self._peer

    def start(self, receiver: StreamReceiver) -> None:
        """Begin delivery."""
        assert self._receiver is None, "a stream is started once"
        self._receiver = receiver
        if self._lost:
            asyncio.get_running_loop().call_soon(receiver.closed, self._error)
            return
        self._may_read.set()

    def write(self, data: bytes) -> None:
        """Send bytes; ignored once closed."""
        if self._closing or self._lost or not data:
            return
        for start in range(0, len(data), MESSAGE_SIZE_BYTES_MAX):
            self._buffer.append(data[start : start + MESSAGE_SIZE_BYTES_MAX])
        self._buffered_bytes += len(data)
        self._may_write.set()
        if self._buffered_bytes > HIGH_WATER_BYTES and not self._writing_paused:
            self._writing_paused = True
            if self._receiver is not None:
                self._receiver.pause_writing()

    def pause_reading(self) -> None:
        """Stop delivery: the server, asked for nothing, stops to read."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Go on with delivery."""
        if self._receiver is not None:
            self._may_read.set()

    def close(self) -> None:
        """Close after what is buffered has gone out, or after `LINGER_SECONDS`."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._may_write.set()
        self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.abort)

    def abort(self) -> None:
        """Close now."""
        if not self._lost:
            self._closing = True
            self._buffer.clear()
            self._aborted.set()

    # -- the application's life

    async def run(self) -> None:
        """Carry bytes until the stream has ended, then return to the server."""
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._send_all())
        receiving = loop.create_task(self._receive_all())
        aborted = loop.create_task(self._aborted.wait())
        tasks: set[asyncio.Task[Any]] = {sending, receiving, aborted}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not receiving.done():
                await _stop({sending})  # it may be in the middle of a message
                with suppress(Exception):  # an abort tells nobody what went wrong in it
                    async with asyncio.timeout(ABORT_SECONDS):
                        await self._send({"type": "websocket.close", "code": self._close_code})
        finally:
            await _stop(tasks)
            for task in (sending, receiving):
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.debug("lost the WebSocket from %s: %r", self._peer, error)
                    if not isinstance(error, OSError):  # ASGI's word for "the peer has gone"
                        self._error = self._error or PeerUnreachableError(f"lost: {error!r}")
            self.lost()

    def lost(self) -> None:
        """The connection is gone. Idempotent; called by `run`, or instead of it."""
        if self._lost:
            return
        self._lost = True
        self._buffer.clear()
        if self._linger is not None:
            self._linger.cancel()
        if self._receiver is not None:
            self._receiver.closed(self._error)

    async def _send_all(self) -> None:
        headers = (
            []
            if self._cluster_id is None
            else [(CLUSTER_ID_HEADER.lower().encode("ascii"), self._cluster_id.encode("ascii"))]
        )
        await self._send(
            {"type": "websocket.accept", "subprotocol": RAFT_PROTOCOL, "headers": headers}
        )
        while True:
            while self._buffer:
                message = self._next_message()
                await self._send({"type": "websocket.send", "bytes": message})
                self._drained(len(message))
            if self._closing:
                await self._send({"type": "websocket.close", "code": self._close_code})
                return
            self._may_write.clear()
            await self._may_write.wait()

    def _next_message(self) -> bytes:
        """As much as one message may carry; small writes of one turn travel together."""
        buffer = self._buffer
        first = buffer.popleft()
        if not buffer or len(first) + len(buffer[0]) > MESSAGE_SIZE_BYTES_MAX:
            return first
        parts, size_bytes = [first], len(first)
        while buffer and size_bytes + len(buffer[0]) <= MESSAGE_SIZE_BYTES_MAX:
            size_bytes += len(buffer[0])
            parts.append(buffer.popleft())
        return b"".join(parts)

    def _drained(self, size_bytes: int) -> None:
        self._buffered_bytes -= size_bytes
        if self._writing_paused and self._buffered_bytes < LOW_WATER_BYTES:
            self._writing_paused = False
            if self._receiver is not None:
                self._receiver.resume_writing()

    async def _receive_all(self) -> None:
        while True:
            await self._may_read.wait()
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._disconnected(message)
                return
            if not self._may_read.is_set():  # paused while it came
                await self._may_read.wait()
            if self._closing:
                continue  # until the peer answers our close
            data: bytes | None = message.get("bytes")
            if data is None:
                self._fail(1003, "a text message; the stream has binary ones only")
            elif len(data) > RECEIVED_SIZE_BYTES_MAX:
                self._fail(1009, f"a message of more than {RECEIVED_SIZE_BYTES_MAX} bytes")
            elif data:
                assert self._receiver is not None, "may_read is set by `start`"
                self._receiver.data_received(bytes(data))

    def _disconnected(self, message: MutableMapping[str, Any]) -> None:
        code: int = message.get("code", 1005)
        if code in (1002, 1003, 1007, 1009) and not self._closing:
            reason = printable(message.get("reason") or "no reason given")
            log.warning("%s broke the WebSocket protocol: %d, %s", self._peer, code, reason)
            self._error = PeerUnreachableError(f"broken WebSocket protocol: {code}, {reason}")

    def _fail(self, code: int, text: str) -> None:
        log.warning("%s broke the WebSocket protocol: %s", self._peer, text)
        self._error = PeerUnreachableError(f"broken WebSocket protocol: {text}")
        self._close_code = code
        self.abort()


async def _stop(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
