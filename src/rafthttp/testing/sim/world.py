"""The virtual world: one clock, one queue of events, one generator. No real time, no I/O.

Equal seeds give equal histories: events of one time happen in the order in which they were put.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any


class Chance:
    """A source of chance of its own: what one part draws does not change what others draw.

    So a history from which one fault is taken out stays alike, and can be shrunk.
    """

    __slots__ = ("below", "random", "rng")

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - histories must repeat
        self.random = draw = self.rng.random
        """A number from 0 to 1, exclusive."""

        def below(most: int) -> int:
            return int(draw() * most)

        self.below = below
        """A number from 0 to `most`, exclusive; quicker than `randrange`."""


class World:
    """Time and what is to happen.

    Attributes:
        now_ns: the world's time; the servers' clocks may differ from it.
        rng: the one source of chance.
        digest: of everything that happened, in order; equal histories have equal digests.
        events: how many things happened.
        seen: how often each kind of fault was done.
    """

    __slots__ = ("_numbers", "_queue", "digest", "events", "now_ns", "rng", "seen")

    def __init__(self, rng: random.Random) -> None:
        self.now_ns = 0
        self.rng = rng
        self.digest = 0
        self.events = 0
        self.seen: Counter[str] = Counter()
        self._numbers = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when_ns: int, action: Callable[..., None], *args: Any) -> None:
        """Do that at that time; what lies in the past is done next."""
        self._numbers = number = self._numbers + 1
        heapq.heappush(self._queue, (when_ns, number, action, args))

    def after(self, wait_ns: int, action: Callable[..., None], *args: Any) -> None:
        """Do that after so long."""
        self._numbers = number = self._numbers + 1
        heapq.heappush(self._queue, (self.now_ns + wait_ns, number, action, args))

    def step(self) -> None:
        """Do the next thing; time goes on to it."""
        when, _, action, args = heapq.heappop(self._queue)
        if when > self.now_ns:
            self.now_ns = when
        self.events += 1
        action(*args)

    def note(self, *figures: int) -> None:
        """Mix figures into the digest. Whole numbers only: their hashes do not depend on a salt."""
        self.digest = hash((self.digest, self.now_ns, figures))

    def below(self, most: int) -> int:
        """A number from 0 to `most`, exclusive; quicker than `randrange`."""
        return int(self.rng.random() * most)
