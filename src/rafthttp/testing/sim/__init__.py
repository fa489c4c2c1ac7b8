"""A simulator of the consensus core: a virtual world with everything that can go wrong in it.

    from rafthttp.testing.sim import Faults, simulate_core

    simulate_core(4711)                                 # swarm: the seed picks the faults
    simulate_core(4711, Faults(crash_rate=5, drop_chance=0.05))

One seed is one history, on every machine and under every `PYTHONHASHSEED`. The servers' real core
runs on a simulated network, disk and clock (`Faults` lists what may happen). First harm is done,
with the invariants of `rafthttp.testing.invariants` asked after every step; then all faults end,
and the cluster must be whole again within a bound, every acknowledged command kept, and what the
clients saw linearizable. A failure is an `AssertionError` that names the property.
"""

from rafthttp.testing.many import Failure
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.runs import (
    Report,
    shrink_seed,
    simulate_core,
    simulate_many,
    simulate_seeds,
)
from rafthttp.testing.sim.schedule import EVENTS, Outcome, Schedule, Shrunk, shrink_schedule

__all__ = [
    "EVENTS",
    "Failure",
    "Faults",
    "Outcome",
    "Report",
    "Schedule",
    "Shrunk",
    "shrink_schedule",
    "shrink_seed",
    "simulate_core",
    "simulate_many",
    "simulate_seeds",
]
