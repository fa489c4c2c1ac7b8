"""AppendEntries to one peer on a stream of its own, many in flight, answered in order.

No task a frame: frames go out from `send`, answers come in from `data_received`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from rafthttp.raft.errors import PeerUnreachableError, RemoteError, TransportError
from rafthttp.raft.transport.client import ClientStream
from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import ServerAddress
from rafthttp.raft.wire.limits import WireLimits
from rafthttp.raft.wire.records import APPEND_ENTRIES, AppendEntriesResponse
from rafthttp.raft.wire.rpc import AppendEncoder
from rafthttp.raft.wire.stream import Answer

_log = logging.getLogger("rafthttp.transport")


class Pipeline:
    """Implements `AppendPipeline`.

    Frames wait in a list while the stream is being dialed and while its write buffer is over the
    high-water mark. The list has no bound of its own: the core keeps at most
    `Config.inflight_appends_max` frames without an answer, and each waiting frame is one of them.

    `timeout` bounds the dial, and the time without any answer while frames are in flight; a long
    queue of large frames on a slow line is not cut as long as answers keep coming.

    Args:
        on_end: told once, after `close` as well: the pipeline is over.
    """

    def __init__(
        self,
        address: ServerAddress,
        encoder: AppendEncoder,
        limits: WireLimits,
        timeout: float,
        on_response: Callable[[AppendEntriesResponse], None],
        on_closed: Callable[[Exception], None],
        on_end: Callable[[Pipeline], None],
    ) -> None:
        self._address = address
        self._encoder = encoder
        self._limits = limits
        self._timeout = timeout
        self._on_response = on_response
        self._on_closed = on_closed
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[AppendFrame] = deque()
        self._stream: ClientStream | None = None
        self._inflight = 0
        self._progress = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._over = False

    def open(self, dial: Callable[[], Awaitable[Stream]]) -> asyncio.Task[None]:
        """Start the dial; the caller owns the task."""
        self._dialing = self._loop.create_task(self._open(dial))
        return self._dialing

    def send(self, frame: AppendFrame) -> None:
        """Send a frame, or queue it; ignored once closed (`AppendPipeline`)."""
        if self._over:
            return
        stream = self._stream
        if stream is None or stream.write_paused or self._waiting:
            self._waiting.append(frame)
        else:
            self._write(stream, frame)

    def close(self) -> None:
        """Close the stream (`AppendPipeline`)."""
        if not self._over:
            self._end()

    def fail(self, error: TransportError) -> None:
        """Close the stream and tell the caller why, once."""
        if not self._over:
            self._end()
            self._on_closed(error)

    async def _open(self, dial: Callable[[], Awaitable[Stream]]) -> None:
        try:
            stream = await dial()
        except TransportError as error:
            self.fail(error)
            return
        except Exception as unforeseen:  # noqa: BLE001 - a task's top; the caller is told
            _log.exception("dialing %s failed in an unforeseen way", self._address)
            self.fail(PeerUnreachableError(f"cannot dial {self._address}: {unforeseen!r}"))
            return
        if self._over:
            stream.abort()
            return
        self._stream = ClientStream(stream, self._address, self._limits, self._answered, self.fail)
        self._stream.on_writable = self._flush
        self._stream.start()
        self._flush()

    def _flush(self) -> None:
        stream = self._stream
        while self._waiting and stream is not None and not stream.write_paused and not self._over:
            self._write(stream, self._waiting.popleft())

    def _write(self, stream: ClientStream, frame: AppendFrame) -> None:
        if not self._inflight:
            self._progress = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout, self._check)
        self._inflight += 1
        stream.request(APPEND_ENTRIES, self._encoder.encode(*frame))

    def _answered(self, answer: Answer) -> None:
        if self._over:
            return
        self._inflight -= 1
        self._progress = self._loop.time()
        if answer.error:
            self.fail(RemoteError(answer.error))
        else:
            self._on_response(cast("AppendEntriesResponse", answer.response))

    def _check(self) -> None:
        self._timer = None
        if not self._inflight:
            return
        left = self._progress + self._timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            text = f"{self._address} has not answered for {self._timeout:g} s"
            self.fail(PeerUnreachableError(text))

    def _end(self) -> None:
        self._over = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.abort()
        elif self._dialing is not None and self._dialing is not asyncio.current_task():
            self._dialing.cancel()
        self._on_end(self)
