"""The client against real services: failover, discovery, and what it does not do."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest

from rafthttp import Outcome
from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.commands import CommandError, KeyInfo

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class Stub:
    """A server that answers every request with the next of some responses, then hangs up."""

    def __init__(self, *responses: bytes) -> None:
        self.responses = list(responses)
        self.requests: list[str] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.split(b"\r\n")[0].decode())
        if self.responses:
            writer.write(self.responses.pop(0))
        writer.close()
        await writer.wait_closed()


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_values_keys_and_lists_come_back_as_they_went(run: Run, services: Any) -> None:
    async def scenario() -> None:
        keys = [".", "..", "a/./b", "../x", "ä/ %\n?#&+", "/", "//", "🦀", "k" * 4096]
        async with (
            services(config={"trailing_logs": 0}) as (member,),
            KVClient([member.url]) as client,
        ):
            for key in keys:
                await client.put(key, key.encode())
            for key in keys:
                assert await client.get(key) == key.encode()
                assert await client.get(key, stale=True) == key.encode()
            assert [info async for info in client.list()] == [
                KeyInfo(key, len(key.encode())) for key in sorted(keys)
            ]
            for key in keys:
                await client.delete(key)
            assert await client.get(keys[0]) is None
            assert await client.get_with_digest(keys[0]) is None
            assert [info async for info in client.list()] == []

    run(scenario)


def test_it_learns_the_other_members_and_goes_on_without_the_first(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services(3) as members:
            async with KVClient([members[0].url], timeout=15) as client:
                await client.put("before", b"1")
                assert set(client.urls) == {member.url for member in members}
                await members[0].node.raft.shutdown()
                await client.put("after", b"2")
                assert await client.get("before") == b"1"
                assert client.urls[0] != members[0].url
            async with KVClient([members[0].url], timeout=0.5, discover=False) as alone:
                with pytest.raises(ServiceError) as caught:
                    await alone.put("never", b"3")
                assert caught.value.outcome is Outcome.DEFINITE
                assert caught.value.status == 503

    run(scenario)


def test_an_unknown_outcome_is_tried_again_and_stays_unknown_to_the_end(run: Run) -> None:
    async def scenario() -> None:
        lost = b""  # the connection closes without an answer
        async with Stub(lost, response(503)) as stub, KVClient([stub.url], timeout=0.3) as client:
            with pytest.raises(ServiceError) as caught:
                await client.put("k", b"v")
            assert caught.value.outcome is Outcome.UNKNOWN
            assert len(stub.requests) >= 2
            assert set(stub.requests) == {"PUT /kv/k HTTP/1.1"}

    run(scenario)


@pytest.mark.parametrize(("status", "outcome"), [(503, Outcome.DEFINITE), (504, Outcome.UNKNOWN)])
def test_an_error_of_the_service_ends_with_its_outcome(
    run: Run, status: int, outcome: Outcome
) -> None:
    async def scenario() -> None:
        body = b'{"error": "why not", "outcome": "x", "leader": null}'
        answers = [response(status, body)] * 20
        async with Stub(*answers) as stub, KVClient([stub.url], timeout=0.2) as client:
            with pytest.raises(ServiceError, match="why not") as caught:
                await client.delete("k")
            assert caught.value.outcome is outcome
            assert caught.value.status == status

    run(scenario)


@pytest.mark.parametrize("status", [308, 400, 401, 403, 413])
def test_what_another_try_would_not_change_is_not_tried_again(run: Run, status: int) -> None:
    async def scenario() -> None:
        async with Stub(response(status)) as stub, KVClient([stub.url]) as client:
            with pytest.raises(ServiceError) as caught:
                await client.get("k")
            assert caught.value.status == status
            assert len(stub.requests) == 1

    run(scenario)


@pytest.mark.parametrize(
    "status_page", [b"nonsense", b"[]", b"{}", b'{"servers": 7}', b'{"servers": [{"id": 1}]}']
)
def test_a_status_page_that_cannot_be_read_spoils_nothing(run: Run, status_page: bytes) -> None:
    async def scenario() -> None:
        answers = (response(200, b"v"), response(200, status_page))
        async with Stub(*answers) as stub, KVClient([stub.url]) as client:
            assert await client.get("k") == b"v"
            assert list(client.urls) == [stub.url]

    run(scenario)


def test_nobody_there_is_definite(run: Run) -> None:
    async def scenario() -> None:
        async with KVClient(["http://127.0.0.1:1"], timeout=0.2) as client:
            with pytest.raises(ServiceError, match="cannot connect") as caught:
                await client.put("k", b"v")
            assert caught.value.outcome is Outcome.DEFINITE
            assert caught.value.status is None
            with pytest.raises(ServiceError, match="cannot connect"):
                await client.leave()

    run(scenario)


def test_leaving_is_asked_of_one_node_only(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services(2) as (n1, n2), KVClient([n2.url]) as client:
            assert (await client.status())["id"] == "n2"
            assert (await client.leave())["id"] == "n2"
            assert len(n1.node.raft.get_configuration().configuration.servers) == 1

    run(scenario)


@pytest.mark.parametrize("key", ["", "k" * 4097, "\udc80"])
def test_keys_nobody_may_use_are_refused_here(run: Run, key: str) -> None:
    async def scenario() -> None:
        async with KVClient(["http://127.0.0.1:1"]) as client:
            with pytest.raises(CommandError):
                await client.get(key)

    run(scenario)


@pytest.mark.parametrize("urls", [[], ["ftp://h:1"], ["http://"]])
def test_urls_that_are_none(urls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"URL|HOST:PORT"):
        KVClient(urls)
