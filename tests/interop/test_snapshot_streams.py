"""Snapshots on the way between the languages: cut, taken by themselves, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.interop import PATIENT, MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.interop_tapped import put_behind_relay
from rafthttp.testing.interop_writer import Writer
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import eventually
from rafthttp.testing.tap import Taps

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

MEBIBYTE = 1 << 20


def propose(leader: Member, prefix: str, count: int, size: int) -> None:
    ids = [f"{prefix}-{number}" for number in range(count)]
    body = json.dumps({"ids": ids, "size": size}).encode()
    results = leader.post("applies", body)["results"]
    assert all(result.get("index") for result in results), results


def wait_first_index(member: Member, beyond: int) -> None:
    """Wait until its log begins behind `beyond`."""
    begins = f"the log of {member.id} begins behind {beyond}"
    eventually(lambda: member.wait_serving()["first_index"] > beyond, begins)


def configurations(member: Member) -> list[int]:
    """Indexes of the configuration entries in its log."""
    return [entry["index"] for entry in member.log() if entry["type"] == 5]


@pytest.mark.parametrize("shape", ["gpp", "pgg"])
def test_a_stream_that_is_cut_is_sent_again(
    make_cluster: ClusterFactory, tmp_path: Path, shape: str
) -> None:
    """Twice the connection ends in the middle of 16 MiB; the third brings all of it."""
    with Taps() as taps:
        cluster = make_cluster(shape, options={**PATIENT, "trailing_logs": 0}, go={"no_sync": True})
        away = cluster.members[2]
        put_behind_relay(cluster, away, taps)
        leader = cluster.start_all()
        assert away.language != leader.language
        # Removed, wiped and added again: Go waits longer with each time it finds nobody there.
        leader.post("remove", id=away.id)
        away.kill()
        away.wipe()
        propose(leader, "large", 16, MEBIBYTE)
        taken = leader.post("snapshot")
        assert taken["size"] > 16 * MEBIBYTE
        relay = taps.relays[away.id]
        relay.cut(after=8 * MEBIBYTE, times=2)
        cluster.join(away, via=leader)
        cluster.apply(command("behind"))
        assert cluster.wait_level()["applied"] == 17
        assert relay.cuts == 2
        assert relay.passed_max > 16 * MEBIBYTE
        assert away.wait_serving()["first_index"] > taken["index"]
        assert away.data_dir is not None
        assert not list(away.data_dir.rglob("*tmp*")), "half a snapshot was left"
        again = [member.post("snapshot")["sha256"] for member in cluster.members]
        assert len(set(again)) == 1, again


@pytest.mark.parametrize("shape", ["gpp", "pgg"])
def test_the_configuration_in_a_snapshot_is_followed(
    make_cluster: ClusterFactory, shape: str
) -> None:
    """A follower that was away gets the members, a nonvoter too, from nothing but the snapshot."""
    cluster = make_cluster(shape, options={"trailing_logs": 0})
    leader, away = cluster.start_all(), cluster.members[2]
    nonvoter = cluster.add("g" if leader.language == "python" else "p")
    nonvoter.start()
    nonvoter.wait_serving()
    cluster.wait_level(cluster.members[:3])
    away.kill()
    added = leader.post("addnonvoter", id=nonvoter.id, address=nonvoter.address)["index"]
    for number in range(20):
        cluster.apply(command(f"meanwhile-{number}"))
    taken = leader.post("snapshot")
    assert taken["index"] > added

    away.start()
    cluster.apply(command("behind"))
    assert cluster.wait_level()["applied"] == 21
    assert away.wait_serving()["first_index"] > taken["index"]
    assert configurations(away) == []
    assert away.servers()[nonvoter.id] == (nonvoter.address, "nonvoter")
    assert all(member.servers() == leader.servers() for member in cluster.members)
    for member in cluster.members:
        if member.language == "python":  # hashicorp/raft tells 0 for its index
            assert member.get("configuration")["index"] == added
    # It knows whom to ask: with the leader gone, the two voters that are left elect one.
    leader.kill()
    new = cluster.wait_leader()
    assert new.id in {cluster.members[1].id, away.id}
    cluster.apply(command("under another"))
    assert cluster.wait_level()["applied"] == 22
    assert nonvoter.wait_serving()["state"] == "Follower"


@pytest.mark.parametrize(
    ("shape", "rounds"),
    [
        ("gpp", 1),
        ("pgg", 1),
        pytest.param("gpp", 4, marks=pytest.mark.soak),
        pytest.param("pgg", 4, marks=pytest.mark.soak),
    ],
)
def test_a_follower_is_installed_while_writes_go_on(
    make_cluster: ClusterFactory, shape: str, rounds: int
) -> None:
    """The leader compacts at its own threshold; whoever was away gets a snapshot, then entries."""
    cluster = make_cluster(
        shape,
        options={"snapshot_threshold": 500, "snapshot_interval": 0.2, "trailing_logs": 50},
    )
    leader, away = cluster.start_all(), cluster.members[2]
    with Writer(cluster, clients=2) as writer:
        for _ in range(rounds):  # from the second on it has a snapshot of its own, too
            writer.wait_acknowledged(500)
            away.kill()
            end = eventually(leader.stats, "the leader answers")["last_index"]
            wait_first_index(leader, end + 500)  # compacted: what the other needs is no more
            away.start()
            wait_first_index(away, end)
        writer.wait_acknowledged(500)
    assert cluster.wait_leader() is leader
    assert cluster.wait_level()["applied"] >= len(writer.acknowledged) > 1000
    assert cluster.assert_logs_equal() > 0
    for member in cluster.members:
        writer.assert_kept(member)


def test_a_wiped_voter_comes_back_under_its_id(make_cluster: ClusterFactory) -> None:
    """Under a leader in Go it is released by a plain leave, and then joins as a new one does."""
    cluster = make_cluster("gpp", options={"trailing_logs": 0})
    leader, wiped = cluster.start_all(), cluster.members[2]
    for number in range(20):
        cluster.apply(command(f"before-{number}"))
    taken = leader.post("snapshot")["index"]
    wiped.kill()
    wiped.wipe()
    wiped.start(join=leader.address)
    eventually(lambda: len(configurations(leader)) == 2, "it was removed and added again")
    cluster.wait_voter(wiped)
    cluster.apply(command("behind"))
    assert cluster.wait_level()["applied"] == 21
    assert wiped.wait_serving()["first_index"] > taken
    assert cluster.wait_leader() is leader
