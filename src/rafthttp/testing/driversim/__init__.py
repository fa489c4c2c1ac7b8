"""A simulator of whole servers: the real driver, transport and HTTP on a virtual-time loop.

    from rafthttp.testing.driversim import simulate_driver

    simulate_driver(4711)                               # swarm: the seed picks the faults
    simulate_driver(4711, Faults(crash_rate=5), kind="node")

Everything above the event loop is the real thing: `Raft` or `Node`, the transport, the handshake,
both carriers, forwards, joins, the lanes to disk and state machine. Below it are a network as TCP
shows it, disks as a store shows them, clocks that jump and processes that die. One seed is one
history, on every machine and under every `PYTHONHASHSEED`. First harm is done, with the invariants
of `rafthttp.testing.invariants` asked after every turn of every server; then all faults end, the
cluster must be whole within a bound, and every server must stop without leaving a task behind.

Faults are those of `rafthttp.testing.sim`, at the level of streams and files:

- `drop_chance`: TCP loses nothing. A connection breaks at a piece, a tenth as often, and a dial is
  refused. `reset_rate` breaks some as well, and makes some half-open for good.
- `crash_rate`: a process dies; a third as often its machine, without a word to its peers. Of its
  writes under way a random prefix is there.
- `torn_write_chance`: then some of them and not all, for sure; each is there whole or not at all,
  as a store's transaction.
- `eio_rate`, `enospc_rate`: the store is poisoned; half of those writes are there all the same.
- `snapshot_failure_chance`: writing a snapshot fails: at its begin, on its way, or at its end.
- `flip_rate`, `wipe_rate`: of a `Node` only, for a bare `Raft` cannot be released (ADR 9).

Not done are `duplicate_chance` (TCP delivers nothing twice) and `go_followers`, `go_crash_rate`,
`go_campaigns` (real members in Go are in `tests/interop`).
"""

from rafthttp.testing.driversim.loop import DeadlockError, LivelockError, VirtualLoop, virtual_loop
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.driversim.runs import (
    DriverReport,
    ShrunkDriver,
    shrink_driver_seed,
    simulate_driver,
    simulate_driver_many,
    simulate_driver_seeds,
)
from rafthttp.testing.sim.faults import Faults

__all__ = [
    "DeadlockError",
    "DriverReport",
    "Faults",
    "LivelockError",
    "ShrunkDriver",
    "VirtualLoop",
    "VirtualNetwork",
    "shrink_driver_seed",
    "simulate_driver",
    "simulate_driver_many",
    "simulate_driver_seeds",
    "virtual_loop",
]
