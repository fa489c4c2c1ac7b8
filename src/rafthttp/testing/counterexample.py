"""The smallest part of a history of one register that is still not linearizable.

Knows which parts may be left out without making a right history wrong: what came after a moment; a
read; all writes of one value, together with all that saw it. What is left is therefore a proof by
itself, and short enough to be read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from rafthttp.testing.linearizability import (
    Kind,
    Operation,
    SearchTooLongError,
    is_linearizable,
)

# Judging a part takes less than the whole; a part that takes more is kept.
_STATES_MAX: Final = 100_000


def smallest(operations: Sequence[Operation]) -> list[Operation]:
    """What cannot be left out of a history of one register that is not linearizable.

    In the order of the calls; what was still under way when it went wrong is told as unknown. A
    history that is linearizable comes back as it is.
    """
    kept = sorted(operations, key=lambda op: op.called)
    if _may_be_right(kept):
        return kept
    kept = _shortest_prefix(kept)
    size = max(1, len(kept) // 2)
    while True:
        removed = False
        groups = _groups(kept)
        for begin in range(0, len(groups), size):
            without = _without(kept, groups[begin : begin + size])
            if len(without) < len(kept) and not _may_be_right(without):
                kept, removed = without, True
        if size == 1 and not removed:
            return kept
        size = max(1, size // 2)


def _shortest_prefix(operations: Sequence[Operation]) -> list[Operation]:
    """Up to the first answer that cannot be right."""
    ends = sorted(op.returned for op in operations if op.returned is not None)
    right, wrong = -1, len(ends) - 1
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if _may_be_right(_until(operations, ends[middle])):
            right = middle
        else:
            wrong = middle
    return _until(operations, ends[wrong])


def _until(operations: Sequence[Operation], moment: float) -> list[Operation]:
    prefix: list[Operation] = []
    for op in operations:
        if op.returned is not None and op.returned <= moment:
            prefix.append(op)
        elif op.called <= moment and op.kind is not Kind.READ:
            prefix.append(op._replace(returned=None))
    return prefix


def _groups(operations: Sequence[Operation]) -> list[list[Operation]]:
    """What may be left out together: each read alone, all writes of a value with what saw it."""
    groups = [[op] for op in operations if op.kind is Kind.READ]
    if any(op.kind is Kind.CAS for op in operations):
        return groups
    by_value: defaultdict[object, list[Operation]] = defaultdict(list)
    for op in operations:
        by_value[op.argument if op.kind is Kind.WRITE else op.result].append(op)
    return groups + list(by_value.values())


def _without(
    operations: Sequence[Operation], groups: Sequence[Sequence[Operation]]
) -> list[Operation]:
    gone = {id(op) for group in groups for op in group}
    return [op for op in operations if id(op) not in gone]


def _may_be_right(operations: Sequence[Operation]) -> bool:
    try:
        return is_linearizable(operations, states_max=_STATES_MAX)
    except SearchTooLongError:
        return True
