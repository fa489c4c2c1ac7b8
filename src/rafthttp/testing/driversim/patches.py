"""Everything of a process that is not the event loop's: clocks, chance and threads, for one run.

The one place where the simulator reaches into modules. What is replaced is listed in `determined`;
all of it is put back at the end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any, Final
from unittest import mock

from rafthttp.http.client import ClientConnection
from rafthttp.http.membership import ChangeRequest
from rafthttp.http.stream import TransportStream
from rafthttp.raft.raft import Raft
from rafthttp.raft.runtime import threads
from rafthttp.raft.runtime.worker import Worker
from rafthttp.testing.driversim.jobs import VirtualJobs
from rafthttp.testing.driversim.loop import VirtualLoop

# Objects that the product keeps in sets: closed in the order of their addresses, which no seed
# decides.
_IN_SETS: Final = (ChangeRequest, ClientConnection, TransportStream, Worker)
# 2023-11-14, in nanoseconds.
_EPOCH_NS: Final = 1_700_000_000_000_000_000


@contextlib.contextmanager
def determined(loop: VirtualLoop, rng: random.Random) -> Generator[None]:
    """Clocks show virtual time, chance comes from `rng`, threads are jobs in virtual time.

    1. `time.time`, `time_ns`, `monotonic`, `monotonic_ns`, `clock_gettime_ns`,
       `perf_counter`; and the default of
       `Raft.start(wall_ns=)`, which is bound when the module is read.
    2. The functions of `random` are seeded, `random.SystemRandom` makes seeded generators;
       `os.urandom` (also for `uuid4`), `secrets.token_bytes`.
    3. `threads.Jobs`; the loop itself does `asyncio.to_thread`.
    4. `__hash__` of what the product keeps in sets.
    5. The garbage collector rests: its time would be seen in `__del__`.
    """
    state = random.getstate()
    defaults: Any = Raft.start.__func__.__kwdefaults__  # type: ignore[attr-defined] # a classmethod
    collects = gc.isenabled()
    numbers = count(1)

    def seeded() -> random.Random:
        return random.Random(rng.getrandbits(64))  # noqa: S311 - histories must repeat

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context
        for name, function in _clocks(loop).items():
            patch(mock.patch.object(time, name, function))
        patch(mock.patch.dict(defaults, wall_ns=lambda: time.time_ns()))  # noqa: PLW0108 - looked up
        random.seed(rng.getrandbits(64))
        patch(mock.patch.object(random, "SystemRandom", seeded))
        patch(mock.patch.object(os, "urandom", rng.randbytes))
        patch(mock.patch.object(secrets, "token_bytes", rng.randbytes))
        patch(mock.patch.object(threads, "Jobs", VirtualJobs))
        for kind in _IN_SETS:
            patch(mock.patch.object(kind, "__init__", _numbered(kind.__init__, numbers)))
            patch(mock.patch.object(kind, "__hash__", _number_of))
        gc.disable()
        try:
            yield
        finally:
            random.setstate(state)
            if collects:
                gc.enable()


def _numbered(init: Any, numbers: Iterator[int]) -> Callable[..., None]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        self._simulated = next(numbers)
        init(self, *args, **kwargs)

    return wrapped


def _number_of(self: Any) -> int:
    number: int = self._simulated
    return number


def _clocks(loop: VirtualLoop) -> dict[str, Callable[..., float]]:
    def clock_gettime_ns(_: int) -> int:
        return int(loop.time() * 1e9)

    return {
        "monotonic": loop.time,
        "perf_counter": loop.time,
        "monotonic_ns": lambda: int(loop.time() * 1e9),
        "clock_gettime_ns": clock_gettime_ns,
        "time": lambda: _EPOCH_NS / 1e9 + loop.time(),
        "time_ns": lambda: _EPOCH_NS + int(loop.time() * 1e9),
    }
