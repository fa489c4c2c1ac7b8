"""Leadership handed over by command, and by a leader that is stopped.

Half a second is all that a transfer has, and a leader that stops takes for it. On a machine that
is too busy for that nobody is harmed, and it is done once more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from rafthttp.testing.processes import ServeCluster, eventually, run_cli

pytestmark = pytest.mark.process

TRIES = 5


def transferred(cluster: ServeCluster, *, named: bool) -> bool:
    """By a command at a follower; False: the old leader leads on, or another came meanwhile."""
    old = cluster.wait_until_whole()
    target, asked = (node for node in cluster.nodes if node is not old)
    done = run_cli("transfer", asked.url, *(("--to", target.id) if named else ()))
    new = cluster.wait_until_whole()
    leads = re.fullmatch(r"(n\d) leads\n", done.stdout)
    if done.returncode != 0 or leads is None:
        assert (done.returncode, done.stdout) == (1, ""), done
        return False
    assert not named or leads[1] == target.id
    return leads[1] == new.id and new is not old


def told_who_leads(cluster: ServeCluster) -> bool:
    """A follower that is asked to let another lead says who does; False: another came meanwhile."""
    leader = cluster.wait_until_whole()
    follower = next(node for node in cluster.nodes if node is not leader)
    answer = httpx.post(f"{follower.url}/transfer", trust_env=False)
    if answer.status_code == 200 or cluster.wait_until_whole() is not leader:
        return False
    assert (answer.status_code, answer.json()["outcome"]) == (503, "definite")
    return bool(answer.json()["leader"] == {"id": leader.id, "address": leader.address})


def test_transfer_by_command(cluster: ServeCluster) -> None:
    """Any node may be asked; who cannot lead is refused, and the old leader leads on."""
    assert any(transferred(cluster, named=True) for _ in range(TRIES))
    assert any(transferred(cluster, named=False) for _ in range(TRIES))
    assert any(told_who_leads(cluster) for _ in range(TRIES))
    refused = run_cli("transfer", cluster.nodes[1].url, "--to", "n9")
    assert refused.returncode == 1
    assert refused.stderr == "rafthttp: `to` is the id of no voter of this cluster\n"


def stopped_well(cluster: ServeCluster, hand_over: bool) -> bool:
    """Whether the leader that stops steps down first, or does not; and in time."""
    leader = cluster.wait_until_whole()
    before = len(leader.output())
    seconds = leader.terminate()
    stepped_down = re.search(
        rf"{leader.id} is follower in term \d+, leader unknown", leader.output()[before:]
    )
    successor = cluster.leader()

    def written() -> bool:
        with suppress(httpx.HTTPError):
            return cluster.http.put(f"{successor.url}/kv/a", content=b"2").status_code == 204
        return False

    eventually(written, "the others go on")
    cluster.start(leader)
    return seconds < 2 and (stepped_down is not None) == hand_over


@pytest.mark.parametrize("hand_over", [True, False])
def test_a_leader_that_stops_hands_over(
    clusters: Callable[..., ServeCluster], hand_over: bool
) -> None:
    cluster = clusters(options=() if hand_over else ("--hand-over", "0"))
    leader = cluster.start_all()
    assert cluster.http.put(f"{leader.url}/kv/a", content=b"1").status_code == 204
    assert any(stopped_well(cluster, hand_over) for _ in range(TRIES)), cluster.logs()
