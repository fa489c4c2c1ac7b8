"""The checker of client histories, compared with trying every order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from rafthttp.testing.linearizability import (
    Kind,
    NotLinearizableError,
    Operation,
    SearchTooLongError,
    Swap,
    apply,
    check_linearizable,
    is_linearizable,
)

HISTORIES = 20_000


def read(result: object, called: float, returned: float | None) -> Operation:
    return Operation("k", Kind.READ, None, result, called, returned)


def write(value: object, called: float, returned: float | None) -> Operation:
    return Operation("k", Kind.WRITE, value, None, called, returned)


def swap(
    expected: object, new: object, done: bool, called: float, returned: float | None
) -> Operation:
    return Operation("k", Kind.CAS, Swap(expected, new), done, called, returned)


def fits(order: Sequence[Operation]) -> bool:
    """Whether that very order respects time, and explains what was seen."""
    for at, later in enumerate(order):
        for earlier in order[:at]:
            if later.returned is not None and later.returned < earlier.called:
                return False
    value: object = None
    for op in order:
        legal, value = apply(op, value)
        if not legal:
            return False
    return True


def by_brute_force(history: Sequence[Operation]) -> bool:
    """Every order of every choice of the operations that may not have happened."""
    sure = [op for op in history if op.returned is not None]
    unsure = [op for op in history if op.returned is None]
    return any(
        fits(order)
        for many in range(len(unsure) + 1)
        for chosen in itertools.combinations(unsure, many)
        for order in itertools.permutations([*sure, *chosen])
    )


def random_history(rng: random.Random) -> list[Operation]:
    """A few overlapping operations; what they saw is true of some order, or a little off."""
    count = rng.choice((1, 2, 3, 3, 4, 4, 4, 5))
    at: list[tuple[float, float, float]] = []
    for _ in range(count):
        called = float(rng.randrange(10))
        returned = called + rng.randrange(8)
        at.append((called + rng.random() * (returned - called), called, returned))
    value: object = None
    history: list[Operation] = []
    for _, called, returned in sorted(at):
        new = rng.randrange(3)
        unknown = rng.random() < 0.2
        happens = not unknown or rng.random() < 0.5
        end = None if unknown else returned
        roll = rng.random()
        if roll < 0.4:
            seen = value if rng.random() < 0.8 else rng.choice((None, 0, 1, 2))
            history.append(read(seen, called, returned))
        elif roll < 0.75:
            history.append(write(new, called, end))
            value = new if happens else value
        else:
            expected = value if rng.random() < 0.6 else rng.randrange(3)
            done = value == expected
            told = done if rng.random() < 0.9 else not done
            history.append(swap(expected, new, told, called, end))
            value = new if done and happens else value
    rng.shuffle(history)
    return history


def test_it_agrees_with_brute_force() -> None:
    rng = random.Random(1)
    found = {True: 0, False: 0}
    for number in range(HISTORIES):
        history = random_history(rng)
        expected = by_brute_force(history)
        found[expected] += 1
        assert is_linearizable(history) == expected, f"history {number}: {history}"
        try:
            check_linearizable(history)
            told = True
        except NotLinearizableError:
            told = False
        assert told == expected, f"history {number}, with what nobody noticed left out: {history}"
    # Both answers must be common, or agreement says nothing.
    assert min(found.values()) > HISTORIES // 8


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], True),
        ([write(1, 0, 1), read(1, 2, 3)], True),
        ([write(1, 0, 1), read(None, 2, 3)], False),  # a stale read
        ([write(1, 0, 5), read(None, 1, 2), read(1, 3, 4)], True),
        ([write(1, 0, 5), read(1, 1, 2), read(None, 3, 4)], False),  # back in time
        ([write(1, 0, None), read(1, 9, 10)], True),  # it happened late
        ([write(1, 0, None), read(None, 9, 10)], True),  # it never happened
        ([write(1, 0, None), read(1, 2, 3), read(None, 4, 5)], False),
        ([write(1, 0, 1), swap(1, 2, True, 2, 3), read(2, 4, 5)], True),
        ([write(1, 0, 1), swap(1, 2, True, 2, 3), swap(1, 3, True, 2, 3)], False),
        ([write(1, 0, 1), swap(2, 3, False, 2, 3), read(1, 4, 5)], True),
        ([write(1, 0, 1), swap(2, 3, False, 2, None), read(3, 4, 5)], False),
    ],
)
def test_small_histories(history: list[Operation], expected: bool) -> None:
    assert is_linearizable(history) is expected


def test_keys_are_judged_alone() -> None:
    one = write(1, 0, 1)
    other = read(None, 2, 3)._replace(key="other")
    check_linearizable([one, other])
    with pytest.raises(NotLinearizableError, match="'k'"):
        check_linearizable([one, other, read(None, 2, 3)])


def test_ten_clients_with_unknown_outcomes_are_judged_quickly() -> None:
    """Each client writes and reads by turns; every tenth write is never answered."""
    rng = random.Random(2)
    clock, value, number = 0.0, 0, 0
    history = [write(0, -2, -1)]
    for _ in range(60):
        started = clock
        batch: list[tuple[float, Operation]] = []
        for _client in range(10):
            number += 1
            moment = started + rng.random()
            returned = None if rng.random() < 0.05 else started + 1 + rng.random()
            if rng.random() < 0.5 and returned is not None:
                batch.append((moment, read(0, started, returned)))
            else:
                batch.append((moment, write(number, started, returned)))
        for _, op in sorted(batch, key=lambda pair: pair[0]):
            if op.kind is Kind.WRITE:
                assert isinstance(op.argument, int)
                value = op.argument
                history.append(op)
            else:
                history.append(op._replace(result=value))
        clock = started + 3
    assert is_linearizable(history, states_max=300_000)


def test_a_search_without_end_is_given_up() -> None:
    history = [write(i, 0, 100) for i in range(20)] + [read(i, 0, 100) for i in range(20)]
    history.append(read(99, 0, 100))
    with pytest.raises(SearchTooLongError):
        is_linearizable(history, states_max=1000)
