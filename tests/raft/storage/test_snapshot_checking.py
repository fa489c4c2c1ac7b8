"""A snapshot in files that is checked while it is read: nobody gets the end of a broken one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from rafthttp.raft.errors import CorruptSnapshotError, StorageError
from rafthttp.raft.storage.memory import MemorySnapshotStore
from rafthttp.raft.storage.snapshot_files import STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.snapshots import open_checking
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

CONFIGURATION = Configuration((Server(ServerID("n1"), ServerAddress("n1:1")),))
PIECE = 1000


def take(store: FileSnapshotStore | MemorySnapshotStore, state: bytes) -> str:
    sink = store.create(7, 2, CONFIGURATION, 1)
    sink.write(state)
    sink.close()
    return sink.id


def by_pieces(source: BinaryIO) -> bytes:
    return b"".join(iter(lambda: source.read(PIECE), b""))


def buffered(source: BinaryIO) -> bytes:
    file = io.BufferedReader(cast("io.RawIOBase", source), 333)
    try:
        return file.read()
    finally:
        file.detach()


def at_once(source: BinaryIO) -> bytes:
    return source.read()


@pytest.mark.parametrize("read", [by_pieces, buffered, at_once])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE])
def test_a_whole_one_is_read_as_it_is(
    tmp_path: Path, size: int, read: Callable[[BinaryIO], bytes]
) -> None:
    store = FileSnapshotStore(tmp_path)
    state = os.urandom(size)
    snapshot_id = take(store, state)
    meta, source = store.open_checking(snapshot_id)
    assert meta == store.list()[0]
    with source:
        assert read(source) == state
        assert source.read(5) == b""
    with pytest.raises(StorageError, match="there is no snapshot"):
        store.open_checking("2-7-1")


@pytest.mark.parametrize("at", [0, PIECE, 5 * PIECE - 2, 5 * PIECE - 1])
def test_of_a_broken_one_the_last_piece_is_held_back(tmp_path: Path, at: int) -> None:
    """And of every read after that there comes nothing either; it is not listed any more."""
    store = FileSnapshotStore(tmp_path)
    state = os.urandom(5 * PIECE)
    snapshot_id = take(store, state)
    path = tmp_path / snapshot_id / STATE_FILE
    path.write_bytes(state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :])
    _, source = store.open_checking(snapshot_id)
    for _ in range(4):
        assert len(source.read(PIECE)) == PIECE
    assert store.list()
    for _ in range(3):
        with pytest.raises(CorruptSnapshotError, match="wrong checksum"):
            source.read(PIECE)
    assert not store.list()
    source.close()
    for read in (at_once, buffered):
        with pytest.raises(CorruptSnapshotError, match="wrong checksum"):
            read(store.open_checking(snapshot_id)[1])


def test_one_that_is_cut_or_grows_while_it_is_read(tmp_path: Path) -> None:
    store = FileSnapshotStore(tmp_path)
    state = os.urandom(5 * PIECE)
    snapshot_id = take(store, state)
    path = tmp_path / snapshot_id / STATE_FILE
    with store.open_checking(snapshot_id)[1] as source:
        path.write_bytes(state + b"more")
        assert by_pieces(source) == state
    path.write_bytes(state)
    with store.open_checking(snapshot_id)[1] as source:
        assert source.read(PIECE) == state[:PIECE]
        os.truncate(path, 2 * PIECE)
        assert source.read(PIECE) == state[PIECE : 2 * PIECE]
        with pytest.raises(CorruptSnapshotError, match="was cut"):
            source.read(PIECE)
    assert not store.list()


@pytest.mark.parametrize(
    ("number", "is_damage"), [(errno.EIO, True), (errno.EBADMSG, True), (errno.ENOMEM, False)]
)
def test_a_disk_that_fails_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_damage: bool
) -> None:
    """A bad sector is damage: the snapshot before is of more use. Anything else is none."""
    store = FileSnapshotStore(tmp_path)
    snapshot_id = take(store, bytes(PIECE))
    real_open = Path.open

    class Failing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            del size
            raise OSError(number, os.strerror(number))

    def opened(path: Path, mode: str = "r", buffering: int = -1) -> object:
        return Failing(path) if path.name == STATE_FILE else real_open(path, mode, buffering)

    monkeypatch.setattr(Path, "open", opened)
    _, source = store.open_checking(snapshot_id)
    with source, pytest.raises(StorageError, match=os.strerror(number)) as caught:
        source.read(PIECE)
    assert isinstance(caught.value, CorruptSnapshotError) == is_damage
    assert bool(store.list()) != is_damage


def test_it_is_read_on_when_it_is_superseded(tmp_path: Path) -> None:
    store = FileSnapshotStore(tmp_path, 1)
    state = os.urandom(3 * PIECE)
    _, source = store.open_checking(take(store, state))
    with source:
        newer = take(store, b"newer")
        assert [meta.id for meta in store.list()] == [newer]
        assert by_pieces(source) == state


def test_a_store_that_cannot_do_it_checks_beforehand() -> None:
    store = MemorySnapshotStore()
    snapshot_id = take(store, b"state")
    assert open_checking(store, snapshot_id)[1].read() == b"state"
