"""Delta debugging: from something that fails to a small thing that fails.

Knows sets and numbers; not what they stand for. Every answer is one that `fails` said yes to: where
failing is not monotonic, a smaller one may exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink_items(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """A sublist, in order, that fails, and does not where any one of its items is left out.

    Zeller and Hildebrandt's `ddmin`: halves first, then ever smaller parts, each time without the
    part. Asks `fails` about n log n times for few items that matter among n, n² at worst. `items`
    as a whole is taken to fail.
    """
    kept = list(items)
    if not kept or fails([]):
        return []
    parts = 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        for at in range(0, len(kept), size):
            rest = kept[:at] + kept[at + size :]
            if rest and fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(2 * parts, len(kept))
    return kept


def shrink_number(least: int, most: int, fails: Callable[[int], bool]) -> int:
    """The smallest number that fails, from `least` to `most`, by bisection; `most` does fail."""
    while least < most:
        middle = (least + most) // 2
        if fails(middle):
            most = middle
        else:
            least = middle + 1
    return most
