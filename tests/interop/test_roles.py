"""Every role in mixed company: who leads, who follows, who takes over."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rafthttp.testing.interop import FAST, MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import eventually

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


@pytest.mark.parametrize(("shape", "sleeper"), [("pgg", "g1"), ("gpp", "p1"), ("gpg", "g2")])
def test_a_sleeper_disturbs_nobody(make_cluster: ClusterFactory, shape: str, sleeper: str) -> None:
    """Pre-vote in mixed company: a follower that slept asks first, is refused, and follows."""
    cluster = make_cluster(shape)
    leader = cluster.start_all()
    cluster.wait_level()
    member = cluster[sleeper]
    term = leader.wait_serving()["term"]
    member.pause()
    # Its timer runs out at twice the timeout at most; it acts on that as soon as it goes on.
    heartbeat = float(FAST["heartbeat_timeout"])
    asleep_until, number = time.monotonic() + 2.2 * heartbeat, 0
    while time.monotonic() < asleep_until:
        leader.apply(command(f"meanwhile-{number}"))
        number += 1
    member.resume()
    write(cluster, "later", 5)
    assert cluster.wait_level()["applied"] == number + 5
    assert leader.wait_serving()["term"] == term
    assert cluster.wait_whole() is leader


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
