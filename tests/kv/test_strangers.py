"""The client at addresses where something else answers, or only half a cluster does."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from rafthttp import Outcome
from rafthttp.kv.client import KVClient, ServiceError

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

STRANGE = "this is no rafthttp key-value service"


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncGenerator[str]:
    """The URL of a server that gives each request the next answer, and no more after the last."""
    rest = list(answers)
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if rest:
            writer.write(rest.pop(0))
        else:
            await over.wait()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()
        await server.wait_closed()


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("operation", ["put", "delete"])
@pytest.mark.parametrize(
    "answer",
    [
        response(404, b'{"detail": "Not Found"}'),
        response(404, b'{"error": "there is no such key", "outcome": "definite", "leader": null}'),
        response(200, b"<html>"),
        response(201),
        response(501, b"Unsupported method"),
        response(405),
    ],
)
def test_only_204_says_that_it_was_done(run: Run, operation: str, answer: bytes) -> None:
    async def scenario() -> None:
        async with answering(answer) as url, KVClient([url], timeout=5) as client:
            asked = client.put("k", b"v") if operation == "put" else client.delete("k")
            with pytest.raises(ServiceError) as caught:
                await asked
            status = answer.split()[1].decode()
            assert str(caught.value).startswith(f"{url} answered {status}")
            assert caught.value.status == int(status)
            if b"no such key" not in answer:
                assert str(caught.value) == f"{url} answered {status}: {STRANGE}"

    run(scenario)


_PAGES = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{}",
    b'{"keys": 7, "next": null}',
    b'{"keys": [7], "next": null}',
    b'{"keys": [{"key": 1, "size": 1}], "next": null}',
    b'{"keys": [], "next": 7}',
    b'{"leader": null}',
    b'{"id": 1, "servers": [1]}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("page", _PAGES)
def test_what_is_no_answer_of_the_service_is_said_so(run: Run, page: bytes) -> None:
    async def scenario() -> None:
        for ask in asks:
            async with (
                answering(response(200, page)) as url,
                KVClient([url], discover=False) as client,
            ):
                with pytest.raises(ServiceError) as caught:
                    await ask(client)
                assert str(caught.value) == f"{url} answered 200: {STRANGE}"

    asks: list[Callable[[KVClient], Awaitable[Any]]] = [
        KVClient.status,
        KVClient.leave,
        KVClient.transfer,
        lambda client: anext(client.list()),
    ]
    run(scenario)


def test_a_status_with_a_field_of_another_kind_is_none(run: Run) -> None:
    fields = {
        "id": "n1",
        "address": "h:1",
        "state": "leader",
        "term": 1,
        "leader": {"id": "n1", "address": "h:1"},
        "commit_index": 1,
        "applied_index": 1,
        "last_index": 1,
        "servers": [{"id": "n1", "address": "h:1", "suffrage": "voter"}],
    }

    async def scenario() -> None:
        whole = json.dumps(fields).encode()
        async with answering(response(200, whole)) as url, KVClient([url]) as client:
            assert (await client.status())["id"] == "n1"
        for name in fields:
            spoiled = json.dumps({**fields, name: [[]]}).encode()
            async with answering(response(200, spoiled)) as url, KVClient([url]) as client:
                with pytest.raises(ServiceError, match=STRANGE):
                    await client.status()

    run(scenario)


def test_a_stranger_asked_for_a_key(run: Run) -> None:
    async def scenario() -> None:
        for answer, status in (
            (response(404, b'{"detail": "Not Found"}'), 404),
            (response(204), 204),
            (response(302, b"", "Location: /login"), 302),
        ):
            async with answering(answer) as url, KVClient([url]) as client:
                with pytest.raises(ServiceError) as caught:
                    await client.get("k")
                assert str(caught.value) == f"{url} answered {status}: {STRANGE}"

    run(scenario)


_NO_LEADER = response(503, b'{"error": "no leader is known", "outcome": "definite"}')


def test_the_last_answer_is_kept_when_the_next_try_has_none(run: Run) -> None:
    async def scenario() -> None:
        async with answering(_NO_LEADER) as url, KVClient([url], timeout=0.5) as client:
            with pytest.raises(ServiceError, match=r"^no leader is known$") as caught:
                await client.get("k")
            assert caught.value.status == 503
            assert caught.value.outcome is Outcome.DEFINITE
        async with answering(_NO_LEADER) as url, KVClient([url], timeout=0.5) as client:
            with pytest.raises(ServiceError, match=r"^no leader is known$") as caught:
                await client.put("k", b"v")
            assert caught.value.outcome is Outcome.UNKNOWN  # the second try may have been heard

    run(scenario)


def test_the_last_answer_is_kept_when_another_node_is_gone(run: Run) -> None:
    async def scenario() -> None:
        gone = "http://127.0.0.1:1"
        async with (
            answering(_NO_LEADER) as url,
            KVClient([url, gone], timeout=0.12) as client,
        ):
            with pytest.raises(ServiceError, match=r"^no leader is known$") as caught:
                await client.put("k", b"v")
            assert caught.value.status == 503

    run(scenario)


def test_a_read_never_may_have_been_done(run: Run) -> None:
    async def scenario() -> None:
        for answers in ((), (b"",), (response(500),), (response(504),)):
            async with answering(*answers) as url, KVClient([url], timeout=0.3) as client:
                with pytest.raises(ServiceError) as caught:
                    await client.get("k")
                assert caught.value.outcome is Outcome.DEFINITE

    run(scenario)


def test_why_it_cannot_connect(run: Run) -> None:
    async def scenario() -> None:
        for url, reason in (
            ("http://127.0.0.1:1", "connection refused"),
            ("http://no.such.host.invalid:1", "no.such.host.invalid"),
        ):
            async with KVClient([url], timeout=0.3) as client:
                with pytest.raises(ServiceError) as caught:
                    await client.get("k")
                assert str(caught.value).startswith(f"{url}: cannot connect: ")
                assert reason in str(caught.value)

    run(scenario)


def test_https_at_a_port_that_speaks_http(run: Run) -> None:
    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        await reader.read(1)
        writer.write(response(400))
        with suppress(ConnectionError):
            await reader.read()  # until the client gives up
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def scenario() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with KVClient([f"https://127.0.0.1:{port}"], timeout=0.3) as client:
                with pytest.raises(ServiceError, match=r"TLS failed: .*does it speak http\?"):
                    await client.get("k")
            await asyncio.gather(*filter(None, handlers))

    run(scenario)


def test_an_answer_that_cannot_be_decoded(run: Run) -> None:
    async def scenario() -> None:
        spoiled = response(200, b"no gzip", "Content-Encoding: gzip")
        async with answering(spoiled) as url, KVClient([url], timeout=0.3) as client:
            with pytest.raises(ServiceError):
                await client.get("k")

    run(scenario)


@pytest.mark.parametrize("text", ["h:1", "h", "localhost:1", "127.0.0.1:1", "[::1]:1", "h:1/p/"])
def test_a_url_without_a_scheme_is_http(text: str) -> None:
    assert list(KVClient([text]).urls) == ["http://" + text.rstrip("/")]


@pytest.mark.parametrize("text", ["", "ftp://h:1", "http://", "http://h:99999", "http://[h", "a b"])
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not http\[s\]://HOST:PORT"):
        KVClient([text])
