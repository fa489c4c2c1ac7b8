"""The state machine under the simulated servers: a few registers, and a digest of its history."""

from __future__ import annotations

from typing import NamedTuple

from rafthttp.raft.types import Index
from rafthttp.testing.coremember import Entry

_MASK = (1 << 61) - 1


class Command(NamedTuple):
    """Set register `key` to `value`. Values are unique, so a value names its command.

    `data` is for an application's state machine beside the registers.
    """

    key: int
    value: int
    data: bytes = b""


class Machine:
    """Registers; `applied` is the last entry taken in, `digest` names all of them in order."""

    __slots__ = ("applied", "digest", "values")

    def __init__(self) -> None:
        self.applied: Index = 0
        self.digest = 0
        self.values: dict[int, int] = {}

    def apply(self, index: Index, entry: Entry) -> None:
        """Take in the next entry."""
        assert index == self.applied + 1, "each entry once, in order"
        self.applied = index
        payload = entry.payload
        value = 0
        if isinstance(payload, Command):
            value = payload.value
            self.values[payload.key] = value
        self.digest = (self.digest * 1_000_003 + entry.term * 8191 + value + index) & _MASK

    def end_batch(self) -> None:
        """The entries taken in since the last time were one batch."""

    def save(self) -> None:
        """Of a snapshot: it is written now, while the state machine it was taken of goes on."""

    def copy(self) -> Machine:
        """A snapshot of it."""
        copied = Machine()
        copied.applied, copied.digest = self.applied, self.digest
        copied.values = dict(self.values)
        return copied
