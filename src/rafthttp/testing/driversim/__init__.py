"""A simulator of whole servers: the real driver, transport and HTTP on a virtual-time loop.

    from rafthttp.testing.driversim import simulate_driver

    simulate_driver(4711)                               # swarm: the seed picks the faults
    simulate_driver(4711, Faults(crash_rate=5), kind="node")

Everything above the event loop is the real thing: `Raft` or `Node`, the transport, the handshake,
both carriers, forwards, joins, the lanes to disk and state machine. Below it are a network as TCP
shows it, disks as a store shows them, clocks that jump and processes that die. Faults are those of
`rafthttp.testing.sim`, at the level of streams and files. One seed is one history, on every machine
and under every `PYTHONHASHSEED`. First harm is done; then all faults end, the cluster must be whole
within a bound, and every server must stop without leaving a task behind.
"""

from rafthttp.testing.driversim.loop import DeadlockError, LivelockError, VirtualLoop, virtual_loop
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.driversim.run import DriverReport, simulate_driver, simulate_driver_seeds
from rafthttp.testing.sim.faults import Faults

__all__ = [
    "DeadlockError",
    "DriverReport",
    "Faults",
    "LivelockError",
    "VirtualLoop",
    "VirtualNetwork",
    "simulate_driver",
    "simulate_driver_seeds",
    "virtual_loop",
]
