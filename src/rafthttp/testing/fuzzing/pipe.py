"""A transport without a socket: what a server's protocol writes is kept, what it reads is given.

Knows asyncio's interface of a transport. The order of calls is that of a real one: nothing comes
while reading is paused, `connection_lost` comes once and after `close`.
"""

from __future__ import annotations

import asyncio
from typing import Any

TURNS_MAX = 200
"""Turns of the loop an input may take to come to rest, far above what any request needs."""


class Pipe(asyncio.Transport):
    """The server's end of a connection.

    Attributes:
        written: everything the server has sent.
    """

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", 8101)})
        self.written = bytearray()
        self._protocol = protocol
        self._waiting: list[bytes] = []
        self._paused = False
        self._closing = False
        self._lost = False

    # -- the client's side

    async def feed(self, pieces: list[bytes]) -> None:
        """Send pieces, one a turn of the loop or later, where the server pauses."""
        for piece in pieces:
            self._waiting.append(piece)
            self._deliver()
            await asyncio.sleep(0)
        for _ in range(TURNS_MAX):
            self._deliver()
            await asyncio.sleep(0)
            if self._closing or not self._waiting:
                break

    async def rest(self) -> None:
        """Let the server come to rest."""
        size = -1
        quiet = 0
        while quiet < 12:
            quiet = quiet + 1 if len(self.written) == size else 0
            size = len(self.written)
            await asyncio.sleep(0)

    async def hang_up(self) -> None:
        """The client is gone."""
        self._lose()
        await asyncio.sleep(0)

    # -- asyncio.Transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Whom to deliver to."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whom it delivers to."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether the server has closed."""
        return self._closing

    def close(self) -> None:
        """The server closes."""
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        """Likewise, now."""
        self.close()

    def write(self, data: Any) -> None:
        """The server sends."""
        if not self._closing:
            self.written += data

    def pause_reading(self) -> None:
        """The server wants nothing more for now."""
        self._paused = True

    def resume_reading(self) -> None:
        """It does again."""
        self._paused = False

    def is_reading(self) -> bool:
        """Whether it does."""
        return not self._paused and not self._closing

    # -- inside

    def _deliver(self) -> None:
        while self._waiting and not self._paused and not self._closing:
            protocol: Any = self._protocol
            protocol.data_received(self._waiting.pop(0))

    def _lose(self) -> None:
        if not self._lost:
            self._lost = self._closing = True
            protocol: Any = self._protocol
            protocol.connection_lost(None)
