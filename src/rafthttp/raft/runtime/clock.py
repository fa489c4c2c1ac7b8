"""The clocks that a lease goes by; both only ever go forward.

A loop's clock may be that of its last pass (uvloop's is), and the monotonic one stands still while
the whole machine is suspended. Whoever promises by the first promises too little time, and whoever
reads by the second may read after the lease has ended elsewhere (S70). Knows clocks only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

# Between two clocks that are read one after the other the process may be interrupted; no suspend is
# as short.
_SUSPENDED_NS: Final = 1_000_000


class LeaseTime(NamedTuple):
    """What time it is for a lease.

    Attributes:
        now_ns: on the loop's clock, plus for how long the machine was suspended since the last
            reading that said so.
        was_suspended: whether it was. Then no answer counts to what was sent before.
    """

    now_ns: int
    was_suspended: bool


def boot_ns() -> int:
    """A clock that also counts the time of a suspend; where there is none, the monotonic one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


class LeaseClock:
    """Reads the clocks at the moment of the call.

    Args:
        loop_ns: the clock of every input.
        awake_ns: stands still during a suspend.
        elapsed_ns: does not.
    """

    def __init__(
        self,
        loop_ns: Callable[[], int],
        awake_ns: Callable[[], int] = lambda: time.monotonic_ns(),  # noqa: PLW0108 - looked up at each call: a simulation has its own
        elapsed_ns: Callable[[], int] = boot_ns,
    ) -> None:
        self._loop_ns = loop_ns
        self._awake_ns = awake_ns
        self._elapsed_ns = elapsed_ns
        self._suspended_ns = self._least_suspended_ns()

    def fresh_ns(self) -> int:
        """The loop's clock, or the time of this call where that is later."""
        return max(self._loop_ns(), self._awake_ns())

    def read(self) -> LeaseTime:
        """For a read by lease: never earlier than it is."""
        awake = self._awake_ns()
        # Read behind `awake`: what lies between counts as a suspend, not the other way round.
        suspended = max(0, self._elapsed_ns() - awake - self._suspended_ns)
        if suspended > _SUSPENDED_NS:
            self._suspended_ns = self._least_suspended_ns()
        return LeaseTime(
            max(self._loop_ns(), awake) + suspended, was_suspended=suspended > _SUSPENDED_NS
        )

    def _least_suspended_ns(self) -> int:
        elapsed = self._elapsed_ns()
        return elapsed - self._awake_ns()
