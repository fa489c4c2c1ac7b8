"""Requests leave nothing to the garbage collector, whose rounds stop everything else."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

_REQUESTS = 200


@pytest.mark.parametrize(
    ("request_bytes", "end"),
    [
        (b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nvalue", b"\r\n\r\n"),
        (b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n\r\nvalue"),
        (b"GET /kv/none HTTP/1.1\r\nHost: h\r\n\r\n", b"}\n"),
    ],
)
def test_requests_leave_no_cycles(
    run: Run, services: Any, request_bytes: bytes, end: bytes
) -> None:
    async def scenario() -> None:
        async with services() as (member,):
            await member.node.apply(b"\x01\x01\x00\x01avalue")
            host, port = member.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))

            async def ask(times: int) -> None:
                for _ in range(times):
                    writer.write(request_bytes)
                    await reader.readuntil(end)

            try:
                await ask(10)
                gc.collect()
                gc.disable()
                try:
                    await ask(_REQUESTS)
                    garbage = gc.collect()
                finally:
                    gc.enable()
            finally:
                writer.close()
                await writer.wait_closed()
            assert garbage < _REQUESTS / 2

    run(scenario)
