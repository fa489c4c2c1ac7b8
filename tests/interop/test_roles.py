"""Every role in mixed company: who leads, who follows, who takes over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.interop_tapped import Traffic, put_behind_relays
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import eventually
from rafthttp.testing.tap import Taps

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]


def write(cluster: MixedCluster, prefix: str, count: int = 20) -> None:
    for number in range(count):
        cluster.apply(command(f"{prefix}-{number}", b"v" * number), b"extra" * (number % 3))


@pytest.mark.parametrize("shape", ["pgg", "gpp", "gggpp", "pppgg"])
def test_replicates_in_any_shape(make_cluster: ClusterFactory, shape: str) -> None:
    """The first member leads: Python over Go and Go over Python, all sizes."""
    cluster = make_cluster(shape)
    leader = cluster.start_all()
    assert leader is cluster.members[0]
    write(cluster, "a")
    figures = cluster.wait_level()
    assert (figures["applied"], figures["twice"]) == (20, [])
    assert cluster.assert_logs_equal() >= 20 + len(shape)


@pytest.mark.parametrize(
    "shape", ["pgg", "gpp", *(pytest.param(s, marks=pytest.mark.soak) for s in ("ppg", "ggp"))]
)
def test_outlives_its_leader(make_cluster: ClusterFactory, shape: str) -> None:
    """The leader is killed: another takes over, and the killed one follows when it is back."""
    cluster = make_cluster(shape)
    old = cluster.start_all()
    write(cluster, "before", 5)
    old.kill()
    new = cluster.wait_leader()
    assert new is not old
    write(cluster, "after", 5)
    old.start()
    assert cluster.wait_whole().id != old.id
    assert cluster.wait_level()["applied"] == 10
    cluster.assert_logs_equal()


@pytest.mark.parametrize("shape", ["gp", "pg"])
def test_all_come_back_with_what_they_had(make_cluster: ClusterFactory, shape: str) -> None:
    """A power cut: bolt and sqlite each bring back log, term and vote."""
    cluster = make_cluster(shape)
    cluster.start_all()
    write(cluster, "before", 10)
    cluster.kill_all()
    for member in cluster.members:
        member.start()
    cluster.wait_whole()
    write(cluster, "after", 10)
    assert cluster.wait_level()["applied"] == 20
    cluster.assert_logs_equal()


@pytest.mark.parametrize(
    ("shape", "name", "asks_first"),
    [
        ("pgg", "g1", True),
        ("gpp", "p1", True),
        ("gpg", "g2", True),
        ("pgg", "g1", False),
        ("gpp", "p1", False),
    ],
)
def test_who_heard_nobody_disturbs_nobody(
    make_cluster: ClusterFactory, tmp_path: Path, shape: str, name: str, asks_first: bool
) -> None:
    """Pre-vote in mixed company: a follower that nobody reaches asks, is refused, and follows.

    Without it that follower's term rises, and when it is back a leader falls to it.
    """
    with Taps(tmp_path / "tapped") as taps:
        cluster = make_cluster(shape)
        put_behind_relays(cluster, taps)
        deaf = cluster[name]
        if not asks_first:
            off = "pre_vote_disabled" if deaf.language == "go" else "pre_vote"
            deaf.options[off] = deaf.language == "go"
        leader = cluster.start_all()
        write(cluster, "before", 5)
        cluster.wait_level()
        term = leader.wait_serving()["term"]
        taps.relays[name].block()
        if asks_first:
            eventually(lambda: len(answered(cluster, taps, name)) >= 4, f"{name} asks twice")
        else:
            eventually(lambda: deaf.wait_serving()["term"] > term, f"{name} stands for election")
        for number in range(5):
            leader.apply(command(f"meanwhile-{number}"))
        assert leader.wait_serving()["term"] == term
        taps.relays[name].unblock()
        if not asks_first:
            eventually(lambda: leader.wait_serving()["term"] > term, f"{leader.id} falls to it")
            cluster.wait_whole()
        write(cluster, "after", 5)
        assert cluster.wait_level()["applied"] == 15
        if asks_first:
            assert cluster.wait_whole() is leader
            assert {member.wait_serving()["term"] for member in cluster.members} == {term}
            assert set(answered(cluster, taps, name)) == {False}
        else:
            assert answered(cluster, taps, name) == []


def answered(cluster: MixedCluster, taps: Taps, name: str) -> list[bool]:
    """Whether each pre-vote that member asked for was granted, as it was said on the wire."""
    traffic = Traffic(cluster, taps.recordings())
    assert traffic.violations == []
    return traffic.pre_votes[name]


def transfer(cluster: MixedCluster, old: Member, new: Member) -> None:
    term = old.wait_serving()["term"]
    old.post("transfer", id=new.id, address=new.address)
    eventually(lambda: cluster.wait_leader() is new, f"{new.id} leads")
    assert new.wait_serving()["term"] > term


@pytest.mark.parametrize(("shape", "to"), [("gpp", "p1"), ("gpg", "p1"), ("pgg", "g1")])
def test_leadership_is_handed_over(make_cluster: ClusterFactory, shape: str, to: str) -> None:
    """TimeoutNow, from Go to Python and from Python to Go; the old leader follows."""
    cluster = make_cluster(shape)
    old, new = cluster.start_all(), cluster[to]
    write(cluster, "before", 5)
    transfer(cluster, old, new)
    assert cluster.wait_whole() is new
    write(cluster, "after", 5)
    assert cluster.wait_level()["applied"] == 10
    cluster.assert_logs_equal()
