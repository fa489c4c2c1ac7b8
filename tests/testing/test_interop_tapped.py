"""What is read out of recordings: who is held to what, and what is wrong where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rafthttp.testing.interop import MixedCluster, mixed_cluster
from rafthttp.testing.interop_tapped import Traffic, complaints
from rafthttp.testing.tap import Recording

GOLDEN = Path(__file__).parents[1] / "raft" / "wire" / "testdata"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MixedCluster]:
    """A member of each kind; neither is started."""
    with mixed_cluster(tmp_path, "gp") as cluster:
        yield cluster


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


def recorded(cluster: MixedCluster, dialler: str, target: str, name: str) -> Recording:
    """The golden call as one of the dialler to the target."""
    address = cluster[dialler].address.encode()
    assert len(address) == 15
    request = golden(f"{name}.req").replace(b"127.0.0.1:17301", address)
    asked, answered = golden("http_upgrade.req"), golden("http_upgrade.resp")
    return Recording(target, asked + request, answered + golden(f"{name}.resp"), len(asked))


def test_who_sent_what_is_counted(cluster: MixedCluster) -> None:
    traffic = Traffic(
        cluster,
        [
            recorded(cluster, "p1", "g1", "append_empty_commit"),
            recorded(cluster, "g1", "p1", "request_vote"),
            Recording("g1", b"GET /raft HTT", b"", 0),  # cut in its head
            Recording("g1", golden("http_upgrade.req"), golden("http_upgrade.resp"), 92),
        ],
    )
    assert traffic.violations == []
    assert traffic.pre_votes == {"p1": [], "g1": []}
    assert traffic.requests == {"AppendEntries": 1}
    assert traffic.answers == {"RequestVote": 1}


@pytest.mark.parametrize("granted", [True, False])
def test_what_a_pre_vote_came_to_is_told(cluster: MixedCluster, granted: bool) -> None:
    """Golden `request_prevote` is granted."""
    recording = recorded(cluster, "g1", "p1", "request_prevote")
    if not granted:
        recording.back = recording.back.replace(b"Granted\xc3", b"Granted\xc2")
    assert Traffic(cluster, [recording]).pre_votes == {"p1": [], "g1": [granted]}


def test_the_largest_frame_is_told(cluster: MixedCluster) -> None:
    """`append_64x64` has 64 entries."""
    names = ("append_3", "append_64x64", "append_heartbeat")
    recordings = [recorded(cluster, "p1", "g1", name) for name in names]
    assert Traffic(cluster, recordings).entries_max == {"p1": 64}


def test_only_ours_are_held_to_the_clamp(cluster: MixedCluster) -> None:
    """Go sends its commit index as it is; from a member of ours it is a violation."""
    for dialler, target, count in (("g1", "p1", 0), ("p1", "g1", 1)):
        recording = recorded(cluster, dialler, target, "append_empty_commit")
        recording.there = recording.there.replace(
            b"PrevLogEntry\xcd\x04\xd3", b"PrevLogEntry\xcd\x04\xd2"
        )
        violations = Traffic(cluster, [recording]).violations
        assert len(violations) == count
        assert all("commit 1235" in text and f"to {target}" in text for text in violations)


@pytest.mark.parametrize("case", ["glued", "speaks first", "too many answers", "other upgrade"])
def test_what_else_is_wrong(cluster: MixedCluster, case: str) -> None:
    recording = recorded(cluster, "p1", "g1", "timeout_now")
    if case == "glued":
        recording.there_before_back = len(recording.there)
    elif case == "speaks first":
        recording.there = golden("http_upgrade.req")
    elif case == "too many answers":
        recording.back += golden("timeout_now.resp")
    else:
        recording.there = recording.there.replace(b"Upgrade: raft", b"Upgrade: RAFT")
    assert len(Traffic(cluster, [recording]).violations) == 1


def test_complaints_of_go_members(cluster: MixedCluster) -> None:
    """What a killed peer leaves behind is none; nor is what a member in Python logs."""
    bad = 'failed to decode incoming command: error="msgpack decode error [pos 7]"'
    usual = 'failed to decode incoming command: error="read tcp: connection reset by peer"'
    cluster["g1"].output_file.write_text(f"{usual}\n{bad}\npanic: runtime error\n")
    cluster["p1"].output_file.write_text(f"{bad}\n")
    assert complaints(cluster) == [f"g1: {bad}", "g1: panic: runtime error"]
