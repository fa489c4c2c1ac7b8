"""`SessionFSM`: a state machine whose commands, sent again, are answered again and applied once.

Knows the table and the inner state machine; every replica must run it (docs/reference/sessions.md).
Cost of an enveloped command: see bench/sessions.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from rafthttp.raft.fsm import FSM, ConfigurationStore, FSMSnapshot, OwnState, check_fsm
from rafthttp.raft.types import Configuration, Index, Log
from rafthttp.sessions import answers
from rafthttp.sessions.envelope import ENVELOPE_SIZE_BYTES, MAGIC
from rafthttp.sessions.snapshot import TableSnapshot, split
from rafthttp.sessions.table import SessionTable, Waiting


class SessionFSM(FSM):
    """Applies enveloped commands once; others as they come.

    Args:
        inner: the application's state machine. It gets commands without their envelopes.
    """

    def __init__(self, inner: FSM) -> None:
        check_fsm(inner)
        self._inner = inner
        self._configurations = inner if isinstance(inner, ConfigurationStore) else None
        self._table = SessionTable()
        self._encoder = answers.Encoder()

    @property
    def inner(self) -> FSM:
        """The application's state machine."""
        return self._inner

    def apply(self, log: Log) -> Any:
        """One command (`FSM.apply`); a duplicate's remembered exception is a RemoteApplyError."""
        if not log.data.startswith(MAGIC):
            return self._inner.apply(log)
        (answer,) = self._apply((log,))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Several commands (`FSM.apply_batch`), as one batch of the inner state machine."""
        for log in logs:
            if log.data.startswith(MAGIC):
                break
        else:
            return self._inner.apply_batch(logs)
        if self._table.has_room_for(len(logs)):
            return self._apply(logs)
        # Near a limit what an entry does depends on the answers of all before it.
        return [self._apply((log,))[0] for log in logs]

    def store_configuration(self, index: Index, configuration: Configuration) -> None:
        """For the inner state machine, if it wants it (`ConfigurationStore`)."""
        if self._configurations is not None:
            self._configurations.store_configuration(index, configuration)

    def snapshot(self) -> FSMSnapshot:
        """The table and the inner state machine, now (`FSM.snapshot`)."""
        return TableSnapshot(self._table, self._inner.snapshot())

    def restore(self, source: BinaryIO) -> None:
        """Replace both (`FSM.restore`); a snapshot without a table is the inner one's.

        Raises:
            SessionFormatError: the table is cut short, damaged, or of a newer version.
        """
        table, rest = split(source)
        self._inner.restore(rest)
        self._table = table

    def restore_own(self, source: BinaryIO) -> None:
        """Replace the table alone: the inner state machine keeps its state itself (`OwnState`).

        Raises:
            SessionFormatError: as `restore`.
        """
        table, rest = split(source)
        if isinstance(self._inner, OwnState):
            self._inner.restore_own(rest)
        self._table = table

    def _apply(self, logs: Sequence[Log]) -> list[Any]:
        decide = self._table.decide
        results: list[Any] = []
        commands: list[Log] = []
        waits: list[Waiting | None] = []
        positions: list[int] = []  # of each command among the results
        repeated: list[tuple[int, Waiting]] = []
        for position, log in enumerate(logs):
            data = log.data
            waiting = None
            if data.startswith(MAGIC):
                decided = decide(data, log.appended_at_ns)
                if not isinstance(decided, Waiting):
                    results.append(
                        answers.decode(decided) if isinstance(decided, bytes) else decided
                    )
                    continue
                if decided.is_taken:
                    results.append(None)
                    repeated.append((position, decided))
                    continue
                waiting = decided
                waiting.is_taken = True
                log = _opened(log)  # noqa: PLW2901 - the same entry without its envelope
            results.append(None)
            commands.append(log)
            waits.append(waiting)
            positions.append(position)
        if commands:
            given = self._inner.apply_batch(commands)
            if len(given) != len(commands):
                raise RuntimeError(f"{len(given)} results for {len(commands)} commands")
            remember, encode = self._table.remember, self._encoder.encode
            for position, waiting, answer in zip(positions, waits, given, strict=True):
                results[position] = answer
                if waiting is not None and waiting.holder is not None:
                    remember(waiting, encode(answer))
        for position, waiting in repeated:
            results[position] = answers.decode(waiting.remembered)
        return results


def _opened(log: Log) -> Log:
    command = log.data[ENVELOPE_SIZE_BYTES:]
    return Log(log.index, log.term, log.type, command, log.extensions, log.appended_at_ns)
