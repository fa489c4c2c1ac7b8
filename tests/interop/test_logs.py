"""Logs of both kinds of member, compared entry by entry after what a log must survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.interop import PATIENT, MixedCluster
from rafthttp.testing.interop_member import Member, RefusedError
from rafthttp.testing.interop_tapped import Traffic, put_behind_relay
from rafthttp.testing.interop_writer import Writer
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import eventually
from rafthttp.testing.tap import Taps

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]


def propose(member: Member, prefix: str, count: int, size: int) -> list[dict[str, object]]:
    """Commands proposed at once; the fate of each."""
    ids = [f"{prefix}-{number}" for number in range(count)]
    body = json.dumps({"ids": ids, "size": size}).encode()
    results: list[dict[str, object]] = member.post("applies", body)["results"]
    return results


@pytest.mark.parametrize(("shape", "in_one"), [("ggp", 64), ("ppg", 1)])
def test_64_entries_of_a_mebibyte_in_a_row(
    make_cluster: ClusterFactory, tmp_path: Path, shape: str, in_one: int
) -> None:
    """A Go leader puts all 64 into one frame; ours, by its bytes, one into each."""
    with Taps(tmp_path / "tapped") as taps:
        cluster = make_cluster(
            shape,
            options=PATIENT,
            go={"max_append_entries": 64, "batch_apply_ch": True, "no_sync": True},
        )
        away = cluster.members[2]
        put_behind_relay(cluster, away, taps)
        leader = cluster.start_all()
        away.kill()
        results = propose(leader, "large", 64, 1 << 20)
        failed = [result for result in results if not result.get("index")]
        assert not failed, failed[:3]
        term = leader.wait_serving()["term"]
        before = len(taps.recordings())
        away.start()
        assert cluster.wait_level()["applied"] == 64
        assert leader.wait_serving()["term"] == term
        cluster.assert_logs_equal()
        traffic = Traffic(cluster, taps.recordings()[before:])
    assert traffic.violations == []
    assert traffic.entries_max[leader.id] == in_one


@pytest.mark.parametrize("entries_max", [8192, pytest.param(1, marks=pytest.mark.soak)])
def test_a_divergent_tail_is_never_committed(
    make_cluster: ClusterFactory, entries_max: int
) -> None:
    """Design decision 6: a Go follower commits min(leader's commit, its own last index).

    1. The Go leader is alone and appends a tail that no quorum gets.
    2. The others commit other entries under a leader of ours, further than that tail.
    3. The Go server is back. The probe that finds where the logs agree lands below the tail: were
       it to carry the leader's commit index, the tail would be applied.
    """
    cluster = make_cluster("gpp", python={"append_entries_max": entries_max})
    old = cluster.start_all()
    for number in range(30):
        cluster.apply(command(f"shared-{number}"))
    cluster.wait_level()
    others = [cluster["p1"], cluster["p2"]]
    for other in others:
        other.kill()
    results = propose(old, "tail", 40, 8)
    assert {result.get("outcome") for result in results} == {"unknown"}
    tail_end = old.wait_serving()["last_index"]
    old.kill()

    for other in others:
        other.start()
    number = 0
    while cluster.leader().wait_serving()["commit_index"] < tail_end + 20:
        cluster.apply(command(f"other-{number}"))
        number += 1
    # A new leader looks for the place from its own end downward.
    cluster.leader().post("transfer")
    cluster.wait_leader()
    old.start()
    figures = cluster.wait_level()
    assert figures["applied"] == 30 + number
    assert not [name for name in old.ids() if name.startswith("tail")]
    cluster.assert_logs_equal()


@pytest.mark.parametrize(
    "shape", ["gpp", *(pytest.param(s, marks=pytest.mark.soak) for s in ("pgg", "gpgpg"))]
)
def test_logs_are_equal_after_kills(make_cluster: ClusterFactory, shape: str) -> None:
    """50,000 commands, while leaders and followers of both kinds are killed in turn."""
    cluster = make_cluster(shape)
    cluster.start_all()
    killed: set[str] = set()
    with Writer(cluster, batch=200) as writer:
        number = 0
        while len(writer.acknowledged) < 50_000 or len(killed) < 3:
            writer.wait_acknowledged(6000)
            leader = cluster.wait_leader()
            # Followers in turn; every other time the leader, in whichever language it is.
            followers = [member for member in cluster.members if member is not leader]
            victim = followers[number // 2 % len(followers)] if number % 2 else leader
            victim.kill()
            writer.wait_acknowledged(2000)
            victim.start()
            victim.wait_serving()
            killed.add(f"{victim.language} {'leader' if victim is leader else 'follower'}")
            number += 1
    figures = cluster.wait_level()
    assert figures["applied"] >= len(writer.acknowledged) >= 50_000
    assert cluster.assert_logs_equal() > len(writer.acknowledged)
    for member in cluster.members:
        writer.assert_kept(member)


def test_an_acknowledged_index_is_where_the_command_stands(make_cluster: ClusterFactory) -> None:
    """Extensions and empty data too; a refusal of a follower is definite."""
    cluster = make_cluster("gp")
    leader = cluster.start_all()
    index = leader.apply(b"", b"only extensions")["index"]
    cluster.wait_level()
    for member in cluster.members:
        (entry,) = member.log(index, index)
        assert (entry["size"], entry["extensions"]) == (0, b"only extensions".hex())
    with pytest.raises(RefusedError) as refused:
        cluster["p1"].apply(b"x")
    assert refused.value.outcome == "definite"
    eventually(lambda: cluster.wait_level(), "level")
