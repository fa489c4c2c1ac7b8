"""The threads of the runtime: each takes the jobs it is given, in order, several at a time.

The one place where the runtime leaves the event loop. A simulation of a whole cluster puts jobs in
virtual time in its place (`rafthttp.testing.driversim`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Jobs(Generic[_T]):
    """A daemon thread, from its first job to the one that ends it.

    Unbounded by itself: who gives the jobs bounds them.

    Args:
        name: of the thread.
        do: does some jobs, on the thread; False ends it.
        at_once_max: most jobs for one call of `do`.

    Attributes:
        put: gives a job; from any thread, never waits.
        is_empty: whether no job waits.
    """

    def __init__(self, name: str, do: Callable[[list[_T]], bool], at_once_max: int = 1) -> None:
        self._queue: queue.SimpleQueue[_T] = queue.SimpleQueue()
        self._do = do
        self._at_once_max = at_once_max
        self.put: Callable[[_T], None] = self._queue.put
        self.is_empty: Callable[[], bool] = self._queue.empty
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        more = True
        while more:
            jobs = [self._queue.get()]
            while len(jobs) < self._at_once_max and not self._queue.empty():
                jobs.append(self._queue.get())  # does not wait: nobody else takes any
            more = self._do(jobs)
