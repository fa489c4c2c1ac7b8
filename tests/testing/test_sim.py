"""The simulator of the core: the seeds of every run of the suite, and that it is deterministic.

S1, S3, S4, S6, S11, S13, S24, S29, S31, S35, S36, S38, S39, S41, S44, S62, S67, S70, S74 are among
what its faults do and its invariants see.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import fields

import pytest

from rafthttp.testing.sim import Faults, simulate_core, simulate_seeds
from rafthttp.testing.sim.disk import SimDisk

SEEDS = 320
KINDS = set(
    """
    blocked drop duplicate delay clog split deafen bridge reset
    slow_fsync hang torn_write eio enospc pause stall crash wipe
    change transfer snapshot install lease_read flip go_crash go_campaign go_won
    """.split()  # noqa: SIM905 - a table to be read
)


def test_seeds_keep_every_property() -> None:
    """Harm, then healing; a failure prints its seed, and `simulate_core(seed)` repeats it."""
    report = simulate_seeds(range(SEEDS))
    assert not report.failures
    # A history that commits nothing checks nothing, nor does one in which nothing goes wrong.
    assert report.committed > 50 * report.runs
    assert report.acknowledged > 10 * report.runs
    assert report.terms > 2 * report.runs
    assert KINDS - report.seen.keys() == set()


@pytest.mark.soak
@pytest.mark.parametrize("batch", range(20))
def test_many_seeds_keep_every_property(batch: int) -> None:
    """Ten thousand more."""
    first = 100_000 + batch * 500
    assert not simulate_seeds(range(first, first + 500)).failures


def test_a_broken_snapshot_is_survived() -> None:
    """S41, S44: compacted to the tip, and every other snapshot breaks on its way."""
    faults = Faults(
        snapshot_rate=30,
        compact_to_tip=True,
        crash_rate=8,
        partition_rate=4,
        snapshot_failure_chance=0.5,
    )
    seen = 0
    for seed in range(25):
        seen += simulate_core(seed, faults).seen["broken_install"]
    assert seen > 0


def test_a_disk_that_forgets_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S6: it had said that it is durable; not only the next commit or the healing tells."""
    crash = SimDisk.crash

    def forget(self: SimDisk) -> None:
        del self.durable.entries[-1:]
        crash(self)

    monkeypatch.setattr(SimDisk, "crash", forget)
    texts = [failure.text for failure in simulate_seeds(range(60)).failures]
    assert sum(text.startswith("InvariantError: durable commit: ") for text in texts) >= 3


def test_a_perfect_world_has_one_election() -> None:
    report = simulate_core(1, Faults())
    assert report.terms == 2
    assert not report.seen


def test_the_swarm_draws_each_fault_and_leaves_each_out() -> None:
    rng = random.Random(1)
    drawn = [Faults.swarm(rng).kinds() for _ in range(300)]
    for field in fields(Faults):
        assert 0 < sum(field.name in kinds for kinds in drawn) < len(drawn)


def test_one_seed_is_one_history_in_every_process() -> None:
    """Sets and dictionaries of names hash differently there; nothing may follow their order."""
    program = (
        "from rafthttp.testing.sim import simulate_core;"
        "print([simulate_core(seed).digest for seed in range(12)])"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for salt in ("1", "2")
    }
    here = [simulate_core(seed).digest for seed in range(12)]
    assert digests == {f"{here}\n"}
    assert len(set(here)) == len(here)
