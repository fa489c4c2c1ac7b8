"""Whether a history of clients is linearizable: one register a key, each operation at one instant.

The search is Wing and Gong's with Lowe's memory of states seen (WGL): take any operation that began
before every other remaining one ended, apply it, go on; where nothing fits, go back. Keys are
independent (linearizability is local), so each is judged alone. Up to about ten clients at a time;
the time needed grows with how many operations overlap, not with how many there are.

An operation whose outcome is unknown (`returned` None: no answer, a timeout) may have happened at
any time after its call, or never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

# States looked at for one key before giving up; a few hundred are usual.
STATES_MAX: Final = 2_000_000


class Kind(Enum):
    """What an operation does to its register."""

    READ = "read"
    WRITE = "write"
    CAS = "cas"


class Swap(NamedTuple):
    """The argument of a compare-and-set."""

    expected: object
    new: object


class Operation(NamedTuple):
    """What one client asked and saw. Times are of one clock, which never goes back.

    `argument`: what a write writes; a compare-and-set's `Swap`.
    `result`: what a read saw (None: the register was never written); whether a compare-and-set
    took place.
    `returned`: None where the outcome is unknown. A read without an answer need not be told.
    """

    key: object
    kind: Kind
    argument: object
    result: object
    called: float
    returned: float | None


class NotLinearizableError(AssertionError):
    """No order of the operations on `key` explains what the clients saw.

    Attributes:
        key: the register.
        operations: those on it.
    """

    def __init__(self, key: object, operations: Sequence[Operation]) -> None:
        told = "\n".join(f"  {op}" for op in operations)
        super().__init__(f"not linearizable: register {key!r}:\n{told}")
        self.key = key
        self.operations = operations


class SearchTooLongError(RuntimeError):
    """Undecided: more than `STATES_MAX` states."""


def check_linearizable(history: Iterable[Operation]) -> None:
    """Judge a history.

    Raises:
        NotLinearizableError: it is not.
        SearchTooLongError: too many operations overlap.
    """
    by_key: defaultdict[object, list[Operation]] = defaultdict(list)
    for operation in history:
        if operation.returned is not None or operation.kind is not Kind.READ:
            by_key[operation.key].append(operation)
    for key, operations in by_key.items():
        if not is_linearizable(_relevant(operations)):
            raise NotLinearizableError(key, operations)


def _relevant(operations: list[Operation]) -> list[Operation]:
    """Without the writes of unknown outcome that nobody can have noticed.

    Where no compare-and-set looks at the register, a write that no read saw can be left out of any
    order, and put back at its end: it explains nothing.
    """
    if any(op.kind is Kind.CAS for op in operations):
        return operations
    seen = {op.result for op in operations if op.kind is Kind.READ}
    return [
        op
        for op in operations
        if op.returned is not None or op.kind is not Kind.WRITE or op.argument in seen
    ]


def apply(operation: Operation, value: object) -> tuple[bool, object]:
    """Whether `operation` may see what it saw when the register holds `value`; what it leaves."""
    if operation.kind is Kind.WRITE:
        return True, operation.argument
    if operation.kind is Kind.READ:
        return operation.result == value, value
    assert isinstance(operation.argument, Swap), "a compare-and-set is given a Swap"
    done = value == operation.argument.expected
    if operation.returned is None or operation.result == done:
        return True, operation.argument.new if done else value
    return False, value


def is_linearizable(operations: Sequence[Operation], *, states_max: int = STATES_MAX) -> bool:
    """Whether some order of these operations on one register explains what they saw.

    Raises:
        SearchTooLongError: more than `states_max` states were looked at.
    """
    ops = sorted(operations, key=lambda op: op.called)
    needed = 0
    for at, op in enumerate(ops):
        if op.returned is not None:
            needed |= 1 << at
    unread = _unread(ops)
    # A state: which operations were taken (a bit each), and what the register holds.
    stack: list[tuple[int, object]] = [(0, None)]
    seen = set(stack)
    while stack:
        taken, value = stack.pop()
        taken, candidates = _take_free(ops, taken, value)
        # What nobody reads may come just before the next write that somebody does.
        free = 1
        while free and unread:
            free = sum(1 << at for at in candidates if unread >> at & 1)
            taken |= free
            if free:
                candidates = _candidates(ops, taken)
        if taken & needed == needed:
            return True
        for at in candidates:
            fits, after = apply(ops[at], value)
            state = (taken | 1 << at, after)
            if fits and state not in seen and ops[at].kind is not Kind.READ:
                if len(seen) >= states_max:
                    raise SearchTooLongError(f"more than {states_max} states")
                seen.add(state)
                stack.append(state)
    return False


def _unread(ops: Sequence[Operation]) -> int:
    """Writes that no read saw, a bit each; none where a compare-and-set may have seen them."""
    if any(op.kind is Kind.CAS for op in ops):
        return 0
    seen = {op.result for op in ops if op.kind is Kind.READ}
    return sum(
        1 << at for at, op in enumerate(ops) if op.kind is Kind.WRITE and op.argument not in seen
    )


def _take_free(ops: Sequence[Operation], taken: int, value: object) -> tuple[int, list[int]]:
    """Take what changes nothing, did happen, and may come first: nothing is lost by it."""
    while True:
        candidates = _candidates(ops, taken)
        free = 0
        for at in candidates:
            op = ops[at]
            if op.kind is not Kind.WRITE and op.returned is not None:
                fits, after = apply(op, value)
                if fits and after == value:
                    free |= 1 << at
        if not free:
            return taken, candidates
        taken |= free


def _candidates(ops: Sequence[Operation], taken: int) -> list[int]:
    """Remaining operations that began before every other remaining one ended."""
    found: list[int] = []
    ends = float("inf")
    # The lowest bit that is not set is the first remaining operation.
    at = (~taken & (taken + 1)).bit_length() - 1
    while at < len(ops):
        op = ops[at]
        if op.called > ends:
            break
        if not taken >> at & 1:
            found.append(at)
            if op.returned is not None and op.returned < ends:
                ends = op.returned
        at += 1
    return [at for at in found if ops[at].called <= ends]
