"""Three members that reach each other only through a proxy: they form, are cut, are reloaded."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from rafthttp.kv.client import KVClient
from rafthttp.testing.processes import eventually
from rafthttp.testing.proxies import ProxiedCluster, Proxy

pytestmark = pytest.mark.proxy

RELOADS = 20
# Each cut of an idle stream ends in a fresh one; the cluster keeps a handful that fall silent.
CUTS = 6
IDLE_SECONDS = 1

PROXIES = [
    pytest.param("nginx.conf", "raw", id="nginx-raw"),
    pytest.param("haproxy.cfg", "raw", id="haproxy-raw"),
    pytest.param("haproxy-tcp.cfg", "raw", id="haproxy-tcp-raw"),
    pytest.param("nginx.conf", "websocket", id="nginx-websocket"),
    pytest.param("haproxy.cfg", "websocket", id="haproxy-websocket"),
]
Behind = Callable[..., tuple[ProxiedCluster, Proxy]]


class Writer:
    """Writes small values through the proxy, one after the other; each must be acknowledged."""

    def __init__(self, cluster: ProxiedCluster) -> None:
        self.urls = [cluster.public_url(node) for node in cluster.nodes]
        self.token = cluster.token
        self.acknowledged = 0
        self.stopping = threading.Event()

    async def write(self) -> None:
        async with KVClient(self.urls, token=self.token, timeout=15.0, discover=False) as client:
            while not self.stopping.is_set():
                await client.put(f"key{self.acknowledged}", b"%d" % self.acknowledged)
                self.acknowledged += 1
                await asyncio.sleep(0.02)

    async def check(self) -> None:
        async with KVClient(self.urls, token=self.token, timeout=15.0, discover=False) as client:
            keys = {item.key async for item in client.list("key")}
            assert keys >= {f"key{number}" for number in range(self.acknowledged)}
            last = self.acknowledged - 1
            assert await client.get(f"key{last}") == b"%d" % last


@contextmanager
def light_writes(cluster: ProxiedCluster) -> Generator[Callable[[], Writer]]:
    """Yields a function that waits for one more acknowledged write."""
    writer = Writer(cluster)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(lambda: asyncio.run(writer.write()))

        def one_more() -> Writer:
            before = writer.acknowledged
            eventually(lambda: writer.acknowledged > before or written.done(), "writes go on")
            if written.done():
                written.result()
            return writer

        try:
            one_more()
            yield one_more
        finally:
            writer.stopping.set()
        written.result()


def assert_same_reign(cluster: ProxiedCluster, leader: str, term: int) -> None:
    assert cluster.terms() == {term}
    assert cluster.leader().id == leader


@pytest.mark.parametrize(("template", "carrier"), PROXIES)
def test_idle_cuts_and_reloads_change_no_leader(
    behind: Behind, template: str, carrier: str
) -> None:
    cluster, proxy = behind(template, idle=f"{IDLE_SECONDS}s", options=("--carrier", carrier))
    leader = cluster.wait_until_whole()
    (term,) = cluster.terms()

    cut_idle_streams(cluster)
    assert_same_reign(cluster, leader.id, term)

    # Every reload cuts all streams of all members at once.
    before = cluster.streams_accepted()
    with light_writes(cluster) as one_more:
        writer = one_more()
        for _ in range(RELOADS):
            proxy.reload()
            one_more()
    assert cluster.streams_accepted() >= before + 2 * RELOADS
    assert_same_reign(cluster, leader.id, term)
    asyncio.run(writer.check())

    # A dead leader's port goes on answering. The voters' streams to each other were cut long ago.
    leader.kill()
    new = cluster.leader(timeout=5.0)  # a tenth of a second where nobody else is busy
    cluster.start(leader)
    assert cluster.wait_until_whole().id == new.id
    asyncio.run(writer.check())


def cut_idle_streams(cluster: ProxiedCluster) -> None:
    """Nobody writes: what carries no heartbeats falls silent, is cut, and is dialled anew."""
    before, begin = cluster.streams_accepted(), time.monotonic()

    def cuts() -> int:
        return cluster.streams_accepted() - before

    eventually(lambda: cuts() >= CUTS, "idle streams were cut and redialled")
    # One silent stream a follower; its heartbeats would be as many again.
    assert cuts() <= 2 * (1 + (time.monotonic() - begin) / IDLE_SECONDS)
