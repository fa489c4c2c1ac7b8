"""Guard 4: commits that are gone from the database are noticed at open, and nothing else is.

A power loss is played by copying the database and its wal as they are, since each commit has been
flushed, together with an older mark, which has not. Bits are flipped in real files.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rafthttp.raft.errors import CorruptLogError, DataDirectoryError, StorageError
from rafthttp.raft.storage.mark import MARK_FILE, Mark, MarkFile
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID, Term

N1 = ServerID("n1")
WAL_FILE = f"{DATABASE_FILE}-wal"


def record(index: int, term: Term) -> bytes:
    return b"%d/%d " % (index, term) * 20


def append(store: SqliteStore, term: Term = 1, count: int = 3) -> None:
    first = store.last_index() + 1
    records = [record(index, term) for index in range(first, first + count)]
    store.write([LogWrite({}, batches=(LogBatch(first, term, records),))])


def mark_of(data_dir: Path) -> bytes:
    return (data_dir / MARK_FILE).read_bytes()


def copied(data_dir: Path, to: Path, mark: bytes | None = None) -> Path:
    """The files of a store that is open, as they are on disk; with this mark, if given."""
    to.mkdir()
    for name in (DATABASE_FILE, WAL_FILE, MARK_FILE):
        if (data_dir / name).exists():
            shutil.copyfile(data_dir / name, to / name)
    if mark is not None:
        (to / MARK_FILE).write_bytes(mark)
    return to


def read_all(store: SqliteStore) -> object:
    first, last = store.first_index(), store.last_index()
    entries = store.get_records(first, last, 1 << 40) if last >= first else []
    return first, last, entries, store.get(b"vote")


def content(data_dir: Path) -> object:
    with closing(SqliteStore.open(data_dir, N1)) as store:
        return read_all(store)


def refusal(data_dir: Path) -> str:
    with pytest.raises(CorruptLogError, match="has lost acknowledged writes") as caught:
        SqliteStore.open(data_dir, N1).close()
    text = str(caught.value)
    assert "\n" not in text
    assert f"delete {data_dir}" in text
    return text


# -- the file


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with closing(MarkFile(tmp_path)) as file:
        assert file.read() is None
        for mark in (Mark(1, 0), Mark(300, 1 << 40), Mark(2, (1 << 63) - 1)):
            file.write(mark)
            assert file.read() == mark
    assert (tmp_path / MARK_FILE).stat().st_size == 20


def test_no_broken_mark_is_trusted(tmp_path: Path) -> None:
    """Each bit flipped, each length but the right one, zeros."""
    path = tmp_path / MARK_FILE
    with closing(MarkFile(tmp_path)) as file:
        file.write(Mark(3, 77))
        sound = path.read_bytes()
        broken = [bytes(20), b"\xff" * 20, *(sound[:size] for size in range(20))]
        for bit in range(160):
            data = bytearray(sound)
            data[bit // 8] ^= 1 << bit % 8
            broken.append(bytes(data))
        for damaged in broken:
            path.write_bytes(damaged)
            assert file.read() is None
        path.write_bytes(sound)
        assert file.read() == Mark(3, 77)


@pytest.mark.parametrize("mark", [None, b"", b"short", b"garbage of 20 bytes.", b"x" * 4096])
def test_a_node_starts_without_its_mark_and_says_so(
    tmp_path: Path, mark: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore.open(tmp_path, N1)
    append(store)
    expected = read_all(store)
    store.close()
    (tmp_path / MARK_FILE).unlink()
    if mark is not None:
        (tmp_path / MARK_FILE).write_bytes(mark)
    with caplog.at_level(logging.WARNING, "rafthttp.raft.storage"):
        assert content(tmp_path) == expected
    assert [r.getMessage() for r in caplog.records if "raft.mark cannot be read" in r.getMessage()]
    # It is there again, and guards again.
    caplog.clear()
    assert content(tmp_path) == expected
    assert not caplog.records
    drop_last_row(tmp_path)
    refusal(tmp_path)


def test_a_new_store_needs_no_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SqliteStore.open(tmp_path, N1).close()
    assert not caplog.records


def test_a_mark_that_cannot_be_written_fails_the_write(tmp_path: Path) -> None:
    """It is on disk, but nobody is told: the next loss would go unnoticed."""
    store = SqliteStore.open(tmp_path, N1)
    append(store)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, store._mark._descriptor)
    os.close(full)
    with pytest.raises(StorageError, match=r"raft\.mark failed: .*No space left"):
        append(store)
    assert store.last_index() == 3
    with pytest.raises(StorageError, match="until it is opened afresh"):
        append(store)
    store.close()
    with closing(SqliteStore.open(tmp_path, N1)) as again:
        assert again.last_index() == 6


def test_a_mark_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / MARK_FILE).mkdir()
    with pytest.raises(DataDirectoryError, match=r"cannot be used: raft\.mark: Is a directory"):
        SqliteStore.open(tmp_path, N1)


# -- losses


def drop_last_row(data_dir: Path) -> None:
    database = sqlite3.connect(data_dir / DATABASE_FILE, isolation_level=None)
    database.execute("DELETE FROM log WHERE first = (SELECT max(first) FROM log)")
    database.close()


def test_a_database_without_its_last_row_is_refused(tmp_path: Path) -> None:
    with closing(SqliteStore.open(tmp_path, N1)) as store:
        append(store)
        append(store)
    drop_last_row(tmp_path)
    for _ in range(2):  # it stays refused, and the lock is free each time
        assert "(entries 4 to 6)" in refusal(tmp_path)


def test_an_older_database_is_refused(tmp_path: Path) -> None:
    """Without a vote that was given, and without any entry less."""
    store = SqliteStore.open(tmp_path / "data", N1)
    append(store)
    old = copied(tmp_path / "data", tmp_path / "old")
    store.set({b"vote": b"n2"})
    (old / MARK_FILE).write_bytes(mark_of(tmp_path / "data"))
    store.close()
    assert "(the last term, vote or truncation)" in refusal(old)


@pytest.mark.parametrize("gone", [(DATABASE_FILE,), (DATABASE_FILE, WAL_FILE)])
def test_a_mark_without_its_database_is_refused(tmp_path: Path, gone: tuple[str, ...]) -> None:
    """S62: an empty store would have forgotten its votes."""
    store = SqliteStore.open(tmp_path / "data", N1)
    append(store)
    left = copied(tmp_path / "data", tmp_path / "left")
    store.close()
    for name in gone:
        (left / name).unlink()
    if WAL_FILE in gone:
        for _ in range(2):
            assert "(entries 1 to 3)" in refusal(left)
    else:
        with pytest.raises(DataDirectoryError, match=r"raft\.db is gone"):
            SqliteStore.open(left, N1)


# -- what is no loss


def test_a_truncation_then_a_power_loss_with_the_old_mark(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "data", N1)
    append(store, count=30)
    old = mark_of(tmp_path / "data")
    store.write([LogWrite({}, truncate_from=5)])
    lost = copied(tmp_path / "data", tmp_path / "lost", old)
    expected = read_all(store)
    assert store.last_index() == 4
    store.close()
    assert content(lost) == expected


def test_an_installed_snapshot_then_a_power_loss_with_the_old_mark(tmp_path: Path) -> None:
    """Backwards too: a snapshot may end below a tail that nobody committed."""
    for reset_to in (12, 1000):
        store = SqliteStore.open(tmp_path / f"{reset_to}", N1)
        append(store, count=30)
        old = mark_of(tmp_path / f"{reset_to}")
        store.write([LogWrite({b"vote": b"n3"}, reset_to=reset_to)])
        lost = copied(tmp_path / f"{reset_to}", tmp_path / f"lost{reset_to}", old)
        store.close()
        assert content(lost) == (reset_to + 1, reset_to, [], b"n3")


@pytest.mark.parametrize("last", [4, 30])
def test_a_prefix_deletion_is_no_loss(tmp_path: Path, last: int) -> None:
    store = SqliteStore.open(tmp_path / "data", N1)
    append(store, count=30)
    old = mark_of(tmp_path / "data")
    store.delete_prefix(last)
    lost = copied(tmp_path / "data", tmp_path / "lost", old)
    expected = read_all(store)
    store.close()
    for data_dir in (lost, tmp_path / "data"):
        assert content(data_dir) == expected


def test_every_older_mark_starts_and_every_newer_one_does_not(tmp_path: Path) -> None:
    """A history of all kinds of commits; the files after each of them with the mark of each."""
    chosen = random.Random(3)
    store = SqliteStore.open(tmp_path / "data", N1)
    marks: list[bytes] = []
    contents: list[object] = []
    for number in range(14):
        term = number + 1
        kinds: list[Callable[[], None]] = [
            lambda: append(store, term),  # noqa: B023 - called at once
            lambda: append(store, term, 1),  # noqa: B023
            lambda: store.set({b"vote": b"%d" % number}),  # noqa: B023
            lambda: store.write(
                [LogWrite({}, store.last_index(), (LogBatch(store.last_index(), term, [b"x"]),))]  # noqa: B023
            ),
            lambda: store.write([LogWrite({}, reset_to=max(0, store.last_index() - 3))]),
            lambda: store.delete_prefix(store.first_index()),
        ]
        possible = kinds if store.last_index() > store.first_index() else kinds[:3]
        chosen.choice(possible)()
        marks.append(mark_of(tmp_path / "data"))
        contents.append(read_all(store))
        copied(tmp_path / "data", tmp_path / f"{number}")
    store.close()
    assert len(set(marks)) == len(marks)
    for here in range(len(marks)):
        for noted, mark in enumerate(marks):
            data_dir = copied(tmp_path / f"{here}", tmp_path / f"{here}-{noted}", mark)
            if noted > here:
                refusal(data_dir)
            else:
                assert content(data_dir) == contents[here]


# -- flipped bits in the live wal, for real


def history(data_dir: Path, *, checkpointed: bool) -> tuple[SqliteStore, object]:
    """An open store with some sixty commits in its wal."""
    store = SqliteStore.open(data_dir, N1)
    for number in range(20):
        append(store, term=number + 1)
        store.set({b"vote": b"n%d" % number})
        store.write(
            [LogWrite({}, store.last_index(), (LogBatch(store.last_index(), number + 1, [b"x"]),))]
        )
    if checkpointed:
        # All of the wal is in the database as well, but sqlite goes on reading it from the wal.
        store._checkpoint()
    return store, read_all(store)


def outcome(data_dir: Path, expected: object) -> str:
    try:
        store = SqliteStore.open(data_dir, N1)
    except CorruptLogError:
        return "refused"
    with closing(store):
        try:
            return "unharmed" if read_all(store) == expected else "lost silently"
        except CorruptLogError:
            return "noticed on reading"


def outcomes(
    tmp_path: Path, source: Path, expected: object, flips: int, *, mark: bool = True
) -> dict[str, int]:
    """Flip a bit at many places of the wal, one at a time, and open."""
    chosen = random.Random(11)
    size = (source / WAL_FILE).stat().st_size
    counts: dict[str, int] = {}
    for number in range(flips):
        data_dir = copied(source, tmp_path / f"flip{number}")
        if not mark:
            (data_dir / MARK_FILE).unlink()
        # Each tenth in the header of the file, where one bit costs all of it.
        offset = chosen.randrange(size if number % 10 else 32)
        with (data_dir / WAL_FILE).open("r+b") as wal:
            wal.seek(offset)
            (byte,) = wal.read(1)
            wal.seek(offset)
            wal.write(bytes([byte ^ 1 << chosen.randrange(8)]))
        found = outcome(data_dir, expected)
        counts[found] = counts.get(found, 0) + 1
        if found == "refused":
            # sqlite has removed the wal at close; what may be saved by hand is kept.
            kept = (data_dir / f"{WAL_FILE}.refused").stat()
            assert kept.st_size == size
            assert not (data_dir / WAL_FILE).exists()
        shutil.rmtree(data_dir)
    return counts


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_flipped_bit_in_the_live_wal_is_noticed(tmp_path: Path, checkpointed: bool) -> None:
    """S8: every later commit is dropped by sqlite without a word; not by us."""
    store, expected = history(tmp_path / "data", checkpointed=checkpointed)
    counts = outcomes(tmp_path, tmp_path / "data", expected, 150)
    assert "lost silently" not in counts, counts
    # The others hit what nobody reads, or cost only what is in the database as well.
    assert counts["refused"] >= 120, counts
    store.close()


def test_without_the_mark_the_same_flips_go_unnoticed(tmp_path: Path) -> None:
    """So that the test above tests the mark, and nothing else."""
    store, expected = history(tmp_path / "data", checkpointed=False)
    counts = outcomes(tmp_path, tmp_path / "data", expected, 40, mark=False)
    assert counts["lost silently"] >= 35, counts
    store.close()
