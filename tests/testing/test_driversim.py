"""The simulator of whole servers: seeds of every run of the suite, and what the simulator is.

S2, S6, S7, S13, S29, S35, S38, S44, S67, S70, S73, S74, S75 are among what its faults do and its
checks see, with the real driver, transport and HTTP.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rafthttp.testing.driversim import Faults, simulate_driver, simulate_driver_seeds

SEEDS = 24
KINDS = set(
    """
    blocked hung_dial refused_dial cut delay drop clog split deafen bridge reset
    slow_fsync hang torn_write eio enospc failed_snapshot
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
