"""What is left of a history that is not linearizable: little, and still not linearizable."""

from __future__ import annotations

import random

from rafthttp.testing.counterexample import smallest
from rafthttp.testing.linearizability import Kind, Operation, is_linearizable


def read(result: object, called: float, returned: float) -> Operation:
    return Operation("k", Kind.READ, None, result, called, returned)


def write(value: object, called: float, returned: float | None) -> Operation:
    return Operation("k", Kind.WRITE, value, None, called, returned)


def right_history(rng: random.Random, count: int) -> list[Operation]:
    """Overlapping writes and reads, each done at one instant within."""
    value: object = None
    history: list[Operation] = []
    for at in range(count):
        called, returned = at - rng.random() * 3, at + rng.random() * 3
        if rng.random() < 0.5:
            history.append(read(value, called, returned))
        else:
            value = None if rng.random() < 0.1 else at
            history.append(write(value, called, None if rng.random() < 0.05 else returned))
    return history


def test_a_stale_read_among_hundreds() -> None:
    """Two writes and the read of the first, where nothing overlaps them."""
    for seed in range(10):
        rng = random.Random(seed)
        history = right_history(rng, 200)
        assert is_linearizable(history)
        history += [write("old", 300, 301), write("new", 302, 303), read("old", 304, 305)]
        rng.shuffle(history)
        left = smallest(history)
        assert left == [write("old", 300, 301), write("new", 302, 303), read("old", 304, 305)]


def test_it_is_never_right_what_is_left() -> None:
    """A read anywhere is changed: what is left is wrong by itself, and misses no part of it."""
    wrong = 0
    for seed in range(60):
        rng = random.Random(seed)
        history = right_history(rng, 60)
        reads = [at for at, op in enumerate(history) if op.kind is Kind.READ]
        at = rng.choice(reads)
        history[at] = history[at]._replace(result=rng.choice([None, *range(60)]))
        if is_linearizable(history):
            assert len(smallest(history)) == len(history)
            continue
        wrong += 1
        left = smallest(history)
        assert not is_linearizable(left)
        assert len(left) <= 8, left
        known = [*history, *(op._replace(returned=None) for op in history)]
        assert all(op in known for op in left)
        for gone in left:
            if gone.kind is Kind.READ:
                assert is_linearizable([op for op in left if op is not gone])
    assert wrong > 30
