"""What a stopped node's state machine was given: its log on disk, applied again.

Knows the stores and `SessionFSM`; a log whose beginning went into a snapshot is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Final

from rafthttp.raft.fsm import FSM, BytesSnapshot
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import Log, LogType, ServerID
from rafthttp.raft.wire.entries import decode_log
from rafthttp.sessions.fsm import SessionFSM

_READ_BYTES: Final = 1 << 20


class _Recorder(FSM):
    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, log: Log) -> Any:
        self.commands.append(log.data)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: BinaryIO) -> None:
        raise NotImplementedError


def logged_commands(data_dir: Path, node_id: str) -> list[Log]:
    """All commands in the log, in order, as they stand there."""
    store = SqliteStore.open(data_dir, ServerID(node_id))
    try:
        logs: list[Log] = []
        index, last = store.first_index(), store.last_index()
        assert index <= 1, "the beginning of the log is gone"
        while index <= last:
            records = store.get_records(index, last, _READ_BYTES)
            entries = [decode_log(record) for record in records]
            logs += [log for log in entries if log.type is LogType.COMMAND]
            index += len(records)
        return logs
    finally:
        store.close()


def applied_commands(data_dir: Path, node_id: str) -> list[bytes]:
    """The commands that reached the application's state machine, in order."""
    recorder = _Recorder()
    SessionFSM(recorder).apply_batch(logged_commands(data_dir, node_id))
    return recorder.commands
