"""The runtime's threads in virtual time: a job is done at one instant, some time after it is given.

Takes the place of `rafthttp.raft.runtime.threads.Jobs`. How long a job takes is the disk's matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

_T = TypeVar("_T")


class Device(Protocol):
    """The disk that a process's threads wait for."""

    def busy(self) -> float:
        """Virtual seconds that the next piece of work takes."""
        ...

    def add(self, jobs: VirtualJobs[Any]) -> None:
        """Called once by each thread."""
        ...


DEVICE: ContextVar[Device] = ContextVar("DEVICE")
"""The one of the process that runs."""


class VirtualJobs(Generic[_T]):
    """As `threads.Jobs`.

    Attributes:
        waiting: what was given and is not done; a crash leaves it so.
    """

    def __init__(self, name: str, do: Callable[[list[_T]], bool], at_once_max: int = 1) -> None:
        self.name = name
        self.waiting: list[_T] = []
        self._do = do
        self._at_once_max = at_once_max
        self._taken = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._device = DEVICE.get()
        self._device.add(self)

    def put(self, job: _T) -> None:
        """Give a job."""
        self.waiting.append(job)
        if not self._taken:
            self._take()

    def is_empty(self) -> bool:
        """Whether no job waits."""
        return not self.waiting

    def under_way(self) -> Sequence[_T]:
        """All that is not done, in its order."""
        return self.waiting

    def _take(self) -> None:
        """Begin with what waits; more may come behind it meanwhile."""
        self._taken = min(len(self.waiting), self._at_once_max)
        self._loop.call_later(self._device.busy(), self._done)

    def _done(self) -> None:
        jobs = self.waiting[: self._taken]
        del self.waiting[: self._taken]
        self._taken = 0
        if self._ended:
            return
        self._ended = not self._do(jobs)
        if self.waiting and not self._taken and not self._ended:
            self._take()
