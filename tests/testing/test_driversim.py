"""The simulator of whole servers: seeds of every run of the suite, and what the simulator is.

S2, S6, S7, S8, S13, S29, S35, S38, S41, S44, S62, S67, S70, S73, S74, S75 are among what its faults
do and its checks see, with the real driver, transport and HTTP.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from rafthttp.testing.driversim import Faults, simulate_driver, simulate_driver_seeds

SEEDS = 40
KINDS = set(
    """
    blocked hung_dial refused_dial cut delay drop clog split deafen bridge reset
    slow_fsync hang eio enospc
    pause stall crash power_off change transfer snapshot
    """.split()  # noqa: SIM905 - a table to be read
)


def test_seeds_keep_every_property() -> None:
    """Harm, then healing, then a stop; a failure says how to repeat it."""
    report = simulate_driver_seeds(range(SEEDS))
    assert not report.failures
    assert report.committed > 20 * report.runs
    assert report.acknowledged > 10 * report.runs
    assert KINDS - report.seen.keys() == set()


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(20))
def test_many_seeds_keep_every_property(batch: int) -> None:
    first = 100_000 + batch * 200
    assert not simulate_driver_seeds(range(first, first + 200)).failures


def test_lost_disks_are_replaced() -> None:
    """S8, S62: some are wiped, others refused for a flipped bit; each begins anew, released."""
    faults = Faults(wipe_rate=3, flip_rate=3, crash_rate=1, snapshot_rate=5)
    seen: Counter[str] = Counter()
    for seed in range(6):
        seen += simulate_driver(seed, faults, kind="node").seen
    assert min(seen["wipe"], seen["flip"]) >= 3


def test_snapshots_that_cannot_be_written_are_survived() -> None:
    """S41, S44: at their begin, on the way and at their end, taken or sent."""
    faults = Faults(
        snapshot_failure_chance=0.5,
        snapshot_rate=20,
        compact_to_tip=True,
        crash_rate=3,
        clog_rate=3,
    )
    seen: Counter[str] = Counter()
    for seed in range(6):
        seen += simulate_driver(seed, faults).seen
    assert min(seen[f"failed_snapshot_{when}"] for when in ("create", "write", "close")) >= 3


def test_of_several_writes_under_way_some_survive() -> None:
    """S7: rare where disks are quick, for then hardly two wait when the process dies."""
    faults = Faults(torn_write_chance=1, crash_rate=10, fsync_ns_max=20_000_000)
    seen: Counter[str] = Counter()
    for seed in range(6):
        seen += simulate_driver(seed, faults).seen
    assert seen["torn_write"] >= 3


@pytest.mark.parametrize("kind", ["raft", "node"])
def test_a_perfect_world_has_one_election_at_most(kind: str) -> None:
    """Nothing happens but what clients ask."""
    report = simulate_driver(1, Faults(), kind=kind)
    assert report.terms == 2
    assert not report.seen.keys() - {"cut", "refused_dial"}
    assert report.acknowledged > 50


def test_one_seed_is_one_history_in_every_process() -> None:
    """Sets and dictionaries of names hash differently there, and addresses are others."""
    program = (
        "from rafthttp.testing.driversim import simulate_driver;"
        "print([simulate_driver(seed).digest for seed in range(3)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1
    assert len(set(next(iter(printed)).split())) == 3
