"""Random histories on both snapshot stores against a dictionary, damage and restarts among them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rafthttp.raft.errors import CorruptSnapshotError, StorageError
from rafthttp.raft.storage.memory import MemorySnapshotStore
from rafthttp.raft.storage.protocols import SnapshotMeta, SnapshotSink, SnapshotStore
from rafthttp.raft.storage.snapshot_files import STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.snapshots import open_newest
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

configurations = st.lists(
    st.builds(
        Server,
        st.text(min_size=1, max_size=3).map(ServerID),
        st.text(min_size=1, max_size=3).map(ServerAddress),
        st.sampled_from(Suffrage),
    ),
    max_size=3,
    unique_by=(lambda server: server.id, lambda server: server.address),
).map(lambda servers: Configuration(tuple(servers)))


class SnapshotMachine(RuleBasedStateMachine):
    """The model: sinks that are open with what was written, and what was closed, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        self.store: SnapshotStore = MemorySnapshotStore()
        self.retain = 1
        self.sinks: list[tuple[SnapshotSink, SnapshotMeta, bytearray]] = []
        self.kept: dict[str, tuple[SnapshotMeta, bytes]] = {}
        self.order: dict[str, tuple[int, int, int]] = {}  # of every name ever given
        self.broken: set[str] = set()
        self.gone: set[str] = set()

    @initialize(retain=st.integers(0, 3))
    def open(self, retain: int) -> None:
        if retain:
            self.retain = retain
            self.store = FileSnapshotStore(self.dir / "snapshots", retain)

    @rule(index=st.integers(1, 12), term=st.integers(1, 2), configuration=configurations)
    def begin(self, index: int, term: int, configuration: Configuration) -> None:
        sink = self.store.create(index, term, configuration, index // 2)
        assert sink.id not in self.order
        self.order[sink.id] = (term, index, len(self.order))
        meta = SnapshotMeta(sink.id, index, term, configuration, index // 2, 0)
        self.sinks.append((sink, meta, bytearray()))

    @precondition(lambda self: self.sinks)
    @rule(data=st.data(), piece=st.binary(max_size=20), times=st.sampled_from([1, 1, 100_000]))
    def write(self, data: st.DataObject, piece: bytes, times: int) -> None:
        sink, _, written = data.draw(st.sampled_from(self.sinks))
        assert sink.write(piece * times) == len(piece) * times
        written += piece * times

    @precondition(lambda self: self.sinks)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sink, begun, written = self.sinks.pop(data.draw(st.integers(0, len(self.sinks) - 1)))
        sink.close()
        meta = SnapshotMeta(
            begun.id, begun.index, begun.term, begun.configuration, begun.configuration_index,
            len(written),
        )  # fmt: skip
        self.kept[meta.id] = (meta, bytes(written))
        for superfluous in self.newest()[self.retain :]:
            del self.kept[superfluous]
            self.gone.add(superfluous)
        sink.close()
        sink.cancel()

    @precondition(lambda self: self.sinks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sink, meta, _ = self.sinks.pop(data.draw(st.integers(0, len(self.sinks) - 1)))
        sink.cancel()
        self.gone.add(meta.id)
        with pytest.raises(StorageError):
            sink.write(b"more")

    @rule()
    def restart(self) -> None:
        """As after a crash: sinks are not ended; their names may be given again."""
        if isinstance(self.store, FileSnapshotStore):
            self.store = FileSnapshotStore(self.dir / "snapshots", self.retain)
            for sink, meta, _ in self.sinks:
                del self.order[meta.id]
                sink.cancel()
            self.sinks.clear()
            for name in self.gone & self.order.keys():
                del self.order[name]
            self.gone.clear()

    @precondition(lambda self: self.kept and isinstance(self.store, FileSnapshotStore))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A bit of a state flips, or its end is gone; the next open finds out."""
        name = data.draw(st.sampled_from(sorted(self.kept)))
        path = self.dir / "snapshots" / name / STATE_FILE
        content = bytearray(path.read_bytes())
        if not content:
            content += b"x"
        elif data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        path.write_bytes(content)
        with pytest.raises(CorruptSnapshotError):
            self.store.open(name)
        del self.kept[name]
        self.gone.add(name)

    def newest(self) -> list[str]:
        return sorted(self.kept, key=lambda name: self.order[name], reverse=True)

    @invariant()
    def same(self) -> None:
        assert list(self.store.list()) == [self.kept[name][0] for name in self.newest()]

    @invariant()
    def what_is_kept_can_be_read(self) -> None:
        for name, (meta, state) in self.kept.items():
            found, source = self.store.open(name)
            with source:
                assert (found, source.read()) == (meta, state)
        for name in self.gone - self.kept.keys():
            with pytest.raises(StorageError):
                self.store.open(name)
        newest = open_newest(self.store)
        assert (newest is None) == (not self.kept)
        if newest is not None:
            newest[1].close()
            assert newest[0].id == self.newest()[0]

    def teardown(self) -> None:
        for sink, _, _ in self.sinks:
            sink.cancel()
        shutil.rmtree(self.dir)


SnapshotMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, derandomize=True
)
TestSnapshots = SnapshotMachine.TestCase
