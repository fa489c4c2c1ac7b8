"""What every snapshot store promises, and what the file store adds to it, on real files."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rafthttp.raft.errors import CorruptSnapshotError, DataDirectoryError, StorageError
from rafthttp.raft.storage import snapshot_meta
from rafthttp.raft.storage.memory import MemorySnapshotStore
from rafthttp.raft.storage.protocols import SnapshotMeta, SnapshotSink, SnapshotStore
from rafthttp.raft.storage.snapshot_files import META_FILE, STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.snapshots import open_newest
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

CONFIGURATION = Configuration(
    (
        Server(ServerID("n1"), ServerAddress("127.0.0.1:8101")),
        Server(ServerID("ñ \udcff"), ServerAddress("[::1]:8102"), Suffrage.NONVOTER),
    )
)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    """Both keep one."""
    if request.param == "memory":
        return MemorySnapshotStore()
    return FileSnapshotStore(tmp_path / "snapshots", retain=1)


def take(store: SnapshotStore, index: int, *parts: bytes, term: int = 2) -> str:
    sink = store.create(index, term, CONFIGURATION, 1)
    for part in parts:
        assert sink.write(part) == len(part)
    sink.close()
    return sink.id


def state_of(store: SnapshotStore, snapshot_id: str) -> bytes:
    meta, source = store.open(snapshot_id)
    with source:
        data = source.read()
    assert len(data) == meta.size
    return data


def ids(store: SnapshotStore) -> list[str]:
    return [meta.id for meta in store.list()]


# -- every store


def test_a_snapshot_comes_back(store: SnapshotStore) -> None:
    assert not store.list()
    assert open_newest(store) is None
    snapshot_id = take(store, 7, b"some ", b"", b"state")
    (meta,) = store.list()
    assert meta == SnapshotMeta(snapshot_id, 7, 2, CONFIGURATION, 1, 10)
    opened, source = store.open(snapshot_id)
    with source:
        assert (opened, source.read(5), source.read()) == (meta, b"some ", b"state")
        source.seek(0)
        assert source.read(1) == b"s"
    newest = open_newest(store)
    assert newest is not None
    with newest[1] as source:
        assert (newest[0], source.read()) == (meta, b"some state")


def test_an_empty_state_is_one(store: SnapshotStore) -> None:
    assert state_of(store, take(store, 7)) == b""


def test_the_newest_is_kept(store: SnapshotStore) -> None:
    old, new, late = take(store, 7, b"old"), take(store, 9, b"new"), take(store, 8, b"late")
    assert ids(store) == [new]
    for gone in (
        old,
        late,
        "none",
        "",
        ".",
        "..",
        "../snapshots",
        f"../snapshots/{new}",
        new + "/",
    ):
        with pytest.raises(StorageError, match="no snapshot"):
            store.open(gone)


def test_a_later_term_is_newer_than_a_greater_index(store: SnapshotStore) -> None:
    take(store, 10, b"", term=9)
    newer = take(store, 9, b"", term=10)
    assert ids(store) == [newer]


def test_the_same_index_again_replaces(store: SnapshotStore) -> None:
    """Its name is another, so that a reader of the first is not confused."""
    first = take(store, 7, b"a")
    _, source = store.open(first)
    second = take(store, 7, b"b")
    assert first != second
    assert ids(store) == [second]
    with source:
        assert source.read() == b"a"


def test_two_at_once(store: SnapshotStore) -> None:
    """S43. Whichever ends first: the newer one counts."""
    for base, order in ((10, (0, 1)), (20, (1, 0))):
        sinks = [store.create(base + i, 2, CONFIGURATION, 1) for i in (0, 1)]
        sinks.append(store.create(base + 1, 2, CONFIGURATION, 1))
        assert len({sink.id for sink in sinks}) == 3
        for part in range(3):
            for number, sink in enumerate(sinks):
                sink.write(b"%d/%d " % (number, part))
        sinks[2].cancel()
        for number in order:
            sinks[number].close()
        assert ids(store) == [sinks[1].id]
        assert state_of(store, sinks[1].id) == b"1/0 1/1 1/2 "


def test_a_cancelled_or_unfinished_snapshot_leaves_the_old_one(store: SnapshotStore) -> None:
    """S41."""
    kept = take(store, 7, b"kept")
    cancelled = store.create(9, 2, CONFIGURATION, 1)
    cancelled.write(b"partial")
    cancelled.cancel()
    cancelled.cancel()
    cancelled.close()
    with pytest.raises(StorageError, match="has ended"):
        cancelled.write(b"more")
    unfinished = store.create(10, 2, CONFIGURATION, 1)
    unfinished.write(b"partial" * 100_000)
    assert ids(store) == [kept]
    with pytest.raises(StorageError, match="no snapshot"):
        store.open(unfinished.id)
    unfinished.cancel()
    assert state_of(store, kept) == b"kept"


def test_closing_twice_is_once(store: SnapshotStore) -> None:
    sink = store.create(7, 2, CONFIGURATION, 1)
    sink.close()
    take(store, 7, b"second")
    sink.close()
    sink.cancel()
    assert store.list()[0].size == 6
    with pytest.raises(StorageError, match="has ended"):
        sink.write(b"more")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 2, 1, 1), "index is 0; it must be from 1"),
        ((7, 0, 1, 1), "term is 0; it must be from 1"),
        ((1 << 63, 2, 1, 1), "index is 9223372036854775808"),
        ((7, 2, -1, 1), "configuration_index is -1"),
        ((7, 2, 1, 0), "snapshot version 0"),
        ((7, 2, 1, 2), "snapshot version 2"),
    ],
)
def test_what_no_snapshot_can_stand_for(
    store: SnapshotStore, arguments: tuple[int, int, int, int], says: str
) -> None:
    index, term, configuration_index, version = arguments
    with pytest.raises(ValueError, match=says):
        store.create(index, term, CONFIGURATION, configuration_index, version)
    assert not store.list()


def test_the_largest_numbers(store: SnapshotStore) -> None:
    most = (1 << 63) - 1
    store.create(most, most, CONFIGURATION, most).close()
    (meta,) = store.list()
    assert (meta.index, meta.term, meta.configuration_index) == (most, most, most)


# -- files


def snapshots(tmp_path: Path, retain: int = 2) -> FileSnapshotStore:
    return FileSnapshotStore(tmp_path / "data" / "snapshots", retain)


def directory_of(store: FileSnapshotStore, snapshot_id: str) -> Path:
    return store._directory / snapshot_id


def names(store: FileSnapshotStore) -> list[str]:
    return sorted(os.listdir(store._directory), reverse=True)


def test_a_restart_finds_them(tmp_path: Path) -> None:
    first = snapshots(tmp_path)
    made = [take(first, 10 * i, b"%d" % i) for i in range(1, 5)]
    assert names(first) == [made[3], made[2]]
    again = snapshots(tmp_path)
    assert ids(again) == [made[3], made[2]]
    assert again.list() == first.list()
    assert [state_of(again, snapshot_id) for snapshot_id in made[2:]] == [b"3", b"4"]
    assert take(again, 40, b"4 again") > made[3], "its name is newer than that of an older process"


@pytest.mark.parametrize("retain", [1, 2, 5])
def test_as_many_stay_as_asked_for(tmp_path: Path, retain: int) -> None:
    store = snapshots(tmp_path, retain)
    made = [take(store, i, b"x") for i in range(1, 9)]
    assert names(store) == ids(store) == made[: -retain - 1 : -1]
    with pytest.raises(ValueError, match="retain is 0"):
        snapshots(tmp_path, 0)


def test_nothing_goes_before_the_new_one_is_durable(tmp_path: Path) -> None:
    store = snapshots(tmp_path, 1)
    kept = take(store, 1, b"kept")
    sink = store.create(2, 2, CONFIGURATION, 1)
    sink.write(b"x" * (1 << 20))
    assert ids(snapshots(tmp_path, 1)) == [kept]
    assert names(store) == [kept], "the opening has removed the partial one"
    with pytest.raises(StorageError, match=r"cannot be written to .*: No such file"):
        sink.close()
    with pytest.raises(StorageError, match="cannot be written to"):
        sink.close()
    with pytest.raises(StorageError, match="cannot be written to"):
        sink.write(b"more")
    sink.cancel()
    assert names(store) == [kept]


def test_what_is_none_of_ours_stays(tmp_path: Path) -> None:
    store = snapshots(tmp_path, 1)
    for name in ("notes.txt", "2-7-1629", "old.tmp"):
        (store._directory / name).mkdir()
    store = snapshots(tmp_path, 1)
    take(store, 1, b"")
    made = take(store, 2, b"")
    assert names(store) == sorted(["notes.txt", "2-7-1629", "old.tmp", made], reverse=True)
    assert ids(store) == [made]


def test_the_state_is_a_plain_file(tmp_path: Path) -> None:
    """It can be read, and checked with sha256sum, without this package."""
    store = snapshots(tmp_path)
    path = directory_of(store, take(store, 7, b"abc"))
    assert (path / STATE_FILE).read_bytes() == b"abc"
    assert (
        b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        in (path / META_FILE).read_bytes()
    )


def test_pieces_of_any_size(tmp_path: Path) -> None:
    store = snapshots(tmp_path)
    sizes = [0, 1, (256 << 10) - 1, 1, 256 << 10, 5, 1 << 20, (256 << 10) + 1, 3]
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    assert state_of(store, take(store, 7, *parts)) == b"".join(parts)
    sink = store.create(8, 2, CONFIGURATION, 1)
    others: list[Any] = [memoryview(b"view"), bytearray(b"array"), array("H", [0] * 200_000)]
    assert [sink.write(other) for other in others] == [4, 5, 400_000]
    wrong: Any = "text"
    with pytest.raises(TypeError):
        sink.write(wrong)
    sink.close()
    assert state_of(store, sink.id) == b"viewarray" + bytes(400_000)


def test_memory_is_bounded(tmp_path: Path) -> None:
    store = snapshots(tmp_path)
    piece = os.urandom(1 << 20)
    tracemalloc.start()
    try:
        take(store, 7, *[piece] * 64)
        _, source = store.open(ids(store)[0])
        with source:
            while source.read(1 << 16):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_the_order_of_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S49. State, meta and their names are durable before the rename, the rename before the end."""
    store = snapshots(tmp_path, 1)
    old = take(store, 1, b"old")
    seen: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        seen.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        seen.append(f"rename {os.path.basename(source)}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    partial = take(store, 2, b"new") + ".tmp"
    assert seen == [
        "fsync state.bin",
        "fsync meta.json",
        f"fsync {partial}",
        f"rename {partial}",
        "fsync snapshots",
        f"rename {old}",
    ]


@pytest.mark.parametrize("failing", ["state.bin", "meta.json", ".tmp", "snapshots"])
def test_a_failed_flush_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """S6: a flush that failed is not tried again; who was told so does not meet it later."""
    store = snapshots(tmp_path, 1)
    old = take(store, 1, b"old")
    real_fsync = os.fsync
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(failing):
            calls.append(name)
            raise OSError(5, "Input/output error")
        real_fsync(descriptor)

    sink = store.create(2, 2, CONFIGURATION, 1)
    sink.write(b"new")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        for _ in range(2):
            with pytest.raises(StorageError, match="Input/output error"):
                sink.close()
    assert len(calls) == 1
    assert names(store) == ids(store) == [old]
    assert state_of(store, old) == b"old"
    assert state_of(store, take(store, 3, b"next")) == b"next"


# -- damage


Damage = Callable[[Path], object]


def instead(path: Path, make: Damage) -> None:
    """Something else of the same name."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "state flipped": lambda path: flip(path / STATE_FILE, 2),
    "state cut": lambda path: os.truncate(path / STATE_FILE, 1),
    "state longer": lambda path: os.truncate(path / STATE_FILE, 100),
    "state empty": lambda path: os.truncate(path / STATE_FILE, 0),
    "state gone": lambda path: (path / STATE_FILE).unlink(),
    "state a directory": lambda path: instead(path / STATE_FILE, Path.mkdir),
    "meta flipped": lambda path: flip(path / META_FILE, 2),
    "meta empty": lambda path: os.truncate(path / META_FILE, 0),
    "meta gone": lambda path: (path / META_FILE).unlink(),
    "meta zeroes": lambda path: (path / META_FILE).write_bytes(bytes(400)),
    "meta a list": lambda path: (path / META_FILE).write_text("[]"),
    "meta deep": lambda path: (path / META_FILE).write_text("[" * 100_000),
    "all gone": lambda path: instead(path, Path.mkdir),
    "a file": lambda path: instead(path, Path.touch),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_broken_one_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S9. Whether the damage is there at the start, or comes while the store is in use."""
    for running in (True, False):
        store = FileSnapshotStore(tmp_path / str(running), 2)
        old, new = take(store, 1, b"the old one"), take(store, 2, b"the new one")
        DAMAGES[damage](directory_of(store, new))
        if not running:
            store = FileSnapshotStore(tmp_path / str(running), 2)
        newest = open_newest(store)
        assert newest is not None
        with newest[1] as source:
            assert (newest[0].id, source.read()) == (old, b"the old one")
        assert ids(store) == [old]
        with pytest.raises(CorruptSnapshotError, match=new):
            store.open(new)
        warnings = [record for record in caplog.records if new in record.getMessage()]
        assert len(warnings) == 1
        assert warnings[0].levelno == logging.WARNING
        caplog.clear()

        # It is no reason to give up a whole one, and goes when a newer one is there.
        newer = take(store, 3, b"newer")
        assert ids(store) == [newer, old]
        take(store, 4, b"newest")
        assert len(ids(store)) == len(names(store)) == 2


def test_a_broken_one_stays_until_it_is_overtaken(tmp_path: Path) -> None:
    """It may be all there is of some entries, and somebody may save it."""
    store = snapshots(tmp_path, 1)
    broken = take(store, 5, b"broken")
    flip(directory_of(store, broken) / STATE_FILE, 0)
    with pytest.raises(CorruptSnapshotError):
        open_newest(store)
    for index in (3, 4):
        made = take(store, index, b"behind it")
        assert names(store) == [broken, made]
        assert ids(store) == [made]
    made = take(store, 6, b"before it")
    assert names(store) == ids(store) == [made]


def test_nothing_goes_where_none_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = snapshots(tmp_path, 1)
    old = take(store, 1, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(store, "_whole", list)
        new = take(store, 2, b"new")
    assert names(store) == ids(store) == [new, old]


def test_none_is_whole(tmp_path: Path) -> None:
    """A clear refusal, never an empty state machine (S9)."""
    store = snapshots(tmp_path)
    for index in (1, 2):
        flip(directory_of(store, take(store, index, b"state")) / STATE_FILE, 0)
    with pytest.raises(CorruptSnapshotError, match=r"0000000002.*wrong checksum"):
        open_newest(store)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Each of meta and state: listed no more, or refused at the open; never handed out."""
    store = snapshots(tmp_path)
    path = directory_of(store, take(store, 7, b"some state"))
    flips = 0
    for name in (META_FILE, STATE_FILE):
        size = (path / name).stat().st_size
        for at in range(size):
            for bit in range(8):
                flip(path / name, at, bit)
                again = FileSnapshotStore(store._directory)
                for meta in again.list():
                    with pytest.raises(CorruptSnapshotError):
                        again.open(meta.id)
                assert not again.list()
                flip(path / name, at, bit)
                flips += 1
    assert flips > 3000
    assert state_of(FileSnapshotStore(store._directory), path.name) == b"some state"


@pytest.mark.parametrize("name", [META_FILE, STATE_FILE])
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    store = snapshots(tmp_path)
    path = directory_of(store, take(store, 7, b"some state"))
    data = (path / name).read_bytes()
    for size in range(len(data)):
        (path / name).write_bytes(data[:size])
        assert not FileSnapshotStore(store._directory).list()


def test_a_snapshot_under_another_name(tmp_path: Path) -> None:
    """A copy by hand cannot pass for a newer one."""
    store = snapshots(tmp_path)
    made = take(store, 7, b"state")
    copied = made.replace("7-", "9-")
    directory_of(store, made).rename(directory_of(store, copied))
    assert not store.list()
    with pytest.raises(CorruptSnapshotError, match=f"was {made} when it was written"):
        store.open(copied)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no broken one: an older snapshot would silently take its place."""
    store = snapshots(tmp_path)
    take(store, 1, b"old format")
    with monkeypatch.context() as patched:
        patched.setattr(snapshot_meta, "FORMAT", 2)
        take(store, 2, b"new format")
    says = "has format 2; this version of rafthttp knows formats up to 1"
    with pytest.raises(DataDirectoryError, match=says):
        snapshots(tmp_path)
    with pytest.raises(DataDirectoryError, match=says):
        store.list()


def test_a_failure_to_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is out of descriptors must not take itself for a new one."""
    store = snapshots(tmp_path)
    made = take(store, 1, b"state")
    real_open = Path.open

    def no_descriptors(path: Path, mode: str = "r") -> object:
        if path.name == STATE_FILE or mode == "rb":
            raise OSError(24, "Too many open files")
        return real_open(path, mode)

    monkeypatch.setattr(Path, "open", no_descriptors)
    for call in (store.list, lambda: store.open(made), lambda: open_newest(store)):
        with pytest.raises(StorageError, match="Too many open files") as caught:
            call()
        assert not isinstance(caught.value, CorruptSnapshotError)


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataDirectoryError, match=r"snapshot directory .* cannot be used"):
            FileSnapshotStore(path)
    store = snapshots(tmp_path)
    store._directory.rmdir()
    with pytest.raises(StorageError, match="cannot be written to"):
        store.create(1, 1, CONFIGURATION, 1)
    with pytest.raises(StorageError, match="cannot be read"):
        store.list()


def test_an_old_one_that_cannot_go_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = snapshots(tmp_path, 1)
    old = take(store, 1, b"old")
    real_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        if not os.fspath(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        real_rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        new = take(store, 2, b"new")
    assert ids(store) == [new, old]
    assert "stay" in caplog.text
    newest = take(store, 3, b"newest")
    assert names(store) == [newest]


def test_a_cancel_waits_for_the_write_under_way(tmp_path: Path) -> None:
    """A worker thread goes on writing when the task that waits for it is cancelled."""
    store = snapshots(tmp_path)
    sinks = [store.create(i, 2, CONFIGURATION, 1) for i in range(1, 9)]
    outcomes: list[str] = []

    def work(sink: SnapshotSink) -> None:
        try:
            while True:
                sink.write(b"x" * 100_000)
        except StorageError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for sink in sinks:
        sink.cancel()
    for thread in threads:
        thread.join()
    assert outcomes
    assert all("has ended" in text for text in outcomes)
    assert names(store) == []
