"""Backpressure where the ASGI server frames the stream: a side that pauses costs it little memory.

64 MiB through real servers in processes of their own, whose memory is measured; the kernel's
buffers are not theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.hostile import peak_bytes, reset_peak, resident_bytes
from rafthttp.testing.http import until
from rafthttp.testing.pumps import TOTAL_BYTES, Pump, pieces, whole_sum
from rafthttp.testing.web_servers import COMMANDS, served

pytestmark = pytest.mark.process

MIB = 1 << 20
GROWTH_BYTES_MAX = 24 * MIB
# A writer that gets no further for so long is held back; one that is not writes all in that time.
STUCK_SECONDS = 1.0

Ask = Callable[[str], dict[str, Any]]


@asynccontextmanager
async def streaming(server: str, directory: Path) -> AsyncGenerator[tuple[Pump, Ask]]:
    """A stream to the application of `rafthttp.testing.pumps`, and what it tells."""
    command = COMMANDS[server]
    with (
        served(
            lambda port: ["-m", *command(port, "rafthttp.testing.pumps:app")], "", directory
        ) as process,
        httpx.Client(timeout=10.0, trust_env=False) as http,
    ):
        process.connect().close()

        def ask(path: str = "/") -> dict[str, Any]:
            told: dict[str, Any] = http.get(f"http://127.0.0.1:{process.port}{path}").json()
            return told

        layer = Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp(), "websocket")
        try:
            address = ServerAddress(f"127.0.0.1:{process.port}")
            yield Pump(await layer.dial(address, 10.0)), ask
        finally:
            await layer.close()


async def until_stuck(written: Callable[[], int]) -> int:
    """Wait until a writer has begun and gets no further; how far it got."""
    last, since = written(), time.monotonic()

    def stuck() -> bool:
        nonlocal last, since
        if (now := written()) != last or now == 0:
            last, since = now, time.monotonic()
        return time.monotonic() - since > STUCK_SECONDS

    await until(stuck)
    return last


async def until_all(condition: Callable[[], bool]) -> None:
    """As `until`, with time for 64 MiB on a busy machine."""
    async with asyncio.timeout(60.0):
        while not condition():  # noqa: ASYNC110 - what another process does has no event
            await asyncio.sleep(0.01)


def growth(pid: int, before: int, *, has_peak: bool) -> int:
    return (peak_bytes(pid) if has_peak else resident_bytes(pid)) - before


SERVERS = ["uvicorn", "hypercorn", "granian"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_peer_that_reads_not_holds_the_application_back(server: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with streaming(server, tmp_path) as (pump, ask):
            pid: int = ask("/")["pid"]
            before, has_peak = resident_bytes(pid), reset_peak(pid)
            pump.stream.pause_reading()
            pump.stream.write(b"w")
            written = await until_stuck(lambda: int(ask("/").get("written", 0)))
            assert written < TOTAL_BYTES
            grown = growth(pid, before, has_peak=has_peak)
            assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB more"
            pump.stream.resume_reading()
            await until_all(lambda: pump.read_bytes >= TOTAL_BYTES)
            assert pump.read_sum == whole_sum()
            assert growth(pid, before, has_peak=has_peak) < GROWTH_BYTES_MAX
            pump.stream.close()
            await until(lambda: pump.ended)

    asyncio.run(main())


@pytest.mark.parametrize("server", SERVERS)
def test_an_application_that_reads_not_holds_its_peer_back(server: str, tmp_path: Path) -> None:
    whole = hashlib.sha256(b"p")
    for piece in pieces():
        whole.update(piece)

    async def main() -> None:
        async with streaming(server, tmp_path) as (pump, ask):
            pid: int = ask("/")["pid"]
            pump.stream.write(b"p")
            await until(lambda: ask("/").get("read") == 1)
            before, has_peak = resident_bytes(pid), reset_peak(pid)
            pump.write_all()
            written = await until_stuck(lambda: pump.written_bytes)
            assert written < TOTAL_BYTES
            grown = growth(pid, before, has_peak=has_peak)
            assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB more"
            ask("/resume")
            await until_all(lambda: ask("/")["read"] > TOTAL_BYTES)
            assert ask("/")["sum"] == whole.hexdigest()
            assert growth(pid, before, has_peak=has_peak) < GROWTH_BYTES_MAX
            pump.stream.close()
            await until(lambda: pump.ended)

    asyncio.run(main())
