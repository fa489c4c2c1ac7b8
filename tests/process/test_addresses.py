"""Where nodes bind and where they are reached: IPv6, names, an address of its own to advertise."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServeCluster]:
    """Three nodes that are not started, and whose addresses the test may change."""
    made = ServeCluster(tmp_path / "cluster")
    try:
        yield made
    finally:
        made.close()


def start(cluster: ServeCluster) -> ServeProcess:
    n1, n2, n3 = cluster.nodes
    cluster.start(n1, "--bootstrap")
    cluster.start(n2, "--join", n1.url)
    cluster.start(n3, "--join", n2.url)
    return cluster.wait_until_whole()


def addresses(cluster: ServeCluster, node: ServeProcess) -> set[str]:
    status = cluster.status(node)
    assert status is not None
    return {server["address"] for server in status["servers"]}


def works_after_a_kill(cluster: ServeCluster, leader: ServeProcess) -> None:
    for number, node in enumerate(cluster.nodes):
        assert cluster.http.put(f"{node.url}/kv/k{number}", content=b"v").status_code == 204
    leader.kill()
    survivor = cluster.leader()
    assert cluster.http.get(f"{survivor.url}/kv/k2").content == b"v"


def test_ipv6(cluster: ServeCluster) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
    for node in cluster.nodes:
        node.address = f"[::1]:{node.address.rpartition(':')[2]}"
    leader = start(cluster)
    assert addresses(cluster, leader) == {node.address for node in cluster.nodes}
    works_after_a_kill(cluster, leader)


def test_a_name_and_an_address_of_its_own_to_advertise(cluster: ServeCluster) -> None:
    """Bound to 127.0.0.1, known to the others as localhost."""
    for node in cluster.nodes:
        port = node.address.rpartition(":")[2]
        node.extra = ["--advertise", f"localhost:{port}"]
    leader = start(cluster)
    assert addresses(cluster, leader) == {
        f"localhost:{node.address.rpartition(':')[2]}" for node in cluster.nodes
    }
    status = cluster.status(cluster["n2"])
    assert status is not None
    assert status["leader"]["address"].startswith("localhost:")
    works_after_a_kill(cluster, leader)


def test_a_node_that_comes_back_at_another_address_is_followed(cluster: ServeCluster) -> None:
    """S57: it joins again under its id; the configuration follows, its log stays."""
    leader = start(cluster)
    moved = next(node for node in cluster.nodes if node is not leader)
    others = [node for node in cluster.nodes if node is not moved]
    moved.send(signal.SIGTERM)
    assert moved.process is not None
    moved.process.wait(10)
    with socket.create_server(("127.0.0.1", 0)) as free:
        moved.address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster.start(moved, *(word for node in others for word in ("--join", node.url)))
    cluster.wait_until_whole()
    assert moved.address in addresses(cluster, leader)
    assert cluster.http.put(f"{moved.url}/kv/here", content=b"v").status_code == 204
