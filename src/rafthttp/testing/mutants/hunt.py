"""Whether a mutant is caught: by a dialogue that tells another story, by a seed that fails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rafthttp.testing.dialogue import run_dialogue
from rafthttp.testing.many import Failure
from rafthttp.testing.mutants.plant import Mutant, planted
from rafthttp.testing.mutants.sessions import count_in_sessions, repeated_commands
from rafthttp.testing.sim.cluster import Cluster
from rafthttp.testing.sim.schedule import EVENTS
from rafthttp.testing.simulating import simulate

SEEDS_MAX: Final = 400


def caught_by_dialogue(mutant: Mutant, told: str) -> bool:
    """Whether the core with this bug answers otherwise, or breaks an invariant.

    Raises:
        AssertionError: the dialogue differs without the bug already.
    """
    assert run_dialogue(told) == told, "the core as it is tells this dialogue"
    with planted(mutant):
        try:
            return run_dialogue(told) != told
        except Exception:  # noqa: BLE001 - whatever a broken core raises
            return True


def caught_by_replicas(mutant: Mutant) -> str | None:
    """How the replicas of a state machine differ with this bug, None where they agree.

    Raises:
        AssertionError: they differ without the bug already.
    """
    simulate(count_in_sessions, repeated_commands, seeds=3)
    with planted(mutant):
        try:
            simulate(count_in_sessions, repeated_commands)
        except AssertionError as error:
            return str(error)
    return None


def caught_by_simulator(mutant: Mutant, seeds: Iterable[int]) -> Failure | None:
    """The first seed that fails with this bug, None where all pass."""
    with planted(mutant):
        for seed in seeds:
            try:
                Cluster(seed).run(EVENTS)
            except Exception as error:  # noqa: BLE001 - whatever a broken core raises
                return Failure(seed, f"{type(error).__name__}: {error}")
    return None
