"""A server that lost its state is released, and votes once its log holds its own removal (S62).

Nodes with real sockets and files in one process. What they say to each other is what processes say;
only the wiped node's second request, to join, is held back, as if it were slow.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from starlette.applications import Starlette

from rafthttp import (
    FSM,
    BytesSnapshot,
    Config,
    Log,
    LogPosition,
    Node,
    Observer,
    Raft,
    RaftError,
    ServerID,
    State,
)
from rafthttp.http.layer import Layer
from rafthttp.http.membership import ChangeRequest
from rafthttp.raft.observer import RaftState
from rafthttp.raft.runtime.restart import VOTES_FROM, decode_votes_from
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


class Written(FSM):
    def __init__(self) -> None:
        self.data: list[bytes] = []

    def apply(self, log: Log) -> None:
        if log.data not in self.data:  # it may be sent again where its outcome is unknown
            self.data.append(log.data)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"\n".join(self.data))

    def restore(self, source: Any) -> None:
        self.data = source.read().split(b"\n")


class Servers:
    """Five servers' addresses and directories, and the nodes that run."""

    def __init__(self, directory: Path) -> None:
        self._sockets: dict[str, socket] = {f"n{i}": loopback_listener() for i in range(1, 6)}
        self._directory = directory
        self._serving: dict[str, AsyncExitStack] = {}
        self.nodes: dict[str, Node] = {}
        self.fsms: dict[str, Written] = {}

    async def start(self, name: str, *, bootstrap: bool = False, join: str = "") -> Node:
        """Start a node; it is not waited for until it has joined."""
        self.fsms[name] = Written()
        node = Node(
            name,
            address_of(self._sockets[name]),
            fsm=self.fsms[name],
            config=Config(
                ServerID(name),
                heartbeat_timeout=0.2,
                election_timeout=0.2,
                leader_lease_timeout=0.2,
            ),
            data_dir=self.data_dir(name),
            bootstrap=bootstrap,
            join=[address_of(self._sockets[join])] if join else [],
            timeout=2.0,
        )
        app = Starlette(lifespan=node.lifespan)
        node.mount(app)
        serving = self._serving[name] = AsyncExitStack()
        await serving.enter_async_context(served(app, self._sockets[name].dup()))
        self.nodes[name] = node
        return node

    async def stop(self, name: str) -> None:
        """Stop a node, in order."""
        del self.nodes[name]
        await self._serving.pop(name).aclose()

    async def close(self) -> None:
        for name in list(self.nodes):
            await self.stop(name)
        for listener in self._sockets.values():
            listener.close()

    def data_dir(self, name: str) -> Path:
        return self._directory / name

    def votes_from(self, name: str) -> LogPosition:
        """What a stopped server has noted."""
        store = SqliteStore.open(self.data_dir(name), ServerID(name))
        try:
            return decode_votes_from(store.get(VOTES_FROM))
        finally:
            store.close()

    def counts(self, name: str) -> bool:
        """Whether the leader's configuration has that server."""
        leaders = [n.raft for n in self.nodes.values() if n.raft.state is State.LEADER]
        return not leaders or any(
            raft.get_configuration().configuration.get(ServerID(name)) for raft in leaders
        )

    async def remove(self, name: str) -> None:
        await self.on_leader(lambda raft: raft.remove_server(ServerID(name), timeout=5))

    async def holds(self, name: str, data: list[bytes]) -> None:
        await until(lambda: self.fsms[name].data == data, f"{name} has everything, and no more")

    async def on_leader(self, work: Callable[[Raft], Awaitable[Any]]) -> None:
        """Do it on the leader; again where another leads by then."""
        async with asyncio.timeout(20):
            while True:
                for node in self.nodes.values():
                    with suppress(RaftError):
                        await work(node.raft)
                        return
                await asyncio.sleep(0.02)


@pytest.fixture
def hold_joins(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Requests to join leave once it is set; releases do at once."""
    may_join = asyncio.Event()
    join = Layer.join

    async def slow_join(self: Layer, *args: Any) -> str | None:
        await may_join.wait()
        return await join(self, *args)

    monkeypatch.setattr(Layer, "join", slow_join)
    return may_join


async def joined(node: Node) -> None:
    await until(lambda: not node.joining, "it is a member")


async def campaigns_in_vain(node: Node, times: int) -> None:
    """Wait until a node has asked for votes so often; it must not lead."""
    observer = Observer(RaftState)
    node.raft.register_observer(observer)
    async with asyncio.timeout(20):
        while times:
            event = await anext(observer)
            assert isinstance(event, RaftState)
            assert event.state is not State.LEADER, "who was removed leads"
            times -= event.state is State.CANDIDATE
    node.raft.deregister_observer(observer)


def in_servers(directory: Path, scenario: Callable[[Servers], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        servers = Servers(directory)
        try:
            async with asyncio.timeout(60):
                await scenario(servers)
        finally:
            await servers.close()

    asyncio.run(run())


def test_who_was_removed_and_does_not_know_it_gets_no_vote_of_a_wiped_server(
    tmp_path: Path, hold_joins: asyncio.Event
) -> None:
    """n2 and n5 are stopped, then removed; a write follows; n3 is wiped, and released.

    The two count by five members: with n3's vote, which has nothing yet, one of them would lead,
    without the write.
    """

    async def scenario(servers: Servers) -> None:
        hold_joins.set()
        await servers.start("n1", bootstrap=True)
        for name in ("n2", "n3", "n4", "n5"):
            node = await servers.start(name, join="n1")
            await joined(node)
        await servers.on_leader(lambda raft: raft.apply(b"before", timeout=5))
        await servers.stop("n2")
        await servers.stop("n5")
        for name in ("n2", "n5"):
            await servers.remove(name)
        await servers.on_leader(lambda raft: raft.apply(b"precious", timeout=5))
        await servers.stop("n3")
        shutil.rmtree(servers.data_dir("n3"))
        hold_joins.clear()

        n3 = await servers.start("n3", join="n1")
        await until(lambda: n3.raft.current_term > 0, "n3 is released, and takes part")
        assert not servers.counts("n3")
        n2 = await servers.start("n2")
        await servers.start("n5")
        await campaigns_in_vain(n2, 3)
        assert n3.raft.last_index == 0

        # It forgets nothing of that where it stops before it has joined.
        await servers.stop("n3")
        assert servers.votes_from("n3").index > 0
        n3 = await servers.start("n3")
        await campaigns_in_vain(n2, 3)
        assert n3.raft.last_index == 0

        # Once it has caught up, it votes: with n1 stopped, no majority is without it.
        hold_joins.set()
        await joined(n3)
        await servers.stop("n1")
        await servers.on_leader(lambda raft: raft.apply(b"after", timeout=5))
        for name in ("n3", "n4"):
            await servers.holds(name, [b"before", b"precious", b"after"])
        for name in ("n2", "n5"):
            assert servers.fsms[name].data in ([], [b"before"])
            assert servers.nodes[name].raft.state is not State.LEADER

    in_servers(tmp_path, scenario)


def test_where_the_answer_does_not_say_it_the_leader_is_asked_for_its_log(
    tmp_path: Path, hold_joins: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader in Go answers a release as a leave: 200, and nothing else."""
    respond = ChangeRequest.respond

    def respond_as_go(self: ChangeRequest, _released: LogPosition | None = None) -> None:
        respond(self)

    monkeypatch.setattr(ChangeRequest, "respond", respond_as_go)

    async def scenario(servers: Servers) -> None:
        n1 = await servers.start("n1", bootstrap=True)
        await servers.on_leader(lambda raft: raft.apply(b"one"))
        released = LogPosition(n1.raft.current_term, n1.raft.last_index)
        n3 = await servers.start("n3", join="n1")
        await until(lambda: n3.raft.current_term == released.term, "n3 takes part")
        assert n1.raft.state is State.LEADER
        hold_joins.set()
        await joined(n3)
        await servers.stop("n3")
        assert servers.votes_from("n3") == released

    in_servers(tmp_path, scenario)
