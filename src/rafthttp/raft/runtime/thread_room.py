"""Room for the disk's thread beside an event loop that never rests.

CPython takes the interpreter from a thread that does not let go of it 5 ms after another has asked,
but that one asks anew whenever it was let go of in between, as an event loop does in each pass: one
that runs callbacks of a millisecond back to back keeps the disk's thread out for seconds (0 to 35
flushes a second, single ones after 38 s), and the leader steps down for a disk that is well. A
short sleep where nothing was flushed for a while, and the loop was busy all along, lets it in
(bench/figures/busy_loop.py). A slow disk beside a loop that rests costs nothing here.

Knows numbers of writes and two clocks; no disk.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

# How often progress is looked for. A flush takes a tenth of a millisecond to some ten.
_LOOK_SECONDS: Final = 0.002
# What the thread needs to get hold of the interpreter: the kernel wakes it within some ten
# microseconds.
_SLEEP_SECONDS: Final = 50e-6
# Share of the time for which the loop's thread ran, from which on it counts as busy. Where others
# take the processor from it, the thread gets in by that.
_BUSY_SHARE: Final = 0.5
# Once kept out it will be again, as long as the loop stays busy: this many looks are helped.
_STARVED_LOOKS: Final = 8
# Without progress for so long it is the disk, whatever the loop does (S74).
_LOOKS_MAX: Final = 1000


class ThreadRoom:
    """Watches over the writes of one lane; all calls on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._given = 0
        self._done = 0
        self._seen = 0
        self._looks = 0
        self._starved = 0  # looks to go for which it counts as kept out
        self._timer: asyncio.TimerHandle | None = None
        self._wall_s = 0.0
        self._cpu_s = 0.0

    def given(self, number: int) -> None:
        """The thread was given this write."""
        self._given = number
        if self._starved:
            time.sleep(_SLEEP_SECONDS)
        if self._timer is None:
            self._watch()

    def done(self, number: int) -> None:
        """All writes up to this one are done."""
        self._done = number

    def close(self) -> None:
        """Watch no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._given = self._done

    def _watch(self) -> None:
        self._seen, self._looks = self._done, 0
        self._wall_s, self._cpu_s = time.perf_counter(), time.thread_time()
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._done >= self._given or self._looks >= _LOOKS_MAX:
            return
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        stands_still = self._done == self._seen
        is_busy = cpu_s - self._cpu_s > _BUSY_SHARE * (wall_s - self._wall_s)
        if not is_busy:
            self._starved = 0
        elif stands_still:
            self._starved = _STARVED_LOOKS
        elif self._starved:
            self._starved -= 1
        if self._starved:
            time.sleep(_SLEEP_SECONDS)
        self._looks = self._looks + 1 if stands_still else 0
        self._seen, self._wall_s, self._cpu_s = self._done, wall_s, cpu_s
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
