"""Bugs of sessions: commands that are sent again."""

from __future__ import annotations

import random
from typing import Any, BinaryIO, Final

from rafthttp.raft.fsm import FSM, BytesSnapshot, FSMSnapshot
from rafthttp.raft.types import Log
from rafthttp.sessions.envelope import once
from rafthttp.sessions.fsm import SessionFSM
from rafthttp.sessions.table import SessionTable
from rafthttp.testing.mutants.plant import Patch

# pyright: reportPrivateUsage=false
# A bug is planted inside.


class Count(FSM):
    """Answers how many commands it has applied."""

    def __init__(self) -> None:
        self._applied = 0

    def apply(self, log: Log) -> Any:
        """One more."""
        del log
        self._applied += 1
        return self._applied

    def snapshot(self) -> FSMSnapshot:
        """The number."""
        return BytesSnapshot(str(self._applied).encode())

    def restore(self, source: BinaryIO) -> None:
        """The number."""
        self._applied = int(source.read())


def count_in_sessions() -> SessionFSM:
    """What the simulator replicates."""
    return SessionFSM(Count())


def repeated_commands(rng: random.Random) -> bytes:
    """A few requests, each sent many times."""
    return once(f"request {rng.randrange(30)}", None, b"count")


def dedup_in_the_driver(patch: Patch) -> None:
    """Sessions: a process knows its own repeats; its snapshots do not, nor who is sent one."""
    restored = SessionFSM.restore

    def snapshot(self: SessionFSM) -> FSMSnapshot:
        return self._inner.snapshot()

    def restore(self: SessionFSM, source: BinaryIO) -> None:
        restored(self, source)
        self._table = SessionTable()

    patch.set(SessionFSM, "snapshot", snapshot)
    patch.set(SessionFSM, "restore", restore)


PLANTS: Final = (dedup_in_the_driver,)
