"""Streams that carry much, and a web application that writes or pauses: `…testing.pumps:app`.

Knows streams, a `Handler` and ASGI; no Raft. The first byte of a stream tells the application
whether it is to write (`w`) or to pause its reading until it is asked for `/resume`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from rafthttp.http.asgi import Receive, Scope, Send
from rafthttp.http.handler import Handler
from rafthttp.raft.errors import PeerUnreachableError
from rafthttp.raft.transport.protocols import Stream

PIECE_BYTES: Final = 64 << 10
TOTAL_BYTES: Final = 64 << 20


def pieces() -> Iterator[bytes]:
    """What a pump writes: `TOTAL_BYTES`, no piece like another."""
    for number in range(TOTAL_BYTES // PIECE_BYTES):
        yield number.to_bytes(4, "big") * (PIECE_BYTES // 4)


def whole_sum() -> str:
    """The SHA-256 of all of it."""
    whole = hashlib.sha256()
    for piece in pieces():
        whole.update(piece)
    return whole.hexdigest()


class Pump:
    """Receives a stream: keeps a sum of what comes, and writes while the stream lets it.

    Attributes:
        read_bytes: how much has come.
        written_bytes: how much it has written.
        ended: whether the stream has.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.read_bytes = self.written_bytes = 0
        self.ended = False
        self._sum = hashlib.sha256()
        self._left: Iterator[bytes] = iter(())
        self._may_write = True
        stream.start(self)

    @property
    def read_sum(self) -> str:
        """The SHA-256 of what has come."""
        return self._sum.hexdigest()

    def write_all(self) -> None:
        """Begin to write `pieces`."""
        self._left = pieces()
        self._go_on()

    def _go_on(self) -> None:
        while self._may_write and (piece := next(self._left, b"")):
            self.stream.write(piece)
            self.written_bytes += len(piece)

    def data_received(self, data: bytes) -> None:
        """See `StreamReceiver`."""
        self.read_bytes += len(data)
        self._sum.update(data)

    def closed(self, error: Exception | None) -> None:
        """See `StreamReceiver`."""
        del error
        self.ended = True

    def pause_writing(self) -> None:
        """See `StreamReceiver`."""
        self._may_write = False

    def resume_writing(self) -> None:
        """See `StreamReceiver`."""
        self._may_write = True
        self._go_on()


class _Served(Pump):
    """The application's side."""

    def data_received(self, data: bytes) -> None:
        """The first byte is an order, and counts for nothing else."""
        if self.read_bytes == 0:
            if data[:1] == b"w":
                self.write_all()
            else:
                self.stream.pause_reading()
        super().data_received(data)


_handler: Final = Handler()
_pumps: list[_Served] = []


async def _accept() -> None:
    try:
        while True:
            _pumps.append(_Served(await _handler.accept()))
    except PeerUnreachableError:
        pass  # the handler is closed


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application; any path but the endpoint's tells of the latest stream as JSON."""
    if scope["type"] == "lifespan":
        await receive()
        accepting = asyncio.create_task(_accept())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _handler.close()
        await accepting
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/raft":
        await _handler(scope, receive, send)
    else:
        told: dict[str, Any] = {"pid": os.getpid()}
        if _pumps:
            pump = _pumps[-1]
            if scope["path"] == "/resume":
                pump.stream.resume_reading()
            told |= {"read": pump.read_bytes, "sum": pump.read_sum, "written": pump.written_bytes}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})
