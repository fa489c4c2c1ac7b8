"""`restart.load`: what a server begins from, for every way its files may have been left."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgpack
import pytest

from rafthttp.raft.core.ready import HardState, InitialState
from rafthttp.raft.errors import CorruptLogError, StorageError
from rafthttp.raft.runtime.restart import (
    CONFIGURATIONS,
    HARD_STATE,
    VOTES_FROM,
    decode_hard_state,
    decode_votes_from,
    encode_hard_state,
    encode_votes_from,
    has_existing_state,
    load,
)
from rafthttp.raft.runtime.snapshot_bytes import restore as restore_state
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore
from rafthttp.raft.storage.protocols import SnapshotMeta, SnapshotStore
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.types import (
    Configuration,
    Index,
    LogBatch,
    LogPosition,
    LogType,
    LogWrite,
    Server,
    ServerAddress,
    ServerID,
    Term,
)
from rafthttp.raft.wire.entries import encode_log
from rafthttp.testing.cluster import Recorder

ONE: Final = Configuration((Server(ServerID("a"), ServerAddress("a:1")),))
TWO: Final = ONE.with_server(Server(ServerID("b"), ServerAddress("b:1")))


def log_of(first: Index, terms: Sequence[Term], hard: Term | None = None) -> MemoryStore:
    """Entries from `first` on, of these terms."""
    store = MemoryStore()
    writes = [] if first == 1 else [LogWrite({}, reset_to=first - 1)]
    batches = tuple(
        LogBatch(index, term, [encode_log(index, term, LogType.COMMAND, b"x", b"", None)])
        for index, term in enumerate(terms, first)
    )
    state = encode_hard_state(HardState(hard or terms[-1], ServerID("a")))
    store.write([*writes, LogWrite({HARD_STATE: state}, None, batches)])
    return store


def add(store: SnapshotStore, index: Index, term: Term, state: bytes = b"") -> SnapshotMeta:
    sink = store.create(index, term, TWO, 1)
    sink.write(state)
    sink.close()
    return store.list()[0]


def start(
    log: MemoryStore, snapshots: SnapshotStore | None, trailing: int = 100
) -> tuple[InitialState, Recorder]:
    fsm = Recorder()

    def restore(store: SnapshotStore, meta: SnapshotMeta) -> None:
        restore_state(fsm.restore, store, meta.id, lambda _: None)

    return load(log, log, snapshots, restore, trailing), fsm


def state_of(*commands: bytes) -> bytes:
    sink = io.BytesIO()
    recorder = Recorder()
    recorder.restore(io.BytesIO(b"".join(len(c).to_bytes(4, "big") + c for c in commands)))
    recorder.snapshot().persist(sink)
    return sink.getvalue()


def test_entries_behind_the_snapshot_are_kept_and_their_terms_known() -> None:
    """S40: the log matches, so what follows the snapshot in it is kept."""
    log, snapshots = log_of(3, [1, 2, 2, 3, 3]), MemorySnapshotStore()
    add(snapshots, 5, 2, state_of(b"one", b"two"))
    state, fsm = start(log, snapshots)
    assert (state.snapshot_index, state.snapshot_term, state.last_index) == (5, 2, 7)
    assert (state.log_base, state.term_runs) == ((3, 1), ((4, 2), (6, 3)))
    assert state.configurations == ((1, TWO),)
    assert fsm.data == [b"one", b"two"]
    assert log.first_index() == 3


@pytest.mark.parametrize(
    ("first", "terms"),
    [(1, [1, 1]), (1, [1, 1, 3, 3, 3, 3]), (1, [1])],
    ids=["short of it", "divergent", "empty but for one"],
)
def test_a_log_that_does_not_reach_or_contradicts_the_snapshot_gives_way(
    first: Index, terms: list[Term]
) -> None:
    """S38, S49: a crash between the snapshot and the write that resets the log leaves it so."""
    log, snapshots = log_of(first, terms), MemorySnapshotStore()
    add(snapshots, 5, 2)
    state, _ = start(log, snapshots)
    assert (log.first_index(), log.last_index()) == (6, 5)
    assert (state.last_index, state.log_base, state.term_runs) == (5, (5, 2), ())
    assert state.configurations == ((1, TWO),)
    again, _ = start(log, snapshots)
    assert again == state


def test_the_term_is_not_behind_the_snapshot_and_no_vote_is_invented() -> None:
    """S45: it comes up to the snapshot's; a higher one, with its vote, stays."""
    snapshots = MemorySnapshotStore()
    add(snapshots, 5, 4)
    state, _ = start(log_of(1, [1, 1]), snapshots)
    assert state.hard_state == HardState(4, None)
    state, _ = start(log_of(1, [1, 1], hard=9), snapshots)
    assert state.hard_state == HardState(9, ServerID("a"))


def test_what_a_released_server_must_reach_is_kept_and_its_term_counts() -> None:
    """S62: the note is durable before any term is; the term is not behind it, and it is state."""
    store = MemoryStore()
    assert not has_existing_state(store, store, None)
    store.set({VOTES_FROM: encode_votes_from(LogPosition(7, 12))})
    assert has_existing_state(store, store, None)
    state, _ = start(store, None)
    assert state.votes_from == LogPosition(7, 12)
    assert state.hard_state == HardState(7, None)
    later = log_of(1, [7, 9])
    later.set({VOTES_FROM: encode_votes_from(LogPosition(7, 12))})
    assert start(later, None)[0].hard_state == HardState(9, ServerID("a"))


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", [1], [1, 2, 3], [-1, 2], [1, 1 << 63], ["1", 2], [True, 2], 5]
)
def test_a_note_of_what_to_reach_that_cannot_be(value: object) -> None:
    data = value if isinstance(value, bytes) else msgpack.packb(value)
    with pytest.raises(CorruptLogError, match="must reach before a vote"):
        decode_votes_from(data)


def test_a_gap_between_snapshot_and_log_is_refused() -> None:
    """S10."""
    snapshots = MemorySnapshotStore()
    add(snapshots, 5, 1)
    with pytest.raises(CorruptLogError, match=r"begins at 7.* ends at 5.*missing"):
        start(log_of(7, [1]), snapshots)
    with pytest.raises(CorruptLogError, match="begins at 7"):
        start(log_of(7, [1]), None)


def test_an_interrupted_compaction_is_finished_before_anything_else() -> None:
    log, snapshots = log_of(3, [1] * 20), MemorySnapshotStore()
    add(snapshots, 20, 1)
    state, _ = start(log, snapshots, trailing=5)
    assert (log.first_index(), state.log_base) == (16, (16, 1))
    start(log, snapshots, trailing=0)
    assert log.first_index() == 21
    state, _ = start(log, snapshots, trailing=0)
    assert (state.log_base, state.last_index) == ((20, 1), 22)


def broken(directory: Path, meta: SnapshotMeta) -> None:
    path = directory / meta.id / "state.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_broken_newest_snapshot_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """S9: where the log reaches back to it. Otherwise it is a gap, and said so."""
    snapshots = FileSnapshotStore(tmp_path)
    add(snapshots, 5, 1, state_of(b"old"))
    broken(tmp_path, add(snapshots, 10, 1, state_of(b"new")))
    state, fsm = start(log_of(4, [1] * 9), snapshots)
    assert (state.snapshot_index, state.last_index, fsm.data) == (5, 12, [b"old"])
    with pytest.raises(CorruptLogError, match="begins at 11"):
        start(log_of(11, [1]), FileSnapshotStore(tmp_path))


def test_with_every_snapshot_broken_the_start_is_refused(tmp_path: Path) -> None:
    """S9: even where the log would reach back to index 1, nobody is made to guess."""
    snapshots = FileSnapshotStore(tmp_path)
    broken(tmp_path, add(snapshots, 5, 1, state_of(b"old")))
    broken(tmp_path, add(snapshots, 10, 1, state_of(b"new")))
    with pytest.raises(StorageError, match=r"no snapshot can be used.*checksum"):
        start(log_of(1, [1] * 12), snapshots)


def test_a_snapshot_the_state_machine_does_not_take_gives_way_to_the_one_before(
    tmp_path: Path,
) -> None:
    """S9, as hashicorp/raft does it."""
    snapshots = FileSnapshotStore(tmp_path)
    add(snapshots, 5, 1, b"old")
    add(snapshots, 10, 1, b"of a newer version")
    tried: list[Index] = []

    def restore(store: SnapshotStore, meta: SnapshotMeta) -> None:
        del store
        tried.append(meta.index)
        if meta.index == 10:
            raise ValueError("unknown version")

    log = log_of(4, [1] * 9)
    assert load(log, log, snapshots, restore).snapshot_index == 5
    assert tried == [10, 5]


def test_a_state_machine_that_keeps_its_state_itself_is_left_alone() -> None:
    snapshots = MemorySnapshotStore()
    add(snapshots, 5, 2, b"never read")
    log = log_of(3, [2] * 5)
    assert load(log, log, snapshots, None).snapshot_index == 5


@pytest.mark.parametrize(
    "value",
    [[-1, None], [1 << 63, "a"], [True, None], [1.0, None], [1, b"a"], [1], [1, None, 2], 7, None],
    ids=repr,
)
def test_a_term_and_vote_that_cannot_be(value: object) -> None:
    """S1: a vote that cannot be read is not "no vote"."""
    with pytest.raises(CorruptLogError, match="term and vote"):
        decode_hard_state(msgpack.packb(value))


@pytest.mark.parametrize(
    "value",
    [
        *([[1, "text"]], [[1, 7]], [[-1, b"\x80"]], [[1.5, b"\x80"]], [["1", b"\x80"]], 7, [[]]),
        [[float("inf"), b"\x80"]],
        [[1, b"garbage"]],
    ],
    ids=repr,
)
def test_a_note_of_configurations_that_cannot_be(value: object) -> None:
    store = log_of(1, [1, 1])
    store.set({CONFIGURATIONS: msgpack.packb(value)})
    with pytest.raises(CorruptLogError, match="configurations cannot be read"):
        load(store, store, None)


def test_a_configuration_in_the_log_that_cannot_be() -> None:
    """Without the note the log is searched for them."""
    record = encode_log(1, 1, LogType.CONFIGURATION, b"garbage")
    store = MemoryStore()
    store.write([LogWrite({}, None, (LogBatch(1, 1, [record]),))])
    with pytest.raises(CorruptLogError, match="entry 1"):
        load(store, store, None)


def test_a_record_that_is_no_entry() -> None:
    store = MemoryStore()
    store.write([LogWrite({}, None, (LogBatch(1, 1, [b"garbage"]),))])
    with pytest.raises(CorruptLogError, match="entry 1"):
        load(store, store, None)
    store.set({CONFIGURATIONS: msgpack.packb([[1, b"\x80"]])})
    with pytest.raises(CorruptLogError, match="entry 1"):
        load(store, store, None)
