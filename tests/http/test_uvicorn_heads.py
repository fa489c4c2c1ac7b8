"""What a request head may cost, under each of uvicorn's parsers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from rafthttp.http.handler import Handler
from rafthttp.testing.http import ServerKind, raw_connection, uvicorn_server

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def swallow(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body and answers with its size."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    answer = str(size).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(kind: ServerKind, begin: bytes, piece: bytes, pieces: int) -> tuple[int, bytes]:
    """How many pieces the server read behind `begin`, and what it answered."""
    assert kind.http is not None
    async with (
        uvicorn_server(swallow, kind.http) as (port, _),
        connected(port) as (reader, writer),
    ):
        written = 0
        try:
            writer.write(begin)
            while written < pieces and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                written += 1
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        try:
            return written, await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return written, b""


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        pytest.param(b"GET /", b"a" * 65536, id="a long path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 65536, id="a long field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 10000, id="many fields"),
        pytest.param(CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 10000, id="many trailer fields"),
        pytest.param(CHUNKED + b"0\r\nX: ", b"a" * 65536, id="a long trailer field"),
        pytest.param(CHUNKED + b"1;", b"a" * 65536, id="a long chunk extension"),
    ],
)
def test_a_head_without_an_end_is_not_read_on(
    uvicorn_kind: ServerKind, begin: bytes, piece: bytes
) -> None:
    """Of 64 MiB only what fits into buffers on the way is taken."""
    written, answer = asyncio.run(exchange(uvicorn_kind, begin, piece, 1000))
    assert written < 300
    assert not answer or answer.split(b"\r\n")[0].split()[1] == b"400", answer


@pytest.mark.parametrize("size", [10_000, 65536, 1 << 20])
def test_bodies_of_any_size_pass(uvicorn_kind: ServerKind, size: int) -> None:
    piece = b"a" * size
    chunk = f"{size:x}\r\n".encode() + piece + b"\r\n"
    begin = CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close")

    async def main() -> bytes:
        assert uvicorn_kind.http is not None
        async with (
            uvicorn_server(swallow, uvicorn_kind.http) as (port, _),
            connected(port) as (reader, writer),
        ):
            writer.write(begin + chunk * 100 + b"0\r\nTrailer: t\r\n\r\n")
            await writer.drain()
            return await asyncio.wait_for(reader.read(), 10)

    answer = asyncio.run(main())
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert answer.endswith(b"\r\n\r\n" + str(100 * size).encode())


def test_a_trailer_field_is_no_header_field(uvicorn_kind: ServerKind) -> None:
    """RFC 9110 §6.5.1: otherwise what a proxy sets in the head could be added behind the body."""
    seen: list[list[bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await swallow(scope, receive, send)
        seen.append([name for name, _ in scope["headers"]])

    async def main() -> None:
        assert uvicorn_kind.http is not None
        async with (
            uvicorn_server(app, uvicorn_kind.http) as (port, _),
            connected(port) as (reader, writer),
        ):
            writer.write(CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close"))
            writer.write(b"1\r\na\r\n0\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")

    asyncio.run(main())
    assert seen == [[b"host", b"connection", b"transfer-encoding"]]


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_bytes_behind_the_last_request_of_a_connection(
    uvicorn_kind: ServerKind, method: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn's 400 has a sentence, for which h11 has no room in the answer to a HEAD."""

    async def main() -> None:
        async with uvicorn_kind.serve(Handler()) as port, raw_connection(port) as raw:
            raw.send(method + b" /raft HTTP/1.0\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\n\r\n")
            assert (await raw.rest()).startswith(b"HTTP/1.1 4")

    uvicorn_kind.run(main)
    assert not [record for record in caplog.records if record.name == "asyncio"]
