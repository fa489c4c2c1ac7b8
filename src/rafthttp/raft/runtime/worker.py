"""A thread for one job that waits for a disk or the application: a persist, install or restore.

One thread a job, so that none waits for another that hangs, nor for the log's disk lane. Snapshots
are rare: a thread costs less than the first read of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

from rafthttp.raft.runtime import threads

_T = TypeVar("_T")
_log = logging.getLogger("rafthttp.raft.snapshots")

# How long `Workers.close` waits for calls that hang; as the disk lane's.
_CLOSE_TIMEOUT_S: Final = 5.0

# glibc gives the end of its heap back as soon as a chunk of a snapshot there is freed, and the next
# chunk has each of its pages cleared by the kernel anew: of 256 MiB, 0.2 s of a follower's core. It
# keeps twice the largest block that was mapped and freed; twice this is more than is on its way.
_KEPT_SIZE_BYTES: Final = 8 << 20


class Worker:
    """Calls in the order they were given, on one daemon thread. To be ended with `finish`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the thread has nothing left to do."""
        self._finished = False
        self._jobs: threads.Jobs[Callable[[], None] | None] = threads.Jobs(name, self._do)

    async def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call it on the thread. Where the caller is cancelled, the call still runs to its end."""
        return await self.begin(function, *args)

    def begin(self, function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        """As `call`, and go on meanwhile. To be awaited, or given up with `forget`."""
        future: asyncio.Future[_T] = self._loop.create_future()

        def run() -> None:
            try:
                result = function(*args)
            except Exception as error:  # noqa: BLE001 - handed to the awaiting caller
                self._tell(_set_exception, future, error)
            else:
                self._tell(_set_result, future, result)

        self._jobs.put(run)
        return future

    def post(self, function: Callable[[], None]) -> None:
        """Call it behind everything given so far; nobody waits. A failure is logged."""

        def run() -> None:
            try:
                function()
            except Exception:  # noqa: BLE001 - a thread's top; nobody waits for it
                _log.exception("cleaning up after a snapshot failed")

        self._jobs.put(run)

    def finish(self) -> None:
        """Nothing more will come: the thread ends behind what was given. Idempotent."""
        if not self._finished:
            self._finished = True
            self._jobs.put(None)

    def _do(self, jobs: list[Callable[[], None] | None]) -> bool:
        for job in jobs:
            if job is None:
                self._tell(_set_result, self.ended, None)
                return False
            job()
        return True

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            _log.debug("the loop was closed before the thread answered")


class Workers:
    """The workers of one server: begun for a job, waited for at the end."""

    def __init__(self) -> None:
        self._live: set[Worker] = set()

    def start(self, name: str) -> Worker:
        """A new one."""
        _keep_freed_memory()
        worker = Worker(name)
        self._live.add(worker)
        worker.ended.add_done_callback(lambda _: self._live.discard(worker))
        return worker

    async def close(self) -> None:
        """Wait until all have ended. One that hangs cannot be waited for: it is left behind."""
        for worker in self._live:
            worker.finish()
        if self._live:
            waiting = [worker.ended for worker in self._live]
            _, hanging = await asyncio.wait(waiting, timeout=_CLOSE_TIMEOUT_S)
            if hanging:
                _log.error("a snapshot's thread does not come back; it is left behind")


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep some of what is freed, where it is glibc. Once: that would use it."""
    bytes(_KEPT_SIZE_BYTES // 2)  # freed at once, and no page of it touched


def forget(call: asyncio.Future[Any]) -> None:
    """Nobody waits for this call any more, nor wants to know of its failure."""
    if not call.cancel() and not call.cancelled():
        call.exception()


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        if isinstance(error, StopIteration):
            # No future takes it, as no coroutine may raise it (PEP 479).
            error = RuntimeError(f"{error!r} was raised")
        future.set_exception(error)
