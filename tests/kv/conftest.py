"""A key-value service on real sockets in the test's own event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from rafthttp import Config, Node, ServerID
from rafthttp.kv.app import create_app
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


@dataclass(slots=True)
class Member:
    """One node of a service."""

    node: Node
    fsm: KVStateMachine
    url: str


@asynccontextmanager
async def _services(
    size: int = 1,
    *,
    config: dict[str, Any] | None = None,
    sessions: bool = True,
    **options: Any,
) -> AsyncGenerator[list[Member]]:
    listeners = [loopback_listener() for _ in range(size)]
    timeout = 0.3 if size > 1 else 0.03  # one alone only waits for itself
    members: list[Member] = []
    async with AsyncExitStack() as stack:
        for number, listener in enumerate(listeners, 1):
            fsm = KVStateMachine()
            node = Node(
                f"n{number}",
                address_of(listener),
                fsm=fsm,
                bootstrap=number == 1,
                join=[members[-1].url] if members else [],
                token=options.get("token"),
                sessions=sessions,
                config=Config(
                    ServerID(f"n{number}"),
                    heartbeat_timeout=timeout,
                    election_timeout=timeout,
                    leader_lease_timeout=timeout,
                    **(config or {}),
                ),
            )
            await stack.enter_async_context(served(create_app(node, fsm, **options), listener))
            members.append(Member(node, fsm, f"http://{node.address}"))

        def whole(member: Member) -> bool:
            voters = member.node.raft.get_configuration().configuration.voters
            return len(voters) == size and member.node.leader is not None

        await until(lambda: all(whole(member) for member in members), "all are voters")
        yield members


@pytest.fixture
def services() -> Callable[..., Any]:
    """`async with services(size) as members`."""
    return _services


@pytest.fixture
def run() -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Runs a scenario to its end, within half a minute."""

    def runner(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(30):
                await scenario()

        asyncio.run(main())

    return runner


@pytest.fixture
def http() -> Callable[..., httpx.AsyncClient]:
    """A client that goes nowhere but to the given URL."""

    def make(member: Any, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=member.url, trust_env=False, **options)

    return make
