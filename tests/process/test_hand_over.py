"""Leadership handed over by command, and by a leader that is stopped."""

import re
from collections.abc import Callable

import httpx
import pytest

from rafthttp.testing.processes import ServeCluster, eventually, run_cli

pytestmark = pytest.mark.process


def test_transfer_by_command(cluster: ServeCluster) -> None:
    """Any node may be asked; who cannot lead is refused, and the old leader leads on."""
    leader = cluster.leader()
    target, asked = (node for node in cluster.nodes if node is not leader)
    done = run_cli("transfer", asked.url, "--to", target.id)
    assert (done.returncode, done.stdout) == (0, f"{target.id} leads\n"), done.stderr
    assert cluster.wait_until_whole() is target
    anybody = run_cli("transfer", asked.url)
    assert anybody.returncode == 0, anybody.stderr
    assert cluster.wait_until_whole() is not target
    refused = run_cli("transfer", asked.url, "--to", "n9")
    assert refused.returncode == 1
    assert refused.stderr == "rafthttp: n9 is no member\n"
    follower = next(node for node in cluster.nodes if node is not cluster.leader())
    answer = httpx.post(f"{follower.url}/transfer", trust_env=False)
    assert (answer.status_code, answer.json()["outcome"]) == (503, "definite")
    assert answer.json()["leader"]["id"] == cluster.leader().id


@pytest.mark.parametrize("hand_over", [True, False])
def test_a_leader_that_stops_hands_over(
    clusters: Callable[..., ServeCluster], hand_over: bool
) -> None:
    cluster = clusters(options=() if hand_over else ("--hand-over", "0"))
    leader = cluster.start_all()
    assert cluster.http.put(f"{leader.url}/kv/a", content=b"1").status_code == 204
    assert leader.terminate() < 2
    stepped_down = re.search(
        rf"{leader.id} is follower in term \d+, leader unknown", leader.output()
    )
    assert (stepped_down is not None) == hand_over, leader.output()
    successor = cluster.leader()

    def written() -> bool:
        return cluster.http.put(f"{successor.url}/kv/a", content=b"2").status_code == 204

    assert eventually(written, "the others go on")
