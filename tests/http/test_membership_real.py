"""Joins and leaves with real servers: own listeners, real transports, stores in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO

import pytest

from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.listener import Listener
from rafthttp.http.membership import handle_change_requests
from rafthttp.raft.bootstrap import bootstrap_cluster
from rafthttp.raft.config import Config
from rafthttp.raft.errors import MembershipError, TimedOutError
from rafthttp.raft.fsm import FSM, BytesSnapshot
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.types import Configuration, Log, Server, ServerID, State, Suffrage
from rafthttp.testing.http import until


class Nothing(FSM):
    """A state machine without state."""

    def apply(self, log: Log) -> None:
        """Nothing to apply."""

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: BinaryIO) -> None:
        """Nothing to restore."""


class Member:
    """A server with everything around it."""

    def __init__(self, name: str) -> None:
        self.id = ServerID(name)
        self.handler = Handler(timeout=5.0)
        self.listener = Listener(self.handler, "127.0.0.1", 0)
        self.layer: Layer
        self.raft: Raft
        self._handling: asyncio.Task[None]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.port}"

    async def start(self, *, bootstrap: bool) -> None:
        await self.listener.start()
        self.layer = Layer("/raft", self.address, self.handler, dial_tcp())
        config = Config(
            self.id, heartbeat_timeout=0.2, election_timeout=0.2, leader_lease_timeout=0.1
        )
        store = MemoryStore()
        if bootstrap:
            alone = Configuration((Server(self.id, self.layer.address),))
            await bootstrap_cluster(config, store, store, None, alone)
        transport = NetworkTransport(self.layer, timeout=2.0)
        self.raft = await Raft.start(config, Nothing(), store, store, None, transport)
        self._handling = asyncio.create_task(
            handle_change_requests(self.raft, self.handler.requests())
        )

    async def stop(self) -> None:
        await self.raft.shutdown()
        async with asyncio.timeout(5):
            await self._handling  # the closing chain has ended it
        await self.listener.close()

    @property
    def members(self) -> Configuration:
        return self.raft.get_configuration().configuration


@asynccontextmanager
async def running(*names: str) -> AsyncGenerator[list[Member]]:
    """The first is bootstrapped and leads; the others are members of nothing yet."""
    members = [Member(name) for name in names]
    try:
        for number, member in enumerate(members):
            await member.start(bootstrap=number == 0)
        await until(lambda: members[0].raft.state is State.LEADER)
        yield members
    finally:
        for member in members:
            await member.stop()


def test_joining_through_a_follower_and_leaving() -> None:
    async def main() -> None:
        async with running("n1", "n2", "n3") as (n1, n2, n3):
            await n2.layer.join(n2.id, n1.address, 10.0)
            await until(lambda: n2.raft.leader_with_id() is not None)
            await n3.layer.join(n3.id, n2.address, 10.0)  # redirected
            assert {s.id for s in n1.members.voters} == {"n1", "n2", "n3"}
            before = n1.raft.last_index
            await n3.layer.join(n3.id, n2.address, 10.0)
            assert n1.raft.last_index == before  # done already: no entry
            await n3.layer.leave(n3.id, n2.address, 10.0)
            assert {s.id for s in n1.members} == {"n1", "n2"}
            await n3.layer.leave(n3.id, n2.address, 10.0)
            await n2.layer.leave(n1.id, n2.address, 10.0)  # the leader, through a follower
            await until(lambda: n2.raft.state is State.LEADER)
            assert {s.id for s in n2.members} == {"n2"}

    asyncio.run(main())


def test_nobody_and_an_impostor_are_refused_and_change_nothing(free_port: int) -> None:
    """A one-node cluster must not lose its quorum to an address that nobody answers at."""

    async def main() -> None:
        async with running("n1", "n2") as (n1, n2):
            before = n1.raft.last_index, n1.members
            nobody = Layer("/raft", f"127.0.0.1:{free_port}", Handler(), dial_tcp())
            with pytest.raises(MembershipError, match="cannot be reached") as caught:
                await nobody.join(ServerID("n9"), n1.address, 10.0)
            assert caught.value.status == 403
            with pytest.raises(MembershipError, match="is server n2, not n9") as caught:
                await n2.layer.join(ServerID("n9"), n1.address, 10.0)
            assert caught.value.status == 403
            with pytest.raises(MembershipError, match="belongs to server n1") as caught:
                await n1.layer.join(ServerID("n9"), n1.address, 10.0)
            assert caught.value.status == 403
            assert (n1.raft.last_index, n1.members) == before
            await n1.raft.apply(b"still alone, and able to", timeout=5.0)

    asyncio.run(main())


def test_a_leader_killed_between_the_two_steps_strands_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with running("n1", "n2", "n3", "n4") as (n1, n2, n3, n4):
            await n2.layer.join(n2.id, n1.address, 10.0)
            await n3.layer.join(n3.id, n1.address, 10.0)

            async def hang(server_id: ServerID, *, timeout: float) -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(n1.raft, "wait_caught_up", hang)
            joining = asyncio.create_task(
                n4.layer.join(n4.id, [n1.address, n2.address, n3.address], 30.0)
            )
            await until(lambda: n2.members.get(n4.id) is not None)
            assert not n2.members.has_vote(n4.id)
            await n1.stop()
            await joining
            (leader,) = [m for m in (n2, n3) if m.raft.state is State.LEADER]
            assert leader.members.has_vote(n4.id)

    asyncio.run(main())


def test_one_that_cannot_catch_up_stays_without_a_vote_and_does_not_hold_up_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with running("n1", "n2", "n3") as (n1, n2, n3):
            caught_up = n1.raft.wait_caught_up

            async def late(server_id: ServerID, *, timeout: float) -> None:
                if server_id == n2.id:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(timeout, 1.0)):
                            await asyncio.Event().wait()
                    raise TimedOutError("did not catch up")
                await caught_up(server_id, timeout=timeout)

            monkeypatch.setattr(n1.raft, "wait_caught_up", late)
            stuck = asyncio.create_task(n2.layer.join(n2.id, n1.address, 1.5))
            await until(lambda: n1.members.get(n2.id) is not None)
            await n3.layer.join(n3.id, n1.address, 10.0)
            assert not stuck.done()
            with pytest.raises(MembershipError, match="did not catch up") as caught:
                await stuck
            assert caught.value.status == 503
            server = n1.members.get(n2.id)
            assert server is not None
            assert server.suffrage is Suffrage.STAGING
            monkeypatch.undo()
            await n2.layer.join(n2.id, n1.address, 10.0)  # taken up where it was left
            assert n1.members.has_vote(n2.id)

    asyncio.run(main())
