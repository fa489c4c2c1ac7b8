"""What a power loss leaves of what was asked of a disk and not flushed yet.

Knows changes and where a file's sectors begin; what is recorded, and what a flush makes durable, is
a test's. Everything that was flushed is there. Of the rest any part may be, in any order; a write
may be torn between two sectors, and where it was torn there may be garbage.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

KINDS: Final = (
    "lost",
    "kept",
    "prefix",
    "subset",
    "torn 512",
    "torn 4096",
    "garbage 512",
    "garbage 4096",
)
"""The fates of changes that were not flushed.

- `lost`, `kept`: none is there, or all are.
- `prefix`: of each file (and each directory's names) those up to some point.
- `subset`: any of them.
- `torn SIZE`: any of them; of the last write, and of some others, only some sectors.
- `garbage SIZE`: likewise, and one of the sectors that are missing holds other bytes.
"""

_SURVIVES: Final = 0.6
_TORN: Final = 0.3


class Change(Protocol):
    """Something that a flush makes durable."""

    @property
    def name(self) -> str:
        """The file that is changed, or the directory whose names are."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset of a file."""

    name: str
    offset: int
    data: bytes


_C = TypeVar("_C", bound=Change)


def surviving(later: Sequence[_C], kind: str, chosen: random.Random) -> list[_C | Write]:
    """What is there after a power loss of that kind of what came later than the last flush."""
    match kind.split():
        case ["lost"]:
            return []
        case ["kept"]:
            return list(later)
        case ["prefix"]:
            counts = Counter(change.name for change in later)
            left = {name: chosen.randrange(count + 1) for name, count in counts.items()}
            kept: list[_C | Write] = []
            for change in later:
                if left[change.name] > 0:
                    kept.append(change)
                left[change.name] -= 1
            return kept
        case ["subset"]:
            return [change for change in later if chosen.random() < _SURVIVES]
        case ["torn" | "garbage" as fate, size]:
            return _torn(later, int(size), chosen, garbage=fate == "garbage")
        case _:
            raise ValueError(f"no kind of power loss: {kind}")


def sectors(write: Write, size: int) -> list[Write]:
    """A write cut where the file's sectors begin."""
    first = write.offset - write.offset % size
    ends = [*range(first + size, write.offset + len(write.data), size)]
    begins = [write.offset, *ends]
    return [
        Write(write.name, begin, write.data[begin - write.offset : end - write.offset])
        for begin, end in zip(begins, [*ends, write.offset + len(write.data)], strict=True)
    ]


def _torn(
    later: Sequence[_C], size: int, chosen: random.Random, *, garbage: bool
) -> list[_C | Write]:
    last = max((at for at, change in enumerate(later) if isinstance(change, Write)), default=-1)
    kept: list[_C | Write] = []
    for at, change in enumerate(later):
        if isinstance(change, Write) and (at == last or chosen.random() < _TORN):
            kept += _pieces(change, size, chosen, garbage=garbage)
        elif chosen.random() < _SURVIVES:
            kept.append(change)
    return kept


def _pieces(write: Write, size: int, chosen: random.Random, *, garbage: bool) -> list[Write]:
    """Some sectors of a write: those in front, those behind, or any; of one alone all or none."""
    pieces = sectors(write, size)
    count = len(pieces)
    if count == 1:
        missing = [0] if garbage or chosen.random() < 0.5 else []
    else:
        cut = chosen.randrange(1, count)
        missing = chosen.choice(
            [[*range(cut, count)], [*range(cut)], sorted(chosen.sample(range(count), cut))]
        )
    kept = [piece for at, piece in enumerate(pieces) if at not in missing]
    if garbage:
        broken = pieces[chosen.choice(missing)]
        kept.append(replace(broken, data=chosen.randbytes(len(broken.data))))
    return kept
