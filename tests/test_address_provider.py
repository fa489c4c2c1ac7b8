"""`Node(address_provider=…)`: a member that is no longer where the configuration says."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from starlette.applications import Starlette

from rafthttp import Config, Node, RaftError, ServerAddress, ServerID, State
from rafthttp.testing.asgi_app import LastValue
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


class Registry:
    """Where members are now, as far as they have moved."""

    def __init__(self) -> None:
        self.moved: dict[ServerID, ServerAddress] = {}

    def server_address(self, server_id: ServerID) -> ServerAddress | None:
        return self.moved.get(server_id)


def made(
    name: str, address: str, registry: Registry, join: list[str], data_dir: Path | None = None
) -> Node:
    config = Config(
        ServerID(name), heartbeat_timeout=0.3, election_timeout=0.3, leader_lease_timeout=0.2
    )
    return Node(
        name,
        address,
        fsm=LastValue(),
        config=config,
        data_dir=data_dir,
        bootstrap=not join,
        join=join,
        address_provider=registry,
        timeout=5.0,
    )


def app(node: Node) -> Starlette:
    """Without the node's lifespan: it goes on while its server moves."""
    application = Starlette()
    node.mount(application)
    return application


def value(node: Node) -> bytes:
    assert isinstance(node._fsm, LastValue)
    return node._fsm.value


async def whole(*nodes: Node) -> None:
    def probe() -> bool:
        return all(
            len(n.raft.get_configuration().configuration.voters) == len(nodes) for n in nodes
        )

    await until(probe, "all are voters")


def test_a_member_that_moved_is_reached_and_leads_and_is_asked() -> None:
    async def scenario() -> None:
        registry = Registry()
        listeners = [loopback_listener() for _ in range(3)]
        first = address_of(listeners[0])
        nodes = [
            made(f"n{number}", address_of(listener), registry, [first] if number > 1 else [])
            for number, listener in enumerate(listeners, 1)
        ]
        n1, n2, n3 = nodes
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as before:
                for node, listener in zip(nodes, listeners, strict=True):
                    await stack.enter_async_context(node)
                    server = before if node is n3 else stack
                    await server.enter_async_context(served(app(node), listener))
                    await until(lambda n=node: not n.joining, f"{node.id} is a member")  # type: ignore[misc]  # mypy infers no lambda with defaults
                await whole(*nodes)
            # Nobody listens at its address in the configuration from here on.
            elsewhere = loopback_listener()
            registry.moved[n3.id] = ServerAddress(address_of(elsewhere))
            await stack.enter_async_context(served(app(n3), elsewhere))

            await n1.apply(b"replicated")
            await until(lambda: value(n3) == b"replicated", "n3 is replicated to")
            await n1.leadership_transfer("n3")
            await until(lambda: n2.leader == (n3.id, n3.address), "n2 knows")
            assert n3.raft.state is State.LEADER
            assert await n2.apply(b"forwarded") == len(b"forwarded")
            await n2.linearizable()
            assert value(n2) == b"forwarded"
            await n2.leave()
            await whole(n1, n3)
            registry.moved.clear()  # where the configuration says there is nobody
            with pytest.raises(RaftError):
                await n1.apply(b"lost", timeout=0.5)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_whoever_joins_asks_members_where_they_are_now(tmp_path: Path) -> None:
    """The one it was told of is gone; its log names another, which has moved since."""

    async def scenario() -> None:
        registry = Registry()
        first, second, elsewhere = (loopback_listener() for _ in range(3))
        at, gone = address_of(second), "127.0.0.1:1"
        n1 = made("n1", address_of(first), registry, [])
        with second:
            async with n1:
                async with served(app(n1), first):
                    n2 = made("n2", at, registry, [n1.address], tmp_path)
                    async with n2, served(app(n2), second.dup()):
                        await until(lambda: not n2.joining, "n2 is a member")
                registry.moved[n1.id] = ServerAddress(address_of(elsewhere))
                again = made("n2", at, registry, [gone], tmp_path)
                async with served(app(n1), elsewhere), again, served(app(again), second.dup()):
                    assert again.joining
                    await until(lambda: not again.joining, "n2 is a member")

    asyncio.run(asyncio.wait_for(scenario(), 60))
