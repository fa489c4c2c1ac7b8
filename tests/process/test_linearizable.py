"""Real clusters under a nemesis are linearizable, and would be found out if they were not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rafthttp.testing.interop_member import missing_go
from rafthttp.testing.linearizability import Kind, NotLinearizableError
from rafthttp.testing.nemesis.clients import KeyValue
from rafthttp.testing.nemesis.faults import Fault, Partition, Stop
from rafthttp.testing.nemesis.network import missing_namespaces
from rafthttp.testing.nemesis.runs import run

pytestmark = pytest.mark.process

# Of the ten minutes of `make soak`.
LONG_SECONDS = 600
TURN_SECONDS = 40


def stale() -> KeyValue:
    return KeyValue(stale=True)


def test_three_servers(tmp_path: Path) -> None:
    """Whatever can go wrong, in namespaces where there can be some."""
    report = run(tmp_path, "3", 6.0, seed=1)
    assert report.operations > 50
    assert sum(report.faults.values()) >= 2
    if missing_namespaces() is None:
        assert report.partitions == "namespaces"


@pytest.mark.parametrize("only", [(Partition,)], ids=["partition"])
def test_links_cut_by_relays(tmp_path: Path, only: Sequence[type[Fault]]) -> None:
    """Where there are no privileges."""
    report = run(tmp_path, "3", 3.0, seed=2, only=only, relays=True)
    assert report.partitions == "relays"
    assert report.faults["Partition"] >= 1


@pytest.mark.interop
@pytest.mark.skipif(missing_go() is not None, reason=str(missing_go()))
def test_a_mixed_cluster(tmp_path: Path) -> None:
    report = run(tmp_path, "gpp", 3.0, seed=3)
    assert report.operations > 50
    if missing_namespaces() is None:
        assert report.partitions == "namespaces"


@pytest.mark.interop
@pytest.mark.skipif(missing_go() is not None, reason=str(missing_go()))
def test_a_mixed_cluster_behind_relays(tmp_path: Path) -> None:
    """Members in Go are parted without privileges, too."""
    report = run(tmp_path, "gpg", 3.0, seed=5, only=(Partition,), relays=True)
    assert report.operations > 50
    assert report.partitions == "relays"
    assert report.faults["Partition"] >= 1


def test_stale_reads_are_found_out(tmp_path: Path) -> None:
    """What followers happen to hold, told as if it were linearizable: a few operations prove it."""
    with pytest.raises(NotLinearizableError) as caught:
        run(tmp_path, "3", 3.0, seed=4, register=stale, only=(Stop,))
    # Two or three; where a write of the same kind is open, or what was read is that there is
    # nothing, each write or deletion that could explain the read belongs to it.
    assert len(caught.value.operations) <= 40, caught.value
    assert any(op.kind is Kind.READ for op in caught.value.operations)


@pytest.mark.soak
@pytest.mark.timeout(2 * LONG_SECONDS)
def test_ten_minutes(tmp_path: Path) -> None:
    """Three, five and mixed in turn."""
    shapes = ["3", "5"] + ([] if missing_go() else ["gpp", "gpgpp"])
    for turn in range(LONG_SECONDS // TURN_SECONDS):
        report = run(tmp_path / str(turn), shapes[turn % len(shapes)], TURN_SECONDS, seed=turn)
        print(f"seed {turn}: {report}")
