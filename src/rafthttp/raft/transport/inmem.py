"""`InmemTransport`: servers of one process, connected without sockets (inmem_transport.go).

The same code as `NetworkTransport`, bytes and all, over memory: what works here has crossed the
wire format.
"""

from __future__ import annotations

from rafthttp.raft.transport.memory import InmemNetwork, MemoryStreamLayer
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.types import ServerAddress
from rafthttp.raft.wire.limits import DEFAULT_LIMITS, WireLimits


class InmemTransport(NetworkTransport):
    """A `Transport` in an `InmemNetwork`.

    Args:
        network: connects it with the others; `disconnect` and `partition` are there.
        address: its address in the network.
    """

    def __init__(
        self,
        network: InmemNetwork,
        address: ServerAddress,
        max_pool: int = 3,
        timeout: float = 10.0,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(MemoryStreamLayer(network, address), max_pool, timeout, limits)
