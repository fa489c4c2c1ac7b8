"""Random histories on every store against a dictionary, reopening as one of the operations."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rafthttp.raft.storage import log_table, rows
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID
from rafthttp.testing.storage import DurableStore

KEYS = [b"", b"term", b"vote", b"node_id"]
pairs = st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=4), max_size=3)
records = st.lists(st.binary(max_size=40), max_size=12)


@st.composite
def writes(draw: st.DrawFn, first: int, last: int, term: int) -> list[LogWrite]:
    """Some writes that fit a log `first..last` whose last term is at most `term`."""
    made: list[LogWrite] = []
    for _ in range(draw(st.integers(1, 3))):
        reset = draw(st.none() | st.none() | st.integers(0, last + 10))
        if reset is not None:
            first, last = reset + 1, reset
        cut = draw(st.none() | st.integers(first, last + 2))
        if cut is not None:
            last = min(last, cut - 1)
        batches: list[LogBatch] = []
        for _ in range(draw(st.integers(0, 2))):
            term += draw(st.integers(0, 1))
            batches.append(LogBatch(last + 1, term, draw(records)))
            last = batches[-1].last
        made.append(LogWrite(draw(pairs), cut, tuple(batches), reset))
    return made


class LogMachine(RuleBasedStateMachine):
    """The model is two dictionaries and the index of the first entry."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        # Small bounds, so that short histories meet them.
        self.patches = [
            mock.patch.object(rows, "ROW_SIZE_BYTES_MAX", 64),
            mock.patch.object(rows, "ROW_ENTRIES_MAX", 5),
            mock.patch.object(log_table, "_PREFIX_ROWS", 2),
            mock.patch.object(log_table, "_PREFIX_SIZE_BYTES", 80),
        ]
        for patch in self.patches:
            patch.start()
        self.store: DurableStore = MemoryStore()
        self.first, self.last, self.term = 1, 0, 1
        self.log: dict[int, tuple[int, bytes]] = {}
        self.stable: dict[bytes, bytes] = {}

    @initialize(durable=st.booleans())
    def open(self, durable: bool) -> None:
        if durable:
            self.store = SqliteStore.open(self.dir, ServerID("n1"))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        made = data.draw(writes(self.first, self.last, self.term))
        self.store.write(made)
        for write in made:
            self.change(write)

    def change(self, write: LogWrite) -> None:
        for key, value in write.stable.items():
            self.stable.pop(key, None)
            if value is not None:
                self.stable[key] = value
        if write.reset_to is not None:
            self.log, self.first, self.last = {}, write.reset_to + 1, write.reset_to
        if write.truncate_from is not None:
            self.last = min(self.last, write.truncate_from - 1)
            self.log = {i: entry for i, entry in self.log.items() if i <= self.last}
        for first, term, batch in write.batches:
            self.log |= {first + i: (term, record) for i, record in enumerate(batch)}
            self.last = first + len(batch) - 1
            self.term = max(self.term, term)

    @rule(values=pairs)
    def set(self, values: dict[bytes, bytes | None]) -> None:
        self.store.set(values)
        self.change(LogWrite(values))

    @rule(data=st.data())
    def delete_prefix(self, data: st.DataObject) -> None:
        last = data.draw(st.integers(max(0, self.first - 2), self.last + 2))
        self.store.delete_prefix(last)
        self.first = max(self.first, min(last, self.last) + 1)
        self.log = {i: entry for i, entry in self.log.items() if i >= self.first}

    @rule()
    def reopen(self) -> None:
        if isinstance(self.store, SqliteStore):
            self.store.close()
            self.store = SqliteStore.open(self.dir, ServerID("n1"))

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        if not self.log:
            return
        first = data.draw(st.integers(self.first, self.last))
        last = data.draw(st.integers(first, self.last))
        size = data.draw(st.integers(0, 200))
        found = self.store.get_records(first, last, size)
        held = [self.log[i][1] for i in range(first, last + 1)]
        assert 1 <= len(found) <= len(held)
        assert found == held[: len(found)]
        assert len(found) == 1 or sum(map(len, found)) <= size
        assert len(found) == len(held) or sum(map(len, held[: len(found) + 1])) > size

    @invariant()
    def same(self) -> None:
        store = self.store
        assert (store.first_index(), store.last_index()) == (self.first, self.last)
        assert {key: store.get(key) for key in KEYS} == {key: self.stable.get(key) for key in KEYS}
        if not self.log:
            return
        indexes = range(self.first, self.last + 1)
        assert store.get_records(self.first, self.last, 1 << 30) == [
            self.log[i][1] for i in indexes
        ]
        terms = [self.log[i][0] for i in indexes]
        assert [store.term_at(i) for i in indexes] == terms
        starts = [i for i, t in enumerate(terms) if i == 0 or t != terms[i - 1]]
        runs = [(self.first + i, terms[i]) for i in starts]
        assert store.term_runs(self.first, self.last) == runs

    def teardown(self) -> None:
        self.store.close()
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.dir)


LogMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None, derandomize=True
)
TestLog = LogMachine.TestCase
