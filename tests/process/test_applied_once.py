"""Clients that ask again, blindly, until they are answered; the leader is killed meanwhile."""

import asyncio
import random
from collections import Counter

import httpx
import pytest

from rafthttp.kv.commands import decode
from rafthttp.kv.idempotency import HEADER
from rafthttp.testing.processes import ServeCluster, eventually
from rafthttp.testing.replay import applied_commands, logged_commands

pytestmark = pytest.mark.process

CLIENTS = 64
KILLS = 2
# Some clients give a request up while it is under way, and repeat it elsewhere.
READ_SECONDS = (15.0, 15.0, 0.02)


class BlindClients:
    """Each writes one new id after the other, and repeats it, anywhere, until it gets 204."""

    def __init__(self, cluster: ServeCluster) -> None:
        self.done: list[str] = []
        self.repeats = 0
        self._urls = [node.url for node in cluster.nodes]
        self._stop = False

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            await asyncio.gather(*(self._write(client, number) for number in range(CLIENTS)))

    def stop(self) -> None:
        self._stop = True

    async def _write(self, client: httpx.AsyncClient, number: int) -> None:
        count = 0
        while not self._stop:
            count += 1
            name = f"id-{number}-{count}"
            while not await self._is_done(client, name):
                self.repeats += 1
                await asyncio.sleep(0.01)  # a dead node refuses at once
            self.done.append(name)

    async def _is_done(self, client: httpx.AsyncClient, name: str) -> bool:
        url = f"{random.choice(self._urls)}/kv/{name}"
        timeout = httpx.Timeout(random.choice(READ_SECONDS), connect=2.0)
        headers = {HEADER: f'"{name}"'}
        try:
            answer = await client.put(url, content=b"", headers=headers, timeout=timeout)
        except httpx.TransportError:
            return False
        assert answer.status_code in {204, 503, 504}, answer.text
        return answer.status_code == 204


@pytest.mark.timeout(180)
def test_every_id_exactly_once_under_kill_9_of_the_leader(cluster: ServeCluster) -> None:
    """S35 with blind repeats: 64 clients, no id twice, no id lost."""

    def kill_leaders(clients: BlindClients) -> None:
        for _ in range(KILLS):
            leader = cluster.wait_until_whole()
            for kill in (True, False):
                before = len(clients.done)
                eventually(lambda b=before: len(clients.done) > b + 100, "writes are done")  # type: ignore[misc] # mypy infers no lambda with defaults
                if kill:
                    leader.kill()
            cluster.start(leader)
        cluster.wait_until_whole()

    async def main() -> BlindClients:
        clients = BlindClients(cluster)
        running = asyncio.create_task(clients.run())
        try:
            await asyncio.to_thread(kill_leaders, clients)
        finally:
            clients.stop()
            await running
        return clients

    clients = asyncio.run(main())
    assert clients.repeats > 0
    eventually(
        lambda: (
            len({(cluster.status(node) or {}).get("applied_index") for node in cluster.nodes}) == 1
        ),
        "all have applied all",
    )
    for node in cluster.nodes:
        node.terminate()
    for node in cluster.nodes:
        counts = Counter(decode(c).key for c in applied_commands(node.data_dir, node.id))
        assert [name for name, count in counts.items() if count > 1] == []
        assert set(counts) == set(clients.done)
    logged = len(logged_commands(cluster.nodes[0].data_dir, "n1"))
    assert logged > len(clients.done), "no request reached the log twice: nothing was shown"
    print(f"{len(clients.done)} ids, {clients.repeats} repeats, {logged} entries")
