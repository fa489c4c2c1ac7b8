"""An application's state machine under the simulated servers, and what its replicas must agree on.

Knows `FSM` and the registers beside it (`sim.machine`); not networks or elections. Asked of every
entry, for each replica: the same answer; the same state after it, however the replica got there;
that a snapshot is the state of the moment at which it was taken, and `restore` gives that back.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, Final

from rafthttp.raft.fsm import FSM, ConfigurationStore, FSMSnapshot
from rafthttp.raft.types import Configuration, Index, Log, LogType
from rafthttp.testing.coremember import Entry
from rafthttp.testing.sim.machine import Command, Machine

_NOTHING: Final = object()


class StateMachineError(AssertionError):
    """The state machine breaks what every replica relies on; the text says how."""


class Seen:
    """What the replicas of one history answered, and were.

    Args:
        make: makes a state machine.
        state: what of one must be equal on all replicas; without it, what its snapshot writes.

    Attributes:
        commands: by index, what was applied.
        answers: by index, the first answer to it.
    """

    def __init__(self, make: Callable[[], FSM], state: Callable[[FSM], object] | None) -> None:
        self.make = make
        self.name = getattr(make, "__qualname__", repr(make))
        self._state = dump if state is None else state
        self._is_dumped = state is None
        self.commands: dict[Index, bytes] = {}
        self.answers: dict[Index, Any] = {}
        self._states: dict[Index, object] = {0: self.state_of(make())}

    def state_of(self, fsm: FSM) -> object:
        """What must be equal."""
        return copy.deepcopy(self._state(fsm))

    def answered(self, index: Index, data: bytes, answer: Any) -> None:
        """A replica applied that command."""
        self.commands[index] = data
        if index not in self.answers:
            self.answers[index] = copy.deepcopy(answer)
            return
        first = self.answers[index]
        if not _same(first, answer):
            raise StateMachineError(
                f"{self.name} is not deterministic: to command {index}, {_short(data)}, one replica"
                f" answered {_short(first)}, another {_short(answer)}. Only the commands before it"
                " may decide: no clock, no randomness, no order of a set, nothing that restore"
                " leaves out"
            )

    def reached(self, index: Index, fsm: FSM, how: str = "") -> None:
        """A replica has applied all up to `index`, or (`how`) was restored to it."""
        state = self.state_of(fsm)
        first = self._states.setdefault(index, state)
        if first == state:
            return
        hint = ""
        if self._is_dumped:
            hint = (
                ". (What its snapshot wrote was compared. Where equal states may write different"
                " bytes, pass state=, a function that returns what must be equal)"
            )
        if how:
            raise StateMachineError(
                f"{self.name} {how}: at command {index} it was {_short(first)}, then"
                f" {_short(state)}{hint}"
            )
        raise StateMachineError(
            f"{self.name} is not deterministic: after command {index} one replica is"
            f" {_short(first)}, another {_short(state)}{hint}"
        )


def dump(fsm: FSM) -> bytes:
    """What a snapshot of it writes now."""
    return _written(fsm.snapshot())


def _written(snapshot: FSMSnapshot) -> bytes:
    sink = io.BytesIO()
    try:
        snapshot.persist(sink)
        return sink.getvalue()
    finally:
        snapshot.release()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Exception):
        return type(one) is type(other) and one.args == other.args
    if one == other:
        return True
    # An object that was never told how to compare: by what it holds.
    plain = type(one) is type(other) and "__eq__" not in {
        name for base in type(one).__mro__[:-1] for name in vars(base)
    }
    return plain and getattr(one, "__dict__", _NOTHING) == getattr(other, "__dict__", None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


class Replica(Machine):
    """The registers of the simulated clients, and an application's state machine beside them."""

    __slots__ = ("_logs", "_seen", "_snapshot", "_store", "fsm")

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._logs: list[Log] = []
        self._snapshot: FSMSnapshot | bytes | None = None
        self.fsm = seen.make()
        self._store = self.fsm if isinstance(self.fsm, ConfigurationStore) else None

    def apply(self, index: Index, entry: Entry) -> None:
        """Take in the next entry; commands wait for the end of their batch."""
        payload = entry.payload
        if isinstance(payload, Configuration) and self._store is not None:
            self.end_batch()
            self._store.store_configuration(index, payload)
        super().apply(index, entry)
        if isinstance(payload, Command) and payload.data:
            self._logs.append(Log(index, entry.term, LogType.COMMAND, payload.data))

    def end_batch(self) -> None:
        """Apply what waits; each replica has its own batches."""
        logs, self._logs = self._logs, []
        if not logs:
            return
        answers = self.fsm.apply_batch(logs)
        if len(answers) != len(logs):
            raise StateMachineError(
                f"{self._seen.name}.apply_batch got {len(logs)} commands,"
                f" gave {len(answers)} answers"
            )
        for log, answer in zip(logs, answers, strict=True):
            self._seen.answered(log.index, log.data, answer)
        self._seen.reached(self.applied, self.fsm)

    def copy(self) -> Replica:
        """Of a replica: a snapshot, begun. Of a snapshot: a replica that is restored from it."""
        made = Replica(self._seen)
        made.applied, made.digest, made.values = self.applied, self.digest, dict(self.values)
        if self._snapshot is None:
            # Compared with what it writes later, and restores.
            self._seen.reached(self.applied, self.fsm)
            made._snapshot = self.fsm.snapshot()
            return made
        self.save()
        assert isinstance(self._snapshot, bytes)
        made.fsm.restore(io.BytesIO(self._snapshot))
        self._seen.reached(self.applied, made.fsm, "is another after snapshot and restore")
        return made

    def save(self) -> None:
        """Of a snapshot: write it, for the state machine has gone on since."""
        if self._snapshot is not None and not isinstance(self._snapshot, bytes):
            self._snapshot = _written(self._snapshot)
