"""The checkers are checked: each planted bug must be caught by the dialogue or the seeds named.

A checker that lets its mutant live proves nothing. `make mutants` prints the score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.mutants import MUTANTS, Mutant, planted
from rafthttp.testing.mutants.hunt import (
    SEEDS_MAX,
    caught_by_dialogue,
    caught_by_replicas,
    caught_by_simulator,
)

pytestmark = pytest.mark.interpreted

TESTDATA = Path(__file__).parent / "testdata"
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def test_there_are_many_and_each_is_hunted() -> None:
    assert len(MUTANTS) >= 30
    assert len(BY_NAME) == len(MUTANTS)
    assert all(m.dialogue is not None or m.simulated or m.replicated for m in MUTANTS)
    assert sum(mutant.simulated for mutant in MUTANTS) >= 15
    assert all(mutant.rule for mutant in MUTANTS)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.dialogue], ids=lambda m: m.name)
def test_dialogues_catch(mutant: Mutant) -> None:
    assert caught_by_dialogue(mutant, (TESTDATA / f"{mutant.dialogue}.txt").read_text())


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.simulated], ids=lambda m: m.name)
def test_the_simulator_catches(mutant: Mutant) -> None:
    assert caught_by_simulator(mutant, range(SEEDS_MAX)) is not None


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.replicated], ids=lambda m: m.name)
def test_replicas_of_a_state_machine_catch(mutant: Mutant) -> None:
    told = caught_by_replicas(mutant)
    assert told is not None
    assert "is not deterministic" in told


@pytest.mark.parametrize(
    "name",
    [
        "ack_before_write",
        "minority",
        "no_rollback",
        "short_logs_win",
        "two_votes",
        "unclipped_writes",
        "undurable_leader",
    ],
)
def test_histories_catch(name: str, history: Callable[[int], object]) -> None:
    """Not all: S1, S28 and S70 survive hundreds of histories, which is why they are scripted."""
    with planted(BY_NAME[name]):
        for seed in range(300):
            try:
                history(seed)
            except (AssertionError, IndexError):
                return
    raise AssertionError("300 histories did not notice")
