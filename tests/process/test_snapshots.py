"""`rafthttp serve` with a low threshold: logs are compacted, and nobody loses anything by it."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually

pytestmark = pytest.mark.process

OPTIONS = ("--snapshot-threshold", "40", "--snapshot-interval", "0.05", "--trailing-logs", "0")


def stats_of(cluster: ServeCluster, node: ServeProcess) -> dict[str, Any]:
    stats: dict[str, Any] = (cluster.status(node) or {}).get("stats", {})
    return stats


def put(cluster: ServeCluster, node: ServeProcess, first: int, last: int) -> None:
    for number in range(first, last + 1):
        answer = cluster.http.put(f"{node.url}/kv/k{number}", content=b"%d" % number)
        assert answer.status_code == 204


def wait_for_snapshot(cluster: ServeCluster, node: ServeProcess) -> None:
    eventually(
        lambda: stats_of(cluster, node).get("last_snapshot_index", 0) > 40,
        f"{node.id} takes a snapshot",
    )


def catch_up(cluster: ServeCluster, node: ServeProcess, leader: ServeProcess) -> None:
    def applied(of: ServeProcess) -> int | None:
        return (cluster.status(of) or {}).get("applied_index")

    eventually(
        lambda: applied(node) is not None and applied(node) == applied(leader),
        f"{node.id} has everything",
    )


def holds(cluster: ServeCluster, node: ServeProcess, last: int) -> None:
    """What the node has itself, without asking its leader."""
    for number in range(1, last + 1):
        answer = cluster.http.get(f"{node.url}/kv/k{number}", params={"stale": "true"})
        assert answer.text == str(number)


def test_a_wiped_node_and_a_crash_of_all_find_everything(
    clusters: Callable[..., ServeCluster],
) -> None:
    cluster = clusters(3, OPTIONS)
    leader = cluster.start_all()
    put(cluster, leader, 1, 90)
    for node in cluster.nodes:
        wait_for_snapshot(cluster, node)
        assert list((node.data_dir / "snapshots").iterdir())

    wiped = next(node for node in cluster.nodes if node is not leader)
    wiped.kill()
    shutil.rmtree(wiped.data_dir)
    cluster.start(wiped, "--join", leader.url)
    cluster.wait_until_whole()
    assert stats_of(cluster, wiped)["last_snapshot_index"] > 40
    catch_up(cluster, wiped, leader)
    holds(cluster, wiped, 90)

    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        cluster.start(node)
    leader = cluster.wait_until_whole()
    put(cluster, leader, 91, 95)
    for node in cluster.nodes:
        catch_up(cluster, node, leader)
        holds(cluster, node, 95)


def test_a_node_whose_log_is_gone_while_its_snapshots_are_there_does_not_start(
    clusters: Callable[..., ServeCluster],
) -> None:
    """S62: it has forgotten its votes."""
    cluster = clusters(1, OPTIONS)
    node = cluster.start_all()
    put(cluster, node, 1, 50)
    wait_for_snapshot(cluster, node)
    node.kill()
    for path in node.data_dir.glob("raft.*"):
        path.unlink()
    cluster.start(node, "--bootstrap")
    assert node.process is not None
    assert node.process.wait(30) == 1
    assert "holds snapshots, and no log any more" in node.output()
