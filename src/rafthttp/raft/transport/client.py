"""This server's side of the streams it dialed: one-shot RPCs, and snapshots.

Knows one stream at a time: requests out, answers in, matched in order. Which stream to use, and
when to dial, is `network.py`'s; a pipeline has its own receiver in `pipeline.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rafthttp.raft.errors import PeerUnreachableError, ProtocolError, TransportError
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import ServerAddress
from rafthttp.raft.wire.limits import WireLimits
from rafthttp.raft.wire.stream import Answer, ResponseDecoder

_log = logging.getLogger("rafthttp.transport")


class ClientStream:
    """A dialed stream whose answers go to `on_answer`, in order; `on_lost` comes once, at its end.

    Args:
        stream: not started yet; this object becomes its receiver.
        address: the server dialed, for messages.
        limits: caps on an answer.
        on_answer: may close the stream.
        on_lost: why the stream ended; also after `abort`.
    """

    def __init__(
        self,
        stream: Stream,
        address: ServerAddress,
        limits: WireLimits,
        on_answer: Callable[[Answer], None],
        on_lost: Callable[[TransportError], None],
    ) -> None:
        self.address = address
        self.is_closed = False
        self.write_paused = False
        self._stream = stream
        self._decoder = ResponseDecoder(limits)
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._error: TransportError | None = None
        self._drained: asyncio.Future[None] | None = None
        self.on_writable: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to receive; the owner is ready to hear that the stream has ended already."""
        self._stream.start(self)

    def request(self, rpc: int, frame: bytes) -> None:
        """Send one request; its answer follows those of the requests before it."""
        self._decoder.expect(rpc)
        self._stream.write(frame)

    def write(self, data: bytes) -> None:
        """Send bytes that belong to the last request (a snapshot's body)."""
        self._stream.write(data)

    async def drain(self) -> None:
        """Wait until the write buffer is below its mark, or the stream is closed."""
        while self.write_paused and not self.is_closed:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def abort(self) -> None:
        """Close at once. Idempotent; `on_lost` follows from the event loop."""
        self._stream.abort()

    def data_received(self, data: bytes) -> None:
        """Hand out the answers these bytes complete (`StreamReceiver`)."""
        if self._error is not None:
            return
        try:
            self._decoder.feed(data)
            while not self.is_closed and (answer := self._decoder.next()) is not None:
                self._on_answer(answer)
        except ProtocolError as error:
            self._error = error
            _log.warning(
                "closing the stream to %s (%s): %s", self.address, self._stream.peer, error
            )
            self._stream.abort()
        except Exception as unforeseen:  # noqa: BLE001 - a receiver must not raise; the caller hears
            self._error = PeerUnreachableError(f"the handler of an answer failed: {unforeseen!r}")
            _log.exception(
                "closing the stream to %s: the handler of an answer failed", self.address
            )
            self._stream.abort()

    def closed(self, error: Exception | None) -> None:
        """The stream ended (`StreamReceiver`)."""
        self.is_closed = True
        self._decoder.close()
        self._wake()
        if self._error is None:
            why = "closed" if error is None else f"broke: {error}"
            self._error = PeerUnreachableError(f"the stream to {self.address} {why}")
            self._error.__cause__ = error
        self._on_lost(self._error)

    def pause_writing(self) -> None:
        """The write buffer is over its mark (`StreamReceiver`)."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The write buffer has drained (`StreamReceiver`)."""
        self.write_paused = False
        self._wake()
        if self.on_writable is not None:
            self.on_writable()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


class CallStream:
    """A dialed stream for one RPC after another, each awaited before the next.

    Args:
        on_closed: called once when the stream has ended, busy or idle.
    """

    def __init__(
        self,
        stream: Stream,
        address: ServerAddress,
        limits: WireLimits,
        on_closed: Callable[[CallStream], None],
    ) -> None:
        self.address = address
        self._on_closed = on_closed
        self._waiting: asyncio.Future[Answer] | None = None
        self._lost: TransportError | None = None
        self._stream = ClientStream(stream, address, limits, self._answered, self._ended)

    def start(self) -> None:
        """Begin to receive; the owner is ready to hear that the stream has ended already."""
        self._stream.start()

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended."""
        return self._lost is not None

    def begin(self, rpc: int, frame: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future is its answer, or fails when the stream ends."""
        assert self._waiting is None, "one request at a time"
        self._waiting = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            self._waiting.set_exception(self._lost)
        else:
            self._stream.request(rpc, frame)
        return self._waiting

    async def call(self, rpc: int, frame: bytes) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            TransportError: the stream ended first, or the answer was garbage.
        """
        answer = await self.begin(rpc, frame)
        self._waiting = None
        return answer

    async def send(self, data: bytes) -> None:
        """Send bytes behind the request, waiting for the peer to take them."""
        self._stream.write(data)
        if self._stream.write_paused:
            await self._stream.drain()

    def abort(self) -> None:
        """Close at once. Idempotent."""
        self._stream.abort()

    def _answered(self, answer: Answer) -> None:
        # The decoder refuses answers to no request, so somebody waits, or was cancelled.
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def _ended(self, error: TransportError) -> None:
        self._lost = error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self._on_closed(self)
