"""A TCP relay in front of one server that loses answers on purpose.

Knows bytes and whether a connection began with a forward (`PUT`); everything else passes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 1 << 16


class LossyRelay:
    """Passes bytes both ways; `lose` answers to forwards, and the connection is cut instead.

    Attributes:
        losing: how many more answers are lost.
        lost: how many were.
    """

    def __init__(self, target: str) -> None:
        self.losing = 0
        self.lost = 0
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    def lose(self, answers: int) -> None:
        """Lose the next `answers` answers to forwards: the request arrives, nothing comes back."""
        self.losing = answers

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, to its end."""
        task = asyncio.current_task()
        assert task is not None, "a connection's callback runs in a task"
        self._tasks.add(task)
        host, _, port = self._target.rpartition(":")
        try:
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        try:
            begin = await reader.read(_CHUNK_BYTES)
            back_writer.write(begin)
            is_forward = begin.startswith(b"PUT ")
            there = asyncio.create_task(_copy(reader, back_writer))
            back = asyncio.create_task(self._copy_back(back_reader, writer, is_forward=is_forward))
            try:
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copying in (there, back):
                    copying.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, back_writer):
                end.transport.abort()
                with suppress(OSError):
                    await end.wait_closed()

    async def close(self) -> None:
        """Cut every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _copy_back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_forward: bool
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if is_forward and self.losing > 0:
                self.losing -= 1
                self.lost += 1
                return
            writer.write(data)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def relayed(listener: socket.socket, target: str) -> AsyncGenerator[LossyRelay]:
    """A relay on a listening socket, to `HOST:PORT`."""
    relay = LossyRelay(target)
    server = await asyncio.start_server(relay.accept, sock=listener)
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
        await server.wait_closed()
