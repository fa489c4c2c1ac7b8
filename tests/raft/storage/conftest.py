"""Stores of every kind, for tests that all of them must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from rafthttp.raft.storage import reserve
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import Index, LogWrite, ServerID
from rafthttp.testing.storage import DurableStore, FaultyStore


class ReopenedStore(FaultyStore):
    """Closes and opens the store after each write: only what is on disk is ever read."""

    def __init__(self, reopen: Callable[[], DurableStore]) -> None:
        super().__init__(reopen())
        self._reopen = reopen

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        super().set(values)
        self._again()

    def write(self, writes: Sequence[LogWrite]) -> None:
        super().write(writes)
        self._again()

    def delete_prefix(self, last: Index) -> None:
        super().delete_prefix(last)
        self._again()

    def _again(self) -> None:
        self.inner.close()
        self.inner = self._reopen()


@pytest.fixture(autouse=True)
def small_reserve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of stores are made here: 16 MiB each would be gigabytes."""
    if request.path.stem != "test_reserve":
        monkeypatch.setattr(reserve, "RESERVE_SIZE_BYTES", 64 << 10)


@pytest.fixture(params=["memory", "sqlite", "reopened", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DurableStore]:
    def open_sqlite() -> SqliteStore:
        return SqliteStore.open(tmp_path / "data", ServerID("n1"))

    made: DurableStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = open_sqlite()
    elif request.param == "reopened":
        made = ReopenedStore(open_sqlite)
    else:
        made = FaultyStore(MemoryStore())
    yield made
    made.close()
