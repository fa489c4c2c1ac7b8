"""Committed entries to the state machine, in order: what is handed over of them, and how.

Shared by whatever replays a log; knows nothing of where entries come from, nor who waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rafthttp.raft.fsm import FSM, ConfigurationStore
from rafthttp.raft.types import Log, LogType
from rafthttp.raft.wire.configuration import decode_configuration


def configuration_store(fsm: FSM) -> ConfigurationStore | None:
    """The state machine as one that wants configurations too, or None. To be asked once."""
    return fsm if isinstance(fsm, ConfigurationStore) else None


def apply_entries(
    fsm: FSM, configurations: ConfigurationStore | None, logs: Sequence[Log]
) -> Sequence[Any]:
    """Hand entries over; one result for each command among them.

    Raises:
        Exception: the state machine cannot go on (what it says of one command is a result).
    """
    commands = [log for log in logs if log.type is LogType.COMMAND]
    if configurations is None or len(commands) == len(logs):
        return _apply_commands(fsm, commands)
    results: list[Any] = []
    batch: list[Log] = []
    for log in logs:
        if log.type is LogType.COMMAND:
            batch.append(log)
        elif log.type is LogType.CONFIGURATION:
            results += _apply_commands(fsm, batch)
            batch = []
            configurations.store_configuration(log.index, decode_configuration(log.data))
    results += _apply_commands(fsm, batch)
    return results


def _apply_commands(fsm: FSM, commands: Sequence[Log]) -> Sequence[Any]:
    results = fsm.apply_batch(commands) if commands else ()
    if len(results) != len(commands):
        raise RuntimeError(
            f"apply_batch answered {len(results)} results for {len(commands)} commands"
        )
    return results
