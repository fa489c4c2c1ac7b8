"""Three members that reach each other only through a proxy: they form, are cut, are reloaded."""

import asyncio
import threading
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
CUTS = 4

PROXIES = [
    pytest.param("nginx.conf", "raw", id="nginx-raw"),
    pytest.param("haproxy.cfg", "raw", id="haproxy-raw"),
    pytest.param("haproxy-tcp.cfg", "raw", id="haproxy-tcp-raw"),
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
def test_reloads_and_idle_cuts_change_no_leader(
    behind: Behind, template: str, carrier: str
) -> None:
    cluster, proxy = behind(template, idle="1s", options=())
    leader = cluster.wait_until_whole().id
    (term,) = cluster.terms()

    # Nobody writes: every stream that carries no heartbeats falls silent, is cut, and dialled anew.
    before = cluster.streams_accepted()
    eventually(
        lambda: cluster.streams_accepted() >= before + CUTS, "idle streams were cut and redialled"
    )
    assert_same_reign(cluster, leader, term)

    # Every reload cuts all streams of all members at once.
    before = cluster.streams_accepted()
    with light_writes(cluster) as one_more:
        writer = one_more()
        for _ in range(RELOADS):
            proxy.reload()
            one_more()
    assert cluster.streams_accepted() >= before + 2 * RELOADS
    assert_same_reign(cluster, leader, term)
    asyncio.run(writer.check())
