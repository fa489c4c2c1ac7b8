"""Who belongs to a mixed cluster: joins, leaves, and changes that either kind of leader makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import RefusedError
from rafthttp.testing.ledger import command

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]


@pytest.mark.parametrize(("shape", "joiner"), [("pp", "g"), ("gg", "p"), ("gp", "g"), ("pg", "p")])
def test_joins_and_leaves_through_a_follower(
    make_cluster: ClusterFactory, shape: str, joiner: str
) -> None:
    """The follower answers 308; Go's `Layer.Join` and `Leave`, and ours, go on to the leader."""
    cluster = make_cluster(shape)
    leader = cluster.start_all()
    follower = cluster.members[1]
    assert leader is not follower
    member = cluster.add(joiner)
    cluster.join(member, via=follower)
    cluster.apply(command("with-all"))
    cluster.wait_level()
    cluster.assert_logs_equal()

    member.post("leave", via=follower.address)
    cluster.wait_suffrage(member, None)
    member.kill()
    cluster.apply(command("without"))
    assert cluster.wait_level()["applied"] == 2


@pytest.mark.parametrize(("shape", "subject"), [("pgg", "g2"), ("gpp", "p2"), ("gpg", "p1")])
def test_suffrage_changes(make_cluster: ClusterFactory, shape: str, subject: str) -> None:
    """Demoted, a voter again, demoted, removed, added as nonvoter: known alike everywhere."""
    cluster = make_cluster(shape)
    leader, member = cluster.start_all(), cluster[subject]

    leader.post("demote", id=member.id)
    cluster.wait_suffrage(member, "nonvoter")
    cluster.apply(command("as-nonvoter"))
    cluster.wait_level()

    leader.post("addvoter", id=member.id, address=member.address)
    cluster.wait_suffrage(member, "voter")
    leader.post("demote", id=member.id)
    leader.post("remove", id=member.id)
    cluster.wait_suffrage(member, None)

    leader.post("addnonvoter", id=member.id, address=member.address)
    cluster.wait_suffrage(member, "nonvoter")
    cluster.apply(command("again"))
    assert cluster.wait_level()["applied"] == 2
    cluster.assert_logs_equal()
    assert all(other.servers() == leader.servers() for other in cluster.members)


@pytest.mark.parametrize(("shape", "subject"), [("pgg", "g2"), ("gpp", "p2")])
def test_an_address_changes(make_cluster: ClusterFactory, shape: str, subject: str) -> None:
    """A member moves to another port and keeps its data: `add_voter` with its known id."""
    cluster = make_cluster(shape)
    leader, member = cluster.start_all(), cluster[subject]
    member.terminate()
    cluster.apply(command("while-away"))
    member.address = cluster.free_address()
    member.start()
    leader.post("addvoter", id=member.id, address=member.address)
    cluster.wait_voter(member)
    assert cluster.wait_level()["applied"] == 1
    cluster.assert_logs_equal()
    assert all(other.servers() == leader.servers() for other in cluster.members)


@pytest.mark.parametrize("shape", ["pgg", "gpp"])
def test_a_stale_previous_index_is_refused(make_cluster: ClusterFactory, shape: str) -> None:
    cluster = make_cluster(shape)
    leader = cluster.start_all()
    third = cluster.members[2]
    with pytest.raises(RefusedError, match="configuration"):
        leader.post("demote", id=third.id, prev=1)
    assert leader.servers()[third.id][1] == "voter"


@pytest.mark.parametrize("shape", ["pgg", "gpp"])
def test_a_leader_is_removed(make_cluster: ClusterFactory, shape: str) -> None:
    """It steps down once its own removal is committed; the others, in whatever language, go on."""
    cluster = make_cluster(shape)
    old = cluster.start_all()
    cluster.apply(command("before"))
    old.post("remove", id=old.id)
    cluster.wait_suffrage(old, None)
    old.kill()
    assert cluster.wait_leader() is not old
    cluster.apply(command("after"))
    assert cluster.wait_level()["applied"] == 2
    cluster.assert_logs_equal()
