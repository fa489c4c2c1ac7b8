"""The closing chain: transport, layer, handler, requests, and the task that handles them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.membership import handle_change_requests
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.raft.wire.records import RPCHeader
from rafthttp.testing.http import ServerKind, raw_connection, until


class NobodyLeads:
    """A server that knows of no leader; nothing else of it is asked."""

    id = ServerID("n1")
    commit_index = 0

    def leader_with_id(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def test_closing_the_transport_ends_everything(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port:
            address = ServerAddress(f"127.0.0.1:{port}")
            transport = NetworkTransport(Layer("/raft", address, handler, dial_tcp()))
            rpcs: Any = NobodyLeads()
            header = RPCHeader(id=ServerID("n1"), address=address)
            transport.start(header, rpcs)
            handling = asyncio.create_task(handle_change_requests(rpcs, handler.requests()))
            assert await transport.probe(address, 5.0)  # a stream through the whole of it
            async with raw_connection(port) as raw:
                raw.send(b"DELETE /raft?id=n2 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await raw.response())[
                    2
                ] == b"failed to leave server n2: no leader is known\n"
            await transport.close()
            async with asyncio.timeout(5):
                await handling
            assert handler.closed
            await transport.close()
            await handler.close()
            async with raw_connection(port) as raw:
                raw.send(b"DELETE /raft?id=n2 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await raw.response())[0] == 503

    kind.run(main)


def test_requests_may_be_read_before_and_after_the_end() -> None:
    async def main() -> None:
        handler = Handler()
        reading = asyncio.create_task(anext(handler.requests(), None))
        await until(lambda: handler._requests._readers)
        await handler.close()
        assert await reading is None
        assert [request async for request in handler.requests()] == []

    asyncio.run(main())


def test_two_readers_share_the_requests_and_a_cancelled_one_loses_none(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        handler = Handler()
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            one = asyncio.create_task(anext(handler.requests(), None))
            two = asyncio.create_task(anext(handler.requests(), None))
            await until(lambda: len(handler._requests._readers) == 2)
            raw.send(b"DELETE /raft?id=n2 HTTP/1.1\r\nHost: x\r\n\r\n")
            # The first reader is woken and cancelled in the same turn.
            wake = handler._requests._wake_one

            def wake_and_cancel() -> None:
                wake()
                one.cancel()

            monkeypatch.setattr(handler._requests, "_wake_one", wake_and_cancel)
            request = await two
            assert request is not None
            request.respond()
            assert (await raw.response())[0] == 200
            assert one.cancelled()

    on_loop.run(main)
