"""Linearizable reads (Raft thesis §6.4): one quorum round, or one forward, for all who ask at once.

Knows read ids and futures; the rounds are the core's, the forward is the application's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from rafthttp.raft.core.ready import ReadId
from rafthttp.raft.errors import RaftError
from rafthttp.raft.types import Index, Leader


class LeaderReads:
    """Readers on the leader. All of one turn share one read id, and so one heartbeat round.

    Args:
        ask: the core's `on_read`; called before the round is sent.
    """

    def __init__(self, ask: Callable[[ReadId], None]) -> None:
        self._ask = ask
        self._ids = itertools.count(1)
        self._readers: dict[ReadId, list[asyncio.Future[Index]]] = {}
        self._this_turn: list[asyncio.Future[Index]] | None = None

    def add(self) -> asyncio.Future[Index]:
        """A future for the confirmed index."""
        future: asyncio.Future[Index] = asyncio.get_running_loop().create_future()
        if self._this_turn is None:
            read = next(self._ids)
            self._this_turn = self._readers[read] = []
            self._ask(read)
        self._this_turn.append(future)
        return future

    def begin_turn(self) -> None:
        """Rounds of this turn may now be sent: who comes later needs the next one."""
        self._this_turn = None

    def confirmed(self, read: ReadId, index: Index) -> None:
        """A quorum answered the round of this read."""
        for future in self._readers.pop(read, ()):
            if not future.done():
                future.set_result(index)

    def aborted(self, read: ReadId, error: RaftError) -> None:
        """Leadership was lost first."""
        for future in self._readers.pop(read, ()):
            _fail(future, error)

    def close(self, error: RaftError) -> None:
        """Fail all."""
        for read in list(self._readers):
            self.aborted(read, error)


class FollowerReads:
    """Readers on a follower: one forward at a time, and who comes meanwhile shares the next.

    A reader must not share a forward that has already been sent: its index may be older than a
    write that reader has seen.

    Args:
        forward: asks the leader for a confirmed index, within a timeout in seconds.
    """

    def __init__(self, forward: Callable[[Leader, float], Awaitable[Index]]) -> None:
        self._forward = forward
        self._waiting: list[asyncio.Future[Index]] = []
        self._asking: list[asyncio.Future[Index]] = []
        self._task: asyncio.Task[None] | None = None

    async def get(self, leader: Callable[[], Leader], timeout: float) -> Index:
        """A confirmed index from the leader.

        Raises:
            RaftError: no leader, or the way to it broke; a read has no outcome to doubt.
        """
        future: asyncio.Future[Index] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(leader, timeout))
        return await future

    def close(self, error: RaftError) -> None:
        """Fail all, those too whose forward is under way; cancelled, it would blame its task."""
        for future in (*self._asking, *self._waiting):
            _fail(future, error)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, leader: Callable[[], Leader], timeout: float) -> None:
        readers = self._asking
        try:
            while self._waiting:
                readers, self._waiting = self._waiting, []
                self._asking = readers
                try:
                    index = await self._forward(leader(), timeout)
                except RaftError as error:
                    for future in readers:
                        _fail(future, error)
                else:
                    for future in readers:
                        if not future.done():
                            future.set_result(index)
        finally:
            self._task = None
            for future in readers:
                future.cancel()


def _fail(future: asyncio.Future[Index], error: RaftError) -> None:
    if not future.done():
        future.set_exception(type(error)(str(error), outcome=error.outcome, leader=error.leader))
        future.exception()  # its reader may have given up: then nobody looks
