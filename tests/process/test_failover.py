"""Kill -9 of the leader under load, and of all at once: no acknowledged write is lost."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from rafthttp.kv.commands import decode
from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually
from rafthttp.testing.replay import applied_commands

pytestmark = pytest.mark.process

WRITERS = 12


class Load:
    """Clients that write unique keys, each exactly once, and note what they were told."""

    def __init__(self, cluster: ServeCluster) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self._urls = [node.url for node in cluster.nodes]
        self._ids = itertools.count(1)
        self._stop = False

    async def run(self) -> None:
        timeout = httpx.Timeout(15.0, connect=2.0)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            await asyncio.gather(*(self._write(client) for _ in range(WRITERS)))

    def stop(self) -> None:
        self._stop = True

    async def _write(self, client: httpx.AsyncClient) -> None:
        while not self._stop:
            key = f"id-{next(self._ids)}"
            url = random.choice(self._urls)
            try:
                answer = await client.put(f"{url}/kv/{key}", content=key.encode())
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self.refused.append(key)
                await asyncio.sleep(0.01)  # a dead node refuses at once; leave time to the others
                continue
            except httpx.TransportError:
                self.unknown.append(key)
                continue
            if answer.status_code == 204:
                self.acknowledged.append(key)
            elif answer.status_code == 503:
                assert answer.json()["outcome"] == "definite"
                self.refused.append(key)
            else:
                assert answer.status_code == 504, answer.text
                assert answer.json()["outcome"] == "unknown"
                self.unknown.append(key)


def applied_keys(node: ServeProcess) -> list[str]:
    """The keys of all commands a stopped node has applied, in order."""
    return [decode(command).key for command in applied_commands(node.data_dir, node.id)]


def check_histories(cluster: ServeCluster, load: Load) -> None:
    """Stop all, replay each log, compare with what clients were told."""
    commits = {s["commit_index"] for s in settled(cluster)}
    assert len(commits) == 1
    for node in cluster.nodes:
        node.terminate()
    histories = {node.id: applied_keys(node) for node in cluster.nodes}
    assert histories["n1"] == histories["n2"] == histories["n3"]
    counts = Counter(histories["n1"])
    assert [key for key, count in counts.items() if count > 1] == []
    assert [key for key in load.acknowledged if key not in counts] == []
    assert [key for key in load.refused if key in counts] == []
    known = {*load.acknowledged, *load.refused, *load.unknown}
    assert set(counts) <= known


def settled(cluster: ServeCluster) -> list[dict[str, int]]:
    """The status pages, once all have applied the same log to its end."""

    def probe() -> list[dict[str, int]] | None:
        pages = [page for node in cluster.nodes if (page := cluster.status(node)) is not None]
        marks = {(p["last_index"], p["commit_index"], p["applied_index"]) for p in pages}
        alike = len(pages) == len(cluster.nodes) and len(marks) == 1
        return pages if alike and len(set(marks.pop())) == 1 else None

    return eventually(probe, "all nodes have applied the same log")


def under_load(cluster: ServeCluster, disturb: Callable[[Load], None]) -> Load:
    async def main() -> Load:
        load = Load(cluster)
        running = asyncio.create_task(load.run())
        disturbing = asyncio.create_task(asyncio.to_thread(disturb, load))
        await asyncio.wait({running, disturbing}, return_when=asyncio.FIRST_COMPLETED)
        load.stop()
        await disturbing
        await running
        return load

    return asyncio.run(main())


def kill_the_leader(cluster: ServeCluster, load: Load, times: int) -> None:
    for _ in range(times):
        leader = cluster.wait_until_whole()
        before = len(load.acknowledged)
        eventually(lambda b=before: len(load.acknowledged) > b + 20, "writes are acknowledged")  # type: ignore[misc] # mypy infers no lambda with defaults
        leader.kill()
        before = len(load.acknowledged)
        eventually(lambda b=before: len(load.acknowledged) > b, "another leader acknowledges")  # type: ignore[misc] # likewise
        cluster.start(leader)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(20, marks=pytest.mark.timeout(180)),
        pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_kill_9_of_the_leader_under_load(cluster: ServeCluster, times: int) -> None:
    load = under_load(cluster, lambda load: kill_the_leader(cluster, load, times))
    cluster.wait_until_whole()
    assert len(load.acknowledged) > 20 * times
    check_histories(cluster, load)


def test_kill_9_of_all_three_at_once(cluster: ServeCluster) -> None:
    """S3, S61: terms go on, nothing committed is lost, the first start's flags do nothing."""

    def kill_all(load: Load) -> None:
        for _ in range(3):
            before = len(load.acknowledged)
            eventually(lambda b=before: len(load.acknowledged) > b + 50, "writes")  # type: ignore[misc] # likewise
            term = max(page["term"] for node in cluster.nodes if (page := cluster.status(node)))
            for node in cluster.nodes:
                if node.process is not None:
                    node.process.kill()
            for node in cluster.nodes:
                node.kill()
            cluster.start(cluster.nodes[0], "--bootstrap")
            cluster.start(cluster.nodes[1])
            cluster.start(cluster.nodes[2], "--join", cluster.nodes[1].url)
            cluster.wait_until_whole()
            pages = [page for node in cluster.nodes if (page := cluster.status(node))]
            assert all(page["term"] > term for page in pages)
            assert len({page["cluster_id"] for page in pages}) == 1
            assert all(len(page["servers"]) == 3 for page in pages)

    load = under_load(cluster, kill_all)
    check_histories(cluster, load)
