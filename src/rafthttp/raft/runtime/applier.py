"""The lane to the state machine: committed entries in order, each once.

Runs on the event loop in slices, so that a long replay lets heartbeats through (S75). A single
`FSM.apply` call is the application's and cannot be cut.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from rafthttp.raft.errors import RaftHttpError
from rafthttp.raft.fsm import FSM
from rafthttp.raft.runtime.applying import apply_entries, configuration_store
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.runtime.proposals import Pending, Proposal
from rafthttp.raft.types import Index, Log, LogType
from rafthttp.raft.wire.entries import decode_records

# Entries handed to the state machine at a time, and how long a slice may take before the loop gets
# its turn: well below a heartbeat interval (100 ms), far above the cost of a switch.
_SLICE_ENTRIES: Final = 1024
_SLICE_SECONDS: Final = 0.01
_READ_BYTES: Final = 4 << 20


class Applier:
    """Applies committed entries and answers who waits for them.

    Args:
        read: reads records `first..last` (possibly fewer, at least one) from disk.
        on_failed: told once when the state machine or the disk makes it impossible to go on.
    """

    def __init__(
        self,
        fsm: FSM,
        cache: LogCache,
        pending: Pending,
        applied: Index,
        read: Callable[[Index, Index, int], Awaitable[list[bytes]]],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self.applied: Index = applied
        self._target: Index = applied
        self._fsm = fsm
        self._configurations = configuration_store(fsm)
        self._cache = cache
        self._pending = pending
        self._read = read
        self._on_failed = on_failed
        self._task: asyncio.Task[None] | None = None
        self._slice: asyncio.Handle | None = None
        self._waiters: list[tuple[Index, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._closed = False
        self._paused = False

    def advance(self, to: Index) -> None:
        """Everything up to `to` is committed."""
        if to > self._target:
            self._target = to
            if self._slice is None and self._task is None and not self._paused:
                self._run()

    @property
    def waits(self) -> bool:
        """Whether the next entries wait for what may be slow, or hang: the disk, or a restore."""
        return self._task is not None or self._paused

    def pause(self) -> None:
        """Apply nothing until `resume`: the whole state is being replaced."""
        self._paused = True
        if self._slice is not None:
            self._slice.cancel()
            self._slice = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def resume(self, applied: Index) -> None:
        """The state machine holds everything up to `applied`; go on behind it."""
        self._paused = False
        self.applied = applied
        self._target = max(self._target, applied)
        self._tell_waiters()
        if not self._closed:
            self._run()

    async def wait(self, index: Index) -> None:
        """Wait until `index` is applied; cancelled with the server."""
        if self.applied >= index:
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (index, next(self._count), future))
        await future

    def close(self, error: RaftHttpError) -> None:
        """Stop; who waits gets `error`."""
        self._closed = True
        if self._slice is not None:
            self._slice.cancel()
        if self._task is not None:
            self._task.cancel()
        for _, _, future in self._waiters:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()

    def _run(self) -> None:
        """Apply what the cache holds, for one slice of time; come back for the rest."""
        self._slice = None
        ends = time.perf_counter() + _SLICE_SECONDS
        try:
            while self.applied < self._target and not self._closed:
                first = self.applied + 1
                if not self._cache.holds(first):
                    self._task = asyncio.get_running_loop().create_task(self._replay())
                    return
                last = min(self._target, self.applied + _SLICE_ENTRIES)
                self._apply(self._cache.take_logs(first, last))
                if time.perf_counter() > ends and self.applied < self._target:
                    self._slice = asyncio.get_running_loop().call_soon(self._run)
                    return
        except Exception as error:  # noqa: BLE001 - reported: a replica that skips an entry lies
            self._on_failed(error)

    async def _replay(self) -> None:
        """Apply from disk what the cache does not reach (after a restart)."""
        try:
            while self.applied < self._target and not self._cache.holds(self.applied + 1):
                last = min(self._target, self._cache.first - 1)
                records = await self._read(self.applied + 1, last, _READ_BYTES)
                for at in range(0, len(records), _SLICE_ENTRIES):
                    self._apply(decode_records(records[at : at + _SLICE_ENTRIES]))
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - reported: the server cannot go on
            self._on_failed(error)
        finally:
            if self._task is asyncio.current_task():
                self._task = None
        if not self._closed and not self._paused:
            self._run()

    def _apply(self, logs: Sequence[Log]) -> None:
        results = apply_entries(self._fsm, self._configurations, logs)
        self.applied += len(logs)
        waiting = self._pending.applied(self.applied)
        if waiting:
            self._answer(logs, results, waiting)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        while self._waiters and self._waiters[0][0] <= self.applied:
            future = heapq.heappop(self._waiters)[2]
            if not future.done():
                future.set_result(None)

    def _answer(
        self, logs: Sequence[Log], results: Sequence[Any], waiting: Sequence[Proposal | None]
    ) -> None:
        if len(results) != len(logs):  # other entries stand between the commands
            answers = iter(results)
            results = [next(answers) if log.type is LogType.COMMAND else None for log in logs]
        skip = len(logs) - len(waiting)
        if skip:
            logs, results = logs[skip:], results[skip:]
        for log, answer, proposal in zip(logs, results, waiting, strict=True):
            if proposal is None or proposal.future.done():
                continue
            if not isinstance(answer, Exception):
                proposal.future.set_result((log.index, answer))
            elif isinstance(answer, StopIteration):
                # No future takes it, as no coroutine may raise it (PEP 479).
                failure = RuntimeError(f"the state machine raised {answer!r}")
                failure.__cause__ = answer
                proposal.future.set_exception(failure)
            else:
                proposal.future.set_exception(answer)
