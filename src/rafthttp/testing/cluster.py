"""`Cluster`: several real servers in one process, over memory streams that can be cut.

The counterpart of Go's `rafttest.Cluster`: real driver, wire bytes and elections; no sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from io import BytesIO
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from rafthttp.raft.bootstrap import bootstrap_cluster
from rafthttp.raft.config import Config
from rafthttp.raft.fsm import FSM, FSMSnapshot
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.types import (
    Configuration,
    Log,
    LogType,
    Server,
    ServerAddress,
    ServerID,
    State,
)


class Store(LogStore, StableStore, Protocol):
    """One object that is both stores."""


class Recorder(FSM):
    """A state machine that remembers every command; answers how many there were."""

    def __init__(self) -> None:
        self.logs: list[Log] = []

    @property
    def data(self) -> list[bytes]:
        """The commands' data, in order."""
        return [log.data for log in self.logs]

    def apply(self, log: Log) -> int:
        """Remember it."""
        self.logs.append(log)
        return len(self.logs)

    def snapshot(self) -> FSMSnapshot:
        """All data, length-prefixed."""
        return _RecorderSnapshot(self.data)

    def restore(self, source: BinaryIO) -> None:
        """Read what the snapshot wrote."""
        logs: list[Log] = []
        while head := source.read(4):
            data = source.read(int.from_bytes(head, "big"))
            logs.append(Log(len(logs) + 1, 0, LogType.COMMAND, data))
        self.logs = logs


class _RecorderSnapshot:
    def __init__(self, data: list[bytes]) -> None:
        self._data = data

    def persist(self, sink: BinaryIO) -> None:
        whole = BytesIO()
        for one in self._data:
            whole.write(len(one).to_bytes(4, "big"))
            whole.write(one)
        sink.write(whole.getvalue())

    def release(self) -> None:
        self._data = []


def _memory(server_id: ServerID) -> Store:
    del server_id
    return MemoryStore()


def _memory_snapshots(server_id: ServerID) -> SnapshotStore:
    del server_id
    return MemorySnapshotStore()


def fast_config(server_id: str) -> Config:
    """Timeouts short enough for tests, long enough for a busy machine."""
    return Config(
        local_id=ServerID(server_id),
        heartbeat_timeout=0.2,
        election_timeout=0.2,
        commit_timeout=0.01,
        leader_lease_timeout=0.2,
    )


class Cluster:
    """Servers `n1` … `nN`, bootstrapped together; an async context manager.

    Args:
        size: how many servers.
        make_fsm: one state machine a server.
        make_store: log and stable store of a server, made once and kept across `restart`.
        make_snapshots: where a server keeps snapshots, made once as its store is; in memory.
        config: settings; `local_id` is filled in.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        make_fsm: Callable[[], FSM] = Recorder,
        make_store: Callable[[ServerID], Store] | None = None,
        make_snapshots: Callable[[ServerID], SnapshotStore] | None = None,
        config: Config | None = None,
    ) -> None:
        self.network = InmemNetwork()
        self.ids = [ServerID(f"n{number}") for number in range(1, size + 1)]
        self.rafts: dict[ServerID, Raft] = {}
        self.fsms: dict[ServerID, FSM] = {}
        self.stores: dict[ServerID, Store] = {}
        self.snapshots: dict[ServerID, SnapshotStore] = {}
        self._make_snapshots = make_snapshots or _memory_snapshots
        self._make_fsm = make_fsm
        self._make_store = make_store or _memory
        self._config = config or fast_config("any")

    @staticmethod
    def address(server_id: ServerID) -> ServerAddress:
        """Where a server is in the network."""
        return ServerAddress(f"{server_id}:1")

    async def __aenter__(self) -> Self:
        configuration = Configuration(tuple(Server(i, self.address(i)) for i in self.ids))
        for server_id in self.ids:
            store = self.stores[server_id] = self._make_store(server_id)
            await bootstrap_cluster(self.config(server_id), store, store, None, configuration)
        for server_id in self.ids:
            await self.start(server_id)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(raft.shutdown() for raft in self.rafts.values()))

    def config(self, server_id: ServerID) -> Config:
        """The settings of one server."""
        return replace(self._config, local_id=server_id)

    async def start(self, server_id: ServerID) -> Raft:
        """Start a server on its store, with a fresh state machine. New ids begin empty."""
        store = self.stores.get(server_id)
        if store is None:
            store = self.stores[server_id] = self._make_store(server_id)
        if server_id not in self.snapshots:
            self.snapshots[server_id] = self._make_snapshots(server_id)
        fsm = self.fsms[server_id] = self._make_fsm()
        transport = InmemTransport(self.network, self.address(server_id))
        raft = await Raft.start(
            self.config(server_id), fsm, store, store, self.snapshots[server_id], transport
        )
        self.rafts[server_id] = raft
        return raft

    async def stop(self, server_id: ServerID) -> None:
        """Shut one server down."""
        await self.rafts.pop(server_id).shutdown()

    def isolate(self, server_id: ServerID) -> None:
        """Cut a server off from all others."""
        self.network.disconnect(self.address(server_id))

    def rejoin(self, server_id: ServerID) -> None:
        """Undo `isolate`."""
        self.network.connect(self.address(server_id))

    async def leader(self, *, among: Sequence[ServerID] | None = None, timeout: float = 10) -> Raft:
        """The one leader of the highest term that a majority of `among` follows; waits for it."""
        ids = self.ids if among is None else among

        def find() -> Raft | None:
            rafts = [self.rafts[i] for i in ids if i in self.rafts]
            for raft in rafts:
                followers = [
                    r
                    for r in rafts
                    if (known := r.leader_with_id()) is not None
                    and known.id == raft.id
                    and r.current_term == raft.current_term
                ]
                if raft.state is State.LEADER and len(followers) > len(ids) // 2:
                    return raft
            return None

        await until(lambda: find() is not None, timeout)
        found = find()
        assert found is not None
        return found

    async def converged(self, *, timeout: float = 10) -> None:
        """Wait until every running server has applied everything the longest log holds."""

        def same() -> bool:
            goal = max(raft.last_index for raft in self.rafts.values())
            return all(raft.applied_index == goal for raft in self.rafts.values())

        await until(same, timeout)


async def until(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Poll a condition to a deadline.

    Raises:
        TimeoutError: it never held.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        if loop.time() > deadline:
            raise TimeoutError("the condition never held")
        await asyncio.sleep(0.002)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine function; it may take a minute."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
