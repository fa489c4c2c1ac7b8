"""What a fuzz target is, and how one input tells both the bytes and where to cut them.

Knows no room of the package. An input begins with `HEAD_SIZE_BYTES` bytes of choices; the rest is
what is fed. So whatever finds an input, a coverage-guided fuzzer or a list of old failures, it is
one byte string.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

HEAD_SIZE_BYTES: Final = 4

BYTEWISE_SIZE_BYTES_MAX: Final = 512
"""Up to here an input is also fed byte by byte; longer ones would take the time of many others."""


class Target(NamedTuple):
    """One surface that strangers reach.

    Attributes:
        name: of its corpus, and of its test cases.
        check: takes any bytes; raises, with anything, where a promise is broken.
        seeds: valid inputs to begin with.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


def choices(data: bytes) -> tuple[bytes, bytes]:
    """The choices of an input, filled up with zeros, and what is to be fed."""
    return data[:HEAD_SIZE_BYTES].ljust(HEAD_SIZE_BYTES, b"\0"), data[HEAD_SIZE_BYTES:]


def cut(data: bytes, seed: int) -> list[bytes]:
    """The pieces of `data` that a seed stands for: up to 8 cuts, as many small as wide apart."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    ends = {0, len(data)}
    for _ in range(chance.randrange(9)):
        span = len(data) if chance.random() < 0.5 else min(len(data), 64)
        ends.add(chance.randint(0, span))
    return [data[a:b] for a, b in itertools.pairwise(sorted(ends))]


def cuttings(data: bytes, seed: int) -> list[list[bytes]]:
    """Whole, cut as the seed says, and byte by byte where that is cheap."""
    ways = [[data] if data else [], cut(data, seed)]
    if len(data) <= BYTEWISE_SIZE_BYTES_MAX:
        ways.append([data[at : at + 1] for at in range(len(data))])
    return ways
