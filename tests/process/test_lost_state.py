"""A voter whose data are gone comes back under its id: it is not counted as the same one (S62)."""

import shutil
from collections.abc import Callable

import pytest

from rafthttp.testing.processes import ServeCluster, eventually

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(clusters: Callable[..., ServeCluster]) -> ServeCluster:
    """Three members that give up a request to join after a second, to tell why and ask again."""
    made = clusters(3, ("--timeout", "1"))
    made.start_all()
    return made


def test_a_wiped_follower_elects_no_leader_that_lacks_an_acknowledged_write(
    cluster: ServeCluster,
) -> None:
    """The write is on the leader and on n-wiped only; then one of the two forgets it.

    1. The other follower is down. A write is acknowledged by the leader and `wiped`.
    2. The leader dies, `wiped` loses its data, the other follower comes back without the write.
    3. `wiped` and the other are two of three: did `wiped` vote, they would lead without the write.
    4. The old leader returns: it leads, `wiped` is removed, added anew, caught up and promoted.
    """
    leader = cluster.leader()
    wiped, other = (node for node in cluster.nodes if node is not leader)
    other.kill()
    answer = cluster.http.put(f"{leader.url}/kv/precious", content=b"kept")
    assert answer.status_code == 204
    leader.kill()
    wiped.kill()
    shutil.rmtree(wiped.data_dir)
    cluster.start(other)
    cluster.start(wiped, "--join", other.url, "--join", leader.url)
    eventually(lambda: (cluster.status(wiped) or {}).get("join_error"), "the wiped node asks")
    refused = cluster.http.put(f"{other.url}/kv/precious", content=b"lost")
    assert refused.status_code == 503, "a leader without the write was elected"
    for node in (wiped, other):
        assert (cluster.status(node) or {})["state"] != "leader"

    cluster.start(leader)
    cluster.wait_until_whole()
    for node in cluster.nodes:
        assert cluster.http.get(f"{node.url}/kv/precious").text == "kept"
    assert any(f"server {wiped.id} has lost its state" in node.output() for node in cluster.nodes)


def test_a_wiped_node_joins_again_by_itself(cluster: ServeCluster) -> None:
    leader = cluster.leader()
    wiped = next(node for node in cluster.nodes if node is not leader)
    assert cluster.http.put(f"{wiped.url}/kv/k", content=b"v").status_code == 204
    wiped.kill()
    shutil.rmtree(wiped.data_dir)
    cluster.start(wiped, "--join", leader.url)
    cluster.wait_until_whole()
    eventually(
        lambda: cluster.http.get(f"{wiped.url}/kv/k?consistency=stale").text == "v", "the data"
    )
    assert cluster.leader() is leader
    assert wiped.output().count("a member of cluster") == 2


def test_a_second_node_under_a_members_id_is_refused(cluster: ServeCluster) -> None:
    """A wrong --id is no reason to take the place of who has it."""
    leader = cluster.leader()
    before = (cluster.status(leader) or {})["servers"]
    stranger = ServeCluster(cluster.directory / "stranger", 1, ("--timeout", "1"))
    try:
        node = stranger.nodes[0]
        node.id = next(n.id for n in cluster.nodes if n is not leader)
        stranger.start(node, "--join", leader.url)
        error = eventually(lambda: (stranger.status(node) or {}).get("join_error"), "the refusal")
        assert "needs another id" in error
        assert (cluster.status(leader) or {})["servers"] == before
        node.terminate()
    finally:
        stranger.close()
