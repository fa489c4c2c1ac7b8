"""Relays in front of a cluster's members: they record what passes, and cut it when told to.

Knows connections, bytes and the head of an HTTP request; what the bytes mean is `wirecheck.py`'s.
An event loop in a thread of its own serves all relays, so that tests stay ordinary functions.

    with Taps(tmp_path / "tapped") as taps:
        relay = taps.front("g1", public, private)   # members dial `public`, g1 listens on `private`
        relay.cut(after=1 << 20, times=2)
    relay.block()                                   # nobody reaches g1; it reaches the others
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar

_CHUNK_BYTES: Final = 1 << 18
_UPGRADE: Final = b"\r\nupgrade: raft\r\n"
_SECONDS: Final = 30.0
_T = TypeVar("_T")


@dataclass(slots=True)
class Recording:
    """One upgraded connection, as far as it got.

    Attributes:
        target: id of the member that was dialled.
        there, back: what the dialler and what the target sent, from the HTTP head on.
        there_before_back: bytes the dialler had sent when the first byte came back.
    """

    target: str
    there: bytes
    back: bytes
    there_before_back: int


class Relay:
    """In front of one member.

    Attributes:
        cuts: how many connections were cut because of `cut`.
        passed_max: most bytes that one connection carried to the member.
    """

    def __init__(
        self, name: str, target: str, directory: Path | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.name = name
        self._loop = loop
        self.cuts = 0
        self.passed_max = 0
        self._target = target
        self._directory = directory
        self._cut_after = 0
        self._cuts_left = 0
        self._count = 0
        self._blocked = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._files: list[tuple[Path, Path]] = []
        self._before_back: dict[Path, int] = {}

    def cut(self, after: int, times: int) -> None:
        """End the next `times` connections that carry more than `after` bytes to the member."""
        self._cut_after, self._cuts_left = after, times

    def block(self) -> None:
        """End all connections to the member, and every new one, until `unblock`."""
        self._blocked = True
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def unblock(self) -> None:
        """Let connections pass again."""
        self._blocked = False

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, to its end."""
        task = asyncio.current_task()
        assert task is not None, "a connection's callback runs in a task"
        self.tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._blocked:
                await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            # Only the end of `Taps` cancels; asyncio's callback on this task fails on one that was.
            task.uncancel()
        finally:
            self.tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        head = await reader.readuntil(b"\r\n\r\n")
        back_reader, back_writer = await asyncio.open_connection(
            host, int(port), limit=_CHUNK_BYTES
        )
        recorded = _UPGRADE in head.lower() and self._directory is not None
        there, back = self._open() if recorded else (None, None)
        try:
            if there is not None:
                there.write(head)
            back_writer.write(head)
            copies = [
                asyncio.create_task(self._there(reader, back_writer, there)),
                asyncio.create_task(self._back(back_reader, writer, back, there)),
            ]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        finally:
            back_writer.transport.abort()
            for file in (there, back):
                if file is not None:
                    file.close()

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        assert self._directory is not None, "only where something is recorded"
        self._count += 1
        names = [self._directory / f"{self.name}-{self._count}.{way}" for way in ("there", "back")]
        self._files.append((names[0], names[1]))
        return names[0].open("wb", buffering=0), names[1].open("wb", buffering=0)

    async def _there(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: BinaryIO | None
    ) -> None:
        passed = 0
        while data := await reader.read(_CHUNK_BYTES):
            if to is not None:
                to.write(data)
            writer.write(data)
            passed += len(data)
            self.passed_max = max(self.passed_max, passed)
            if self._cuts_left > 0 and passed > self._cut_after:
                self._cuts_left -= 1
                self.cuts += 1
                return
            await writer.drain()

    async def _back(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to: BinaryIO | None,
        there: BinaryIO | None,
    ) -> None:
        first = True
        while data := await reader.read(_CHUNK_BYTES):
            if to is not None and there is not None:
                if first:
                    self._before_back[Path(there.name)] = there.tell()
                to.write(data)
            first = False
            writer.write(data)
            await writer.drain()

    def recordings(self) -> list[Recording]:
        """All upgraded connections so far."""
        return [
            Recording(
                self.name,
                there.read_bytes(),
                back.read_bytes(),
                self._before_back.get(there, 0),
            )
            for there, back in list(self._files)
        ]


class Taps:
    """Relays, all at once at the end gone.

    Args:
        directory: for what is recorded; None records nothing.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.relays: dict[str, Relay] = {}
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_SECONDS)
            self._loop.close()

    def front(self, name: str, public: str, private: str) -> Relay:
        """A relay at `public`, `HOST:PORT`, to a member that listens at `private`."""
        relay = self.relays[name] = Relay(name, private, self._directory, self._loop)
        self._run(self._listen(relay, public))
        return relay

    def recordings(self) -> list[Recording]:
        """Of all relays."""
        return [found for relay in self.relays.values() for found in relay.recordings()]

    async def _listen(self, relay: Relay, public: str) -> None:
        host, _, port = public.rpartition(":")
        self._servers.append(
            await asyncio.start_server(relay.accept, host, int(port), limit=_CHUNK_BYTES)
        )

    async def _close(self) -> None:
        for relay in self.relays.values():
            relay.block()
        # A closed server drops what it has accepted and not handed over, and Python warns of the
        # socket. Members dial on: so each accepts no more first, and hands over.
        for listening in (listening for server in self._servers for listening in server.sockets):
            self._loop.remove_reader(listening)
        tasks = [task for relay in self.relays.values() for task in relay.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest)
        await asyncio.sleep(0)  # transports that were aborted close their sockets
        for server in self._servers:
            server.close()
            with suppress(OSError):
                await server.wait_closed()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)
