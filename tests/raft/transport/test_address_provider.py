"""Where a server is dialled, when a provider knows better than the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.records import AppendEntriesResponse, RequestVoteRequest

Make = Callable[..., Any]


class Provider:
    def __init__(self) -> None:
        self.known: dict[ServerID, ServerAddress] = {}
        self.broken = False

    def server_address(self, server_id: ServerID) -> ServerAddress | None:
        if self.broken:
            raise LookupError("the registry is away")
        return self.known.get(server_id)


def test_every_dial_asks_the_provider_and_falls_back_to_the_configuration(two_nodes: Make) -> None:
    async def main() -> None:
        provider = Provider()
        async with two_nodes(address_provider=provider) as (one, two):
            stale = Server(two.header.id, ServerAddress("127.0.0.1:1"))
            vote = RequestVoteRequest(one.header, 7, one.header.address, 5, 6, False)

            provider.known[two.header.id] = two.as_target.address
            assert (await one.transport.request_vote(stale, vote, 5)).granted
            responses: list[AppendEntriesResponse] = []
            closed: list[Exception] = []
            pipeline = one.transport.pipeline(stale, responses.append, closed.append)
            assert (await one.transport.heartbeat(stale, 7, 5)).success
            pipeline.close()

            provider.known.clear()
            assert (await one.transport.request_vote(two.as_target, vote, 5)).granted
            provider.broken = True
            assert (await one.transport.request_vote(two.as_target, vote, 5)).granted

    asyncio.run(main())
