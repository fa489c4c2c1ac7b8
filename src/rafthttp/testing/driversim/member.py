"""One simulated server: its disk, and the process that comes and goes on it.

Two kinds. `RaftMember` is a bare `Raft` over TCP; `NodeMember` a `Node` behind the own listener, so
that upgrades, authorisation, joins, forwards and both carriers run too.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from rafthttp.autopilot import AutopilotConfig
from rafthttp.http.listener import Listener
from rafthttp.node import Node
from rafthttp.raft.bootstrap import bootstrap_cluster, has_existing_state
from rafthttp.raft.config import Config
from rafthttp.raft.errors import StorageError, TransportError
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemorySnapshotStore
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.transport.tcp import TCPStreamLayer
from rafthttp.raft.types import Configuration, Log, Server, ServerAddress, ServerID, State
from rafthttp.testing.driversim.disk import Disk, DiskStore, check_whole
from rafthttp.testing.driversim.jobs import DEVICE
from rafthttp.testing.driversim.loop import Life, VirtualLoop
from rafthttp.testing.driversim.machine import Registers
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.invariants import InvariantError

_T = TypeVar("_T")
_PORT: Final = 80
# For a bare server's transport; a tenth of the default, as all timeouts here.
_TRANSPORT_SECONDS: Final = 1.0
# Until an operator has emptied a disk that was refused.
_REPLACE_SECONDS: Final = 0.05


class World(Protocol):
    """What a server is in."""

    loop: VirtualLoop
    network: VirtualNetwork
    rng: random.Random
    ballast_bytes: int

    def on_applied(self, member: Member, machine: Registers, log: Log) -> None:
        """A state machine took in a command."""
        ...

    def tell(self, what: object) -> None:
        """Something happened that belongs to the history."""
        ...


class Member(abc.ABC):
    """A server.

    Attributes:
        id: its name.
        host: its machine in the network.
        disk: what it keeps.
        life: its process; None while it is down.
        lives: how often it was started.
        raft: None until it runs.
        machine: its state machine, in this life.
        on_broken: called where a property does not hold.
    """

    def __init__(self, world: World, number: int, config: Config, disk: Disk, rate: float) -> None:
        self.id = config.local_id
        self.host = f"10.0.0.{number + 1}"
        self.address = ServerAddress(f"{self.host}:{_PORT}")
        self.config = config
        self.disk = disk
        self.life: Life | None = None
        self.lives = 0
        self.raft: Raft | None = None
        self.machine: Registers
        self.on_broken: Callable[[InvariantError], None] = lambda _: None
        self._world = world
        self._rate = rate

    def start(self) -> None:
        """Begin a process; `raft` follows."""
        assert self.life is None, "it is down"
        world = self._world
        self.lives += 1
        world.tell(("start", self.id))
        world.network.dark.discard(self.host)
        life = self.life = Life(f"{self.id}/{self.lives}", self.host, self._rate)
        life.context.run(DEVICE.set, self.disk)
        self.disk.forget()
        self.machine = Registers(
            lambda machine, log: world.on_applied(self, machine, log), world.ballast_bytes
        )
        self.spawn(self._begin(life))

    def crash(self, *, silent: bool = False) -> None:
        """The process ends at this instant; with `silent` the machine too."""
        life, self.life, self.raft = self.life, None, None
        if life is None:
            return
        world = self._world
        world.tell(("crash", self.id, silent))
        self.disk.crash()
        world.loop.kill(life)
        if silent:
            world.network.dark.add(self.host)
        world.network.crash(life, silent=silent)
        self._gone()

    def wipe(self) -> None:
        """The process ends, and its disk is lost."""
        self.crash()
        self.disk.wipe()
        self._world.tell(("wipe", self.id))

    def spawn(self, coro: Coroutine[Any, Any, _T]) -> Any:
        """Run a coroutine in the process; it is never done if that ends first."""
        assert self.life is not None, "it runs"
        return self._world.loop.create_task(coro, context=self.life.context.copy())

    @property
    def is_up(self) -> bool:
        """Whether it runs, and has begun to take part."""
        return self.raft is not None and self.raft.state is not State.SHUTDOWN

    async def _begin(self, life: Life) -> None:
        try:
            await self._open()
        except (StorageError, TransportError, OSError) as error:
            self._world.tell(("failed start", self.id, str(error)))
            if life is self.life:
                end = self._replace if self.disk.flipped else self.crash
                self._world.loop.at(self._world.loop.now, end)
            return
        if self.disk.flipped:
            said = f"flip: {self.id} began with a broken {self.disk.flipped}"
            self.on_broken(InvariantError(said))

    def _replace(self) -> None:
        """What it holds is refused: it begins anew, with nothing (S8)."""
        self.wipe()
        loop = self._world.loop
        loop.at(loop.now + _REPLACE_SECONDS, self._start_again, self.lives)

    def _start_again(self, lives: int) -> None:
        if self.life is None and self.lives == lives:
            self.start()

    # -- of each kind

    @abc.abstractmethod
    async def _open(self) -> None:
        """Begin, in the process."""

    @abc.abstractmethod
    def _gone(self) -> None:
        """The process is gone."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """End the process in good order."""

    @abc.abstractmethod
    async def apply(self, data: bytes, timeout: float) -> object:
        """A client's command."""

    @abc.abstractmethod
    async def read_index(self, timeout: float) -> object:
        """A client's read."""


class RaftMember(Member):
    """A bare `Raft` over TCP."""

    first: Configuration
    """What a server without state begins with."""

    async def _open(self) -> None:
        store = self.disk.store
        if not has_existing_state(store, store, self.disk.snapshots):
            await bootstrap_cluster(self.config, store, store, self.disk.snapshots, self.first)
        layer = await TCPStreamLayer.listen(self.host, _PORT, self.address)
        self.raft = await Raft.start(
            self.config,
            self.machine,
            store,
            store,
            self.disk.snapshots,
            NetworkTransport(layer, timeout=_TRANSPORT_SECONDS),
        )

    def _gone(self) -> None:
        pass

    async def stop(self) -> None:
        """As `Member.stop`."""
        if self.raft is not None:
            await self.raft.shutdown()

    async def apply(self, data: bytes, timeout: float) -> object:
        """As `Member`'s."""
        assert self.raft is not None
        return await self.raft.apply(data, timeout=timeout)

    async def read_index(self, timeout: float) -> object:
        """As `Member`'s."""
        assert self.raft is not None
        return await self.raft.read_index(timeout=timeout)


class _DiskNode(Node):
    """A `Node` on a simulated disk."""

    disk: Disk

    async def _open_store(self) -> DiskStore:
        check_whole(self.disk)
        return self.disk.store

    async def _open_snapshots(self) -> MemorySnapshotStore:
        return self.disk.snapshots


class NodeMember(Member):
    """A `Node` on its own port."""

    carrier = "auto"
    joins: Callable[[], list[str]]
    """URLs of the others; nobody is asked by the first server."""
    is_first = False

    def wipe(self) -> None:
        """As `Member.wipe`; it may not begin another cluster."""
        super().wipe()
        self.is_first = False

    async def _open(self) -> None:
        node = _DiskNode(
            self.id,
            self.address,
            fsm=self.machine,
            bootstrap=self.is_first,
            join=() if self.is_first else self.joins(),
            token="of-the-simulated-cluster",  # noqa: S106 - nobody else is there
            carrier=self.carrier,
            config=self.config,
            autopilot=AutopilotConfig(update_interval=0.1),
            sessions=True,
            timeout=_TRANSPORT_SECONDS,
        )
        node.disk = self.disk
        await node.start()
        assert node.handler is not None
        self.listener = Listener(node.handler, self.host, _PORT)
        await self.listener.start()
        self.node: Node | None = node
        self.raft = node.raft

    def _gone(self) -> None:
        self.node = None

    async def stop(self) -> None:
        """As `Member.stop`."""
        if self.raft is not None:
            assert self.node is not None
            await self.node.stop()
            await self.listener.close()

    async def apply(self, data: bytes, timeout: float) -> object:
        """As `Member`'s."""
        assert self.node is not None
        return await self.node.apply(data, timeout=timeout)

    async def read_index(self, timeout: float) -> object:
        """As `Member`'s."""
        assert self.node is not None
        return await self.node.read_index(timeout=timeout)


def configuration_of(members: list[Member]) -> Configuration:
    """All of them vote."""
    return Configuration(tuple(Server(m.id, m.address) for m in members))


def server_id(number: int) -> ServerID:
    """Names of servers."""
    return ServerID("abcdefg"[number])
