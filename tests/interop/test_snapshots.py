"""Snapshots between the languages."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from rafthttp.testing.interop import PATIENT, MixedCluster
from rafthttp.testing.ledger import command

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

MEBIBYTES = 64


@pytest.mark.parametrize("shape", ["gpp", "pgg"])
def test_a_wiped_follower_is_sent_64_mebibytes(make_cluster: ClusterFactory, shape: str) -> None:
    """InstallSnapshot to the other language; then all write the same snapshot, byte for byte.

    The leader's log is compacted away, so nothing else can have brought the follower back. What the
    snapshot says of the members is what a follower that has no log of it goes by.
    """
    cluster = make_cluster(shape, options={**PATIENT, "trailing_logs": 0}, go={"no_sync": True})
    leader, wiped = cluster.start_all(), cluster.members[2]
    assert wiped.language != leader.language
    for number in range(MEBIBYTES // 16):
        ids = [f"large-{number}-{part}" for part in range(16)]
        results = leader.post("applies", json.dumps({"ids": ids, "size": 1 << 20}).encode())
        assert all(result.get("index") for result in results["results"]), results
    leader.post("remove", id=wiped.id)
    wiped.kill()
    wiped.wipe()
    cluster.apply(command("behind-the-removal"))  # Go takes no snapshot right behind one
    assert leader.post("snapshot")["size"] > MEBIBYTES << 20

    cluster.join(wiped, via=leader)
    cluster.apply(command("behind-the-join"))
    assert cluster.wait_level()["applied"] == MEBIBYTES + 2
    assert wiped.wait_serving()["first_index"] > MEBIBYTES
    assert wiped.servers() == leader.servers()
    taken = [member.post("snapshot") for member in cluster.members]
    assert all(snapshot == taken[0] for snapshot in taken), taken
