"""Delta debugging, by itself and on bugs that are planted in the core."""

from __future__ import annotations

import random

import pytest

from rafthttp.testing.mutants import MUTANTS, planted
from rafthttp.testing.shrink import shrink_items, shrink_number
from rafthttp.testing.sim import Faults, Schedule, shrink_schedule, shrink_seed, simulate_core

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def test_items_that_matter_are_all_that_stays() -> None:
    rng = random.Random(1)
    for _ in range(200):
        items = list(range(rng.randrange(1, 40)))
        needed = set(rng.sample(items, rng.randrange(min(len(items), 5) + 1)))
        asked = 0

        def fails(kept: list[int], needed: set[int] = needed) -> bool:
            nonlocal asked
            asked += 1
            return needed <= set(kept)

        assert shrink_items(items, fails) == sorted(needed)
        assert asked <= 200


def test_what_stays_fails_and_no_item_of_it_can_go() -> None:
    """Either of two pairs is enough: one of them stays."""

    def fails(kept: list[int]) -> bool:
        return {3, 17} <= set(kept) or {5, 6} <= set(kept)

    assert shrink_items(range(20), fails) in ([3, 17], [5, 6])


def test_a_number_is_bisected() -> None:
    asked: list[int] = []

    def fails(number: int) -> bool:
        asked.append(number)
        return number >= 613

    assert shrink_number(0, 1000, fails) == 613
    assert len(asked) <= 10
    assert shrink_number(0, 1000, lambda _: False) == 1000


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("name", "seed", "broken", "kinds_max"),
    [
        ("minority", 1, "election safety", 1),
        ("always_truncate", 33, "durable commit", 2),
        ("truncation_not_written", 3, "no gap on disk", 4),
    ],
)
def test_a_failing_seed_becomes_a_small_schedule(
    name: str, seed: int, broken: str, kinds_max: int
) -> None:
    """The schedule breaks the same property with next to nothing in it, in one line."""
    with planted(BY_NAME[name]):
        small = shrink_seed(seed)
        schedule, outcome = small.schedule, small.outcome
        assert broken in outcome.text
        assert schedule.faults is not None
        assert (
            len(schedule.faults.kinds()) <= kinds_max < len(Schedule(seed).cluster().faults.kinds())
        )
        assert len(outcome.deeds) <= 6
        assert schedule.events < 1000
        assert schedule.test == f"def test_seed_{schedule.seed}() -> None: {schedule.call}"
        made: dict[str, object] = {"Faults": Faults, "simulate_core": simulate_core}
        exec(schedule.test, made)  # the printed line is Python
        test = made[f"test_seed_{schedule.seed}"]
        assert callable(test)
        with pytest.raises(AssertionError, match=broken):
            test()
    test()


def test_the_swarms_faults_given_by_hand_make_the_same_history() -> None:
    """What a shrunk schedule starts from."""
    for seed in range(5):
        faults = Schedule(seed).cluster().faults
        assert simulate_core(seed, faults).digest == simulate_core(seed).digest


def test_deeds_can_be_left_out() -> None:
    """Those that come before stay as they were."""
    whole = Schedule(7).play().deeds
    assert len(whole) > 6
    left_out = whole[4].name
    rest = Schedule(7, skipped=(left_out,)).play().deeds
    assert rest[:4] == whole[:4]
    assert left_out not in [deed.name for deed in rest]


def test_what_does_not_fail_is_not_shrunk() -> None:
    with pytest.raises(ValueError, match="seed 1 does not fail"):
        shrink_schedule(Schedule(1))
