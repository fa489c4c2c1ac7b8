"""The clocks that a lease goes by, on machines that are suspended and loops that are late (S70)."""

from __future__ import annotations

import time

from rafthttp.raft.runtime.clock import LeaseClock, boot_ns

MS = 1_000_000
SECOND = 1000 * MS


class Machine:
    """Its clocks; reading one takes `step_ns`."""

    def __init__(self) -> None:
        self.awake = 50 * SECOND
        self.suspended = 7 * SECOND
        self.loop = self.awake
        self.step_ns = 0
        self.clock = LeaseClock(lambda: self.loop, self.awake_ns, self.elapsed_ns)

    def awake_ns(self) -> int:
        self.awake += self.step_ns
        return self.awake

    def elapsed_ns(self) -> int:
        self.awake += self.step_ns
        return self.awake + self.suspended


def test_a_suspend_before_the_start_counts_for_nothing() -> None:
    machine = Machine()
    assert machine.clock.read() == (50 * SECOND, False)
    machine.awake += SECOND
    assert machine.clock.read() == (51 * SECOND, False)


def test_a_suspend_is_told_once_and_its_time_counts() -> None:
    machine = Machine()
    machine.suspended += 3600 * SECOND
    assert machine.clock.read() == (3650 * SECOND, True)
    machine.awake += MS
    assert machine.clock.read() == (50 * SECOND + MS, False)
    machine.suspended += 2 * MS
    assert machine.clock.read() == (50 * SECOND + 3 * MS, True)


def test_an_interruption_between_two_clocks_hides_no_suspend() -> None:
    """The lease may end too early by it, never too late."""
    machine = Machine()
    machine.step_ns = 40 * MS
    machine.suspended += 20 * MS
    began = machine.awake + 20 * MS
    assert machine.clock.read().now_ns >= began
    machine.step_ns = 0
    machine.suspended += 20 * MS
    now, was_suspended = machine.clock.read()
    assert was_suspended
    assert now >= machine.awake + 20 * MS


def test_a_loop_that_is_late_makes_nobody_late() -> None:
    machine = Machine()
    machine.awake += 400 * MS
    assert machine.clock.fresh_ns() == machine.clock.read().now_ns == 50 * SECOND + 400 * MS
    machine.loop = machine.awake + MS
    assert machine.clock.fresh_ns() == machine.clock.read().now_ns == machine.loop


def test_the_clocks_of_this_machine_go_forward_together() -> None:
    clock = LeaseClock(time.monotonic_ns)
    first, second = clock.read(), clock.read()
    assert first.now_ns <= second.now_ns
    assert boot_ns() >= time.monotonic_ns() - MS
