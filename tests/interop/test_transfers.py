"""Leadership handed from Go to Python and back, over and over, while clients write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member, RefusedError
from rafthttp.testing.interop_sessions import SessionClients
from rafthttp.testing.interop_writer import Writer
from rafthttp.testing.processes import eventually

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

TIMES = 6


def hand_over(cluster: MixedCluster, old: Member, new: Member) -> bool:
    """Whether the one attempt made `new` the leader of a later term."""
    term = old.wait_serving()["term"]
    try:
        old.post("transfer", id=new.id, address=new.address)
    except (RefusedError, httpx.TransportError):
        return False

    def later() -> Member | None:
        leader = cluster.wait_leader()
        return leader if leader.wait_serving()["term"] > term else None

    return eventually(later, "somebody leads in a later term") is new


def test_leadership_goes_back_and_forth_under_load(make_cluster: ClusterFactory) -> None:
    """No write that was acknowledged is lost, and none that was retried is applied twice."""
    cluster = make_cluster("gpp")
    cluster.start_all()
    done: Counter[str] = Counter()
    refused = 0
    sessions = SessionClients(cluster)
    with Writer(cluster, clients=2) as writer, sessions:
        while min(done["go"], done["python"]) < TIMES:
            old = cluster.wait_leader()
            new = cluster["g1" if old.language == "python" else f"p{1 + done['go'] % 2}"]
            if hand_over(cluster, old, new):
                done[new.language] += 1
                writer.wait_acknowledged(50)
            else:
                refused += 1
                assert refused <= TIMES, f"{refused} were refused, {dict(done)} succeeded"
    cluster.wait_whole()
    figures = cluster.wait_level()
    assert figures["applied"] >= len(writer.acknowledged) + len(sessions.answers)
    assert cluster.assert_logs_equal() > len(writer.acknowledged) + len(sessions.answers)
    for member in cluster.members:
        writer.assert_kept(member)
        sessions.assert_kept(member)
