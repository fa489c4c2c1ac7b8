"""Snapshots between the languages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.interop import PATIENT, MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.ledger import command

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

EXTRA_MEBIBYTES_MAX = 32  # measured: 12; one copy of the smaller snapshot is 64


def memory(member: Member, name: str) -> int:
    """Mebibytes of its process: VmRSS now, VmHWM at the most."""
    assert member.process is not None
    status = Path(f"/proc/{member.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) >> 10


def forget_peak(member: Member) -> None:
    """VmHWM counts from here."""
    assert member.process is not None
    Path(f"/proc/{member.process.pid}/clear_refs").write_text("5")


@pytest.mark.parametrize(
    ("shape", "mebibytes"),
    [
        ("gpp", 64),
        ("pgg", 64),
        pytest.param("gpp", 256, marks=pytest.mark.soak),
        pytest.param("pgg", 256, marks=pytest.mark.soak),
    ],
)
def test_a_wiped_follower_is_sent_a_large_snapshot(
    make_cluster: ClusterFactory, shape: str, mebibytes: int
) -> None:
    """InstallSnapshot to the other language; then all write the same snapshot, byte for byte.

    The leader's log is compacted away, so nothing else can have brought the follower back. What the
    snapshot says of the members is what a follower that has no log of it goes by. The member in
    Python, sending or receiving, needs little more memory than its state machine holds.
    """
    cluster = make_cluster(shape, options={**PATIENT, "trailing_logs": 0}, go={"no_sync": True})
    leader, wiped = cluster.start_all(), cluster.members[2]
    assert wiped.language != leader.language
    empty = memory(wiped, "VmRSS")
    for number in range(mebibytes // 16):
        ids = [f"large-{number}-{part}" for part in range(16)]
        results = leader.post("applies", json.dumps({"ids": ids, "size": 1 << 20}).encode())
        assert all(result.get("index") for result in results["results"]), results
    leader.post("remove", id=wiped.id)
    wiped.kill()
    wiped.wipe()
    cluster.apply(command("behind-the-removal"))  # Go takes no snapshot right behind one
    before = memory(leader, "VmRSS")
    forget_peak(leader)
    assert leader.post("snapshot")["size"] > mebibytes << 20

    cluster.join(wiped, via=leader)
    cluster.apply(command("behind-the-join"))
    assert cluster.wait_level()["applied"] == mebibytes + 2
    assert wiped.wait_serving()["first_index"] > mebibytes
    assert wiped.servers() == leader.servers()
    if leader.language == "python":
        extra = memory(leader, "VmHWM") - before
    else:
        extra = memory(wiped, "VmHWM") - empty - mebibytes
    print(f"{shape}: {extra} MiB more for {mebibytes} MiB")
    assert extra <= EXTRA_MEBIBYTES_MAX
    taken = [member.post("snapshot") for member in cluster.members]
    assert all(snapshot == taken[0] for snapshot in taken), taken
