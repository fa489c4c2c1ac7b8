"""Lease reads in real processes: a leader stopped in its tracks serves nothing stale (S70)."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually

pytestmark = pytest.mark.process


def test_a_leader_that_was_paused_serves_no_stale_read(
    clusters: Callable[..., ServeCluster],
) -> None:
    """Reads that reach it while it is stopped are answered afterwards, and see the other's write.

    The kernel takes them in; when the process goes on, its loop may still believe in an earlier
    time, and no higher term has been read yet.
    """
    cluster = clusters(options=("--lease-reads",))
    leader = cluster.start_all()
    assert cluster.http.put(f"{leader.url}/kv/a", content=b"old").status_code == 204
    assert cluster.http.get(f"{leader.url}/kv/a").content == b"old"
    readers = [httpx.Client(timeout=20, trust_env=False) for _ in range(8)]
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        for reader in readers:  # connected, so that no accept comes before the read
            stack.enter_context(reader)
            assert reader.get(f"{leader.url}/kv/a").content == b"old"
        leader.send(signal.SIGSTOP)
        rest = [node for node in cluster.nodes if node is not leader]

        def written() -> bool:
            answer = httpx.put(f"{rest[0].url}/kv/a", content=b"new", timeout=10, trust_env=False)
            return answer.status_code == 204

        assert eventually(written, "another leads, and writes")
        asked = [pool.submit(reader.get, f"{leader.url}/kv/a") for reader in readers]
        eventually(lambda: unread_bytes(leader) >= 8 * 20, "the requests lie in its sockets")
        for node in rest:  # it is to hear of no higher term before it has read the requests
            node.send(signal.SIGSTOP)
        leader.send(signal.SIGCONT)
        eventually(lambda: is_no_leader(cluster, leader), "it has noticed by itself")
        for node in rest:
            node.send(signal.SIGCONT)
        for answer in (one.result() for one in asked):
            assert answer.status_code in {200, 503}, answer.text
            if answer.status_code == 200:
                assert answer.content == b"new"


def is_no_leader(cluster: ServeCluster, node: ServeProcess) -> bool:
    status = cluster.status(node)
    return status is not None and status["state"] != "leader"


def unread_bytes(node: ServeProcess) -> int:
    """What waits in the receive queues of the node's HTTP connections (Linux)."""
    port = int(node.address.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}"))
