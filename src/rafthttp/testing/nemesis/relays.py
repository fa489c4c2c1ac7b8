"""A network to be cut without privileges: servers know each other by the addresses of relays.

Knows TCP, and `/proc` to tell which server dialled. What a cut direction carries is held, not lost,
and comes once the link is healed, as TCP would send it again. Clients go to the servers directly.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import eventually

_CHUNK_BYTES: Final = 1 << 16
_LISTEN: Final = "0A"  # the state in /proc/net/tcp that is none of a connection


class _Process(Protocol):
    @property
    def pid(self) -> int: ...


class Watched(Protocol):
    """A server as far as a relay knows it."""

    @property
    def process(self) -> _Process | None:
        """Its process, if it was ever started."""
        ...


class Relays:
    """A relay on the loopback interface in front of each of `size` servers.

    Without `/proc` nothing can be cut, and the servers know each other by their own addresses.
    """

    def __init__(self, size: int) -> None:
        self.can_cut = sys.platform.startswith("linux")
        ports = free_ports(2 * size)
        self._own, self._fronts = ports[:size], ports[size:]
        self._servers: list[Watched] = []
        self._cut: set[tuple[int, int]] = set()
        self._healed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        eventually(self._ready.is_set, "the relays listen")

    def watch(self, servers: Sequence[Watched]) -> None:
        """Whose connections they are."""
        self._servers = list(servers)

    def listen(self, number: int) -> str:
        """As `Network`."""
        return f"127.0.0.1:{self._own[number]}"

    def advertise(self, number: int) -> str:
        """As `Network`."""
        return f"127.0.0.1:{self._fronts[number]}" if self.can_cut else self.listen(number)

    def wrapper(self, number: int) -> list[str]:
        """As `Network`."""
        del number
        return []

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """As `Network`."""
        fresh = set(links)

        async def cut() -> None:
            self._cut |= fresh

        asyncio.run_coroutine_threadsafe(cut(), self._loop).result()

    def heal(self) -> None:
        """As `Network`."""

        async def heal() -> None:
            self._cut.clear()
            self._healed.set()
            self._healed = asyncio.Event()

        asyncio.run_coroutine_threadsafe(heal(), self._loop).result()

    def close(self) -> None:
        """As `Network`."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(30)

    # -- on the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        servers = [
            await asyncio.start_server(self._accepting(number), "127.0.0.1", port)
            for number, port in enumerate(self._fronts)
        ]
        self._ready.set()
        await self._ended.wait()
        for server in servers:
            server.close()
        await _some_passes()  # who was accepted just now becomes a task of ours
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _some_passes()  # aborted sockets are closed

    def _accepting(
        self, receiver: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None, "a connection's callback runs in a task"
            self._tasks.add(task)
            try:
                with suppress(OSError, asyncio.CancelledError):
                    await self._relay(receiver, reader, writer)
            finally:
                self._tasks.discard(task)

        return accept

    async def _relay(
        self, receiver: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        back_writer: asyncio.StreamWriter | None = None
        copying: list[asyncio.Task[None]] = []
        try:
            dialler = self._dialler(writer)
            await self._passable(dialler, receiver)
            port = self._own[receiver]
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
            copying = [
                asyncio.create_task(self._copy(dialler, receiver, reader, back_writer)),
                asyncio.create_task(self._copy(receiver, dialler, back_reader, writer)),
            ]
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in copying:
                task.cancel()
            await asyncio.gather(*copying, return_exceptions=True)
            for end in (writer, back_writer):
                if end is not None:
                    end.transport.abort()

    async def _copy(
        self,
        sender: int | None,
        receiver: int | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._passable(sender, receiver)
            writer.write(data)
            await writer.drain()

    async def _passable(self, sender: int | None, receiver: int | None) -> None:
        while (sender, receiver) in self._cut:
            await self._healed.wait()

    def _dialler(self, writer: asyncio.StreamWriter) -> int | None:
        """Which server's process has the other end; None where it is none of them."""
        port: int = writer.get_extra_info("peername")[1]
        inode = _inode_of(port)
        for number, server in enumerate(self._servers):
            process = server.process
            if inode and process is not None and _holds(process.pid, inode):
                return number
        return None


async def _some_passes() -> None:
    """As many turns of the loop as a connection's beginning or end takes, and some more."""
    for _ in range(10):
        await asyncio.sleep(0)


def _inode_of(port: int) -> str | None:
    """Of the connected socket whose near end is a loopback port."""
    near = f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}:{port:04X}"
    for row in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = row.split()
        if fields[1] == near and fields[3] != _LISTEN:
            return fields[9]
    return None


def _holds(pid: int, inode: str) -> bool:
    wanted = f"socket:[{inode}]"
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(entry.path) == wanted:
                    return True
    return False
