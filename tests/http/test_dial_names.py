"""A name is looked up at every dial: a peer that moved is found at its new address."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from rafthttp.http.dial import dial_tcp
from rafthttp.raft.types import ServerAddress


def test_a_name_is_resolved_at_every_dial() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reached: list[str] = []

        def serve(host: str) -> Any:
            async def serve_one(reader: Any, writer: asyncio.StreamWriter) -> None:
                del reader
                reached.append(host)
                writer.close()

            return serve_one

        first = await asyncio.start_server(serve("127.0.0.1"), "127.0.0.1", 0)
        port = first.sockets[0].getsockname()[1]
        second = await asyncio.start_server(serve("127.0.0.2"), "127.0.0.2", port)
        answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.1"])

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            assert host == "peer.test"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment] # the test's DNS
        dial = dial_tcp()
        async with first, second:
            for _ in range(3):
                stream = await dial(ServerAddress(f"peer.test:{port}"), 5)
                done = loop.create_future()
                stream.start(_Waits(done))
                await asyncio.wait_for(done, 5)
        assert reached == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]

    asyncio.run(main())


class _Waits:
    """A receiver that waits for the end."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self._done = done

    def data_received(self, data: bytes) -> None:
        raise AssertionError(data)

    def closed(self, error: Exception | None) -> None:
        del error
        self._done.set_result(None)

    def pause_writing(self) -> None:
        """Nothing is written."""

    def resume_writing(self) -> None:
        """Nothing is written."""
