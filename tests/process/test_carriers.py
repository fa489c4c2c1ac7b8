"""`serve --carrier`: three processes each, and what their upgrades really ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import ServeCluster, eventually, serve_cluster

pytestmark = pytest.mark.process


@dataclass
class Tap:
    """Passes bytes on to a node, and keeps what each request asks to upgrade to."""

    port: int
    node_port: int
    upgrades: set[str] = field(default_factory=set[str])

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        handling: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handling.add(task)
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.pass_on(reader, writer)
            writer.transport.abort()
            handling.discard(task)

        server = await asyncio.start_server(handle, "127.0.0.1", self.port)
        ready.set()
        await stop.wait()
        server.close()
        for task in handling:
            task.cancel()
        if handling:
            await asyncio.wait(set(handling))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name == b"upgrade":
                self.upgrades.add(value.strip().decode())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.node_port)
        try:
            far_writer.write(head)
            pumps = [
                asyncio.ensure_future(pump(reader, far_writer)),
                asyncio.ensure_future(pump(far_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in pumps:
                    one.cancel()
                await asyncio.wait(pumps)
        finally:
            far_writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@contextmanager
def tapped(node_address: str) -> Generator[Tap]:
    (port,) = free_ports(1)
    tap = Tap(port, int(node_address.rpartition(":")[2]))
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(tap.serve(ready, stop)))
    thread.start()
    try:
        assert ready.wait(10.0)
        yield tap
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10.0)
        loop.close()


@pytest.mark.parametrize(
    ("carrier", "asked"), [("raw", {"raft"}), ("websocket", {"websocket"}), ("auto", {"raft"})]
)
def test_a_cluster_by_each_carrier(tmp_path: Path, carrier: str, asked: set[str]) -> None:
    """`auto` takes the raw upgrade wherever `serve` is at the other end."""
    with (
        serve_cluster(tmp_path / "cluster", 3, ("--carrier", carrier)) as cluster,
        ExitStack() as on,
    ):
        taps = [on.enter_context(tapped(node.address)) for node in cluster.nodes]
        for node, tap in zip(cluster.nodes, taps, strict=True):
            node.extra += ["--advertise", f"127.0.0.1:{tap.port}"]
        leader = cluster.start_all()
        write_and_read(cluster, "before")
        leader.kill()
        eventually(lambda: cluster.leader() is not leader, "another leads")
        cluster.start(leader)
        cluster.wait_until_whole()
        write_and_read(cluster, "after")
        assert set[str]().union(*(tap.upgrades for tap in taps)) == asked
        assert all(tap.upgrades for tap in taps), "each was dialled"


def write_and_read(cluster: ServeCluster, key: str) -> None:
    for node in cluster.nodes:
        url = f"{node.url}/kv/{key}-{node.id}"
        assert cluster.http.put(url, content=b"v" * 100_000).status_code == 204
    for node in cluster.nodes:
        for other in cluster.nodes:
            assert cluster.http.get(f"{node.url}/kv/{key}-{other.id}").text == "v" * 100_000
