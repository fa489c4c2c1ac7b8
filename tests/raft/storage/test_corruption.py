"""Damage on the disk: told as CorruptLogError or a refusal, never answered with wrong data."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from rafthttp.raft.errors import CorruptLogError, DataDirectoryError, StorageError
from rafthttp.raft.storage import rows
from rafthttp.raft.storage.mark import MARK_FILE
from rafthttp.raft.storage.reserve import RESERVE_FILE
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID, Term

N1 = ServerID("n1")
ALL = 1 << 40
STABLE = {b"CurrentTerm": b"9", b"LastVote": b"n2"}


def record(index: int) -> bytes:
    return b"%d," % index * (index % 90 + 1)


def term(index: int) -> Term:
    return 1 + index // 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store of 300 entries in some hundred rows, all of it in the checkpointed file."""
    data_dir = tmp_path_factory.mktemp("made")
    store = SqliteStore.open(data_dir, N1)
    store.set(STABLE)
    first = 1
    for count in random.Random(1).choices([1, 2, 5], k=1000):
        batch = [i for i in range(first, min(first + count, 301)) if term(i) == term(first)]
        if not batch:
            break
        write = LogWrite({}, batches=(LogBatch(first, term(first), [record(i) for i in batch]),))
        store.write([write])
        first = batch[-1] + 1
    assert store.last_index() == 300
    store.close()
    assert not (data_dir / f"{DATABASE_FILE}-wal").exists()
    (data_dir / RESERVE_FILE).unlink()  # 16 MiB less to copy
    return data_dir


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def damage(data_dir: Path, statement: str, *parameters: object) -> None:
    database = sqlite3.connect(data_dir / DATABASE_FILE)
    with database:
        assert database.execute(statement, parameters).rowcount == 1
    database.close()


@pytest.mark.parametrize("column", ["term", "entries", "head_crc", "data_crc", "sizes", "data"])
@pytest.mark.parametrize("change", [1, -1, None, "text", b"", 1.5, 1 << 40], ids=repr)
def test_a_changed_column_is_noticed(copy: Path, column: str, change: object) -> None:
    """Guard 3, any value of any type in any column of a row in the middle."""
    database = sqlite3.connect(copy / DATABASE_FILE)
    (first,) = database.execute(
        "SELECT first FROM log WHERE first > 150 AND entries > 1 LIMIT 1"
    ).fetchone()
    database.close()
    damage(copy, f"UPDATE log SET {column} = ? WHERE first = ?", change, first)
    try:
        store = SqliteStore.open(copy, N1)
    except CorruptLogError:
        return
    with pytest.raises(CorruptLogError):
        store.get_records(first, first, ALL)
    with pytest.raises(CorruptLogError):
        store.get_records(1, 300, ALL)
    if column in ("term", "entries", "head_crc"):
        with pytest.raises(CorruptLogError):
            store.term_at(first)
    assert store.get_records(1, 100, ALL) == [record(i) for i in range(1, 101)]
    store.close()


@pytest.mark.parametrize("target", [150, 300])
def test_a_row_in_the_place_of_another_is_noticed(copy: Path, target: int) -> None:
    """Records and their checksum moved together: the checksum covers the index."""
    columns = "term, entries, head_crc, data_crc, sizes, data"
    damage(
        copy,
        f"UPDATE log SET ({columns}) = (SELECT {columns} FROM log WHERE first = 1)"
        " WHERE first = (SELECT max(first) FROM log WHERE first <= ?)",
        target,
    )
    with pytest.raises(CorruptLogError), closing(SqliteStore.open(copy, N1)) as store:
        store.get_records(1, 300, ALL)


def test_a_damaged_last_row_refuses_to_open(copy: Path) -> None:
    """S8: a checksum error in what was acknowledged is no torn tail, and is not cut."""
    damage(copy, "UPDATE log SET data = zeroblob(9) WHERE first = (SELECT max(first) FROM log)")
    with pytest.raises(CorruptLogError, match="wrong checksum"):
        SqliteStore.open(copy, N1)


@pytest.mark.parametrize(
    "change", ["DELETE FROM state", "UPDATE state SET pairs = x'00'", "UPDATE state SET crc = 7"]
)
def test_no_pair_is_lost_silently(copy: Path, change: str) -> None:
    """S1: a forgotten vote is a second vote."""
    damage(copy, change)
    with pytest.raises(CorruptLogError, match="state row"):
        SqliteStore.open(copy, N1)


@pytest.mark.parametrize(
    "pairs",
    [
        {},
        {b"node_id": b"n1", b"first_index": bytes(8)},
        {b"node_id": b"n1", b"first_index": bytes(8), b"generation": bytes(7)},
        {b"node_id": b"n1", b"first_index": b"", b"generation": bytes(8)},
        {b"first_index": bytes(8), b"generation": bytes(8)},
    ],
)
def test_a_state_row_without_what_it_must_have(copy: Path, pairs: dict[bytes, bytes]) -> None:
    """Its checksum is right: no rotten bit, but a writer that is none of ours."""
    packed = rows.pack_pairs(pairs)
    damage(copy, "UPDATE state SET pairs = ?, crc = ?", packed, crc32(packed))
    with pytest.raises(CorruptLogError, match="state row"):
        SqliteStore.open(copy, N1)


def test_truncation_does_not_bless_a_damaged_row(copy: Path) -> None:
    """A row cut in two is written again; what is kept must have been sound."""
    database = sqlite3.connect(copy / DATABASE_FILE)
    (first,) = database.execute(
        "SELECT first FROM log WHERE first > 150 AND entries > 1 LIMIT 1"
    ).fetchone()
    database.close()
    damage(copy, "UPDATE log SET data = zeroblob(length(data)) WHERE first = ?", first)
    store = SqliteStore.open(copy, N1)
    with pytest.raises(CorruptLogError):
        store.write([LogWrite({}, truncate_from=first + 1)])
    assert store.last_index() == 300
    store.close()


def read_everything(data_dir: Path) -> str:
    """Open and read all; wrong data fails the test, the rest is an outcome."""
    try:
        store = SqliteStore.open(data_dir, N1)
    except (CorruptLogError, DataDirectoryError) as error:
        return type(error).__name__
    outcome = "unharmed"
    try:
        assert {key: store.get(key) for key in STABLE} == STABLE
        assert store.first_index() == 1
        last = store.last_index()
        assert last <= 300
        for index in range(1, last + 1):
            for read, truth in (
                (lambda: store.term_at(index), term(index)),  # noqa: B023 - called at once
                (lambda: store.get_records(index, index, ALL)[0], record(index)),  # noqa: B023
            ):
                found = attempt(read)
                if isinstance(found, StorageError):
                    outcome = "CorruptLogError on reading"
                else:
                    assert found == truth
        runs = attempt(lambda: store.term_runs(1, last))
        assert isinstance(runs, StorageError) or runs == [
            (i, term(i)) for i in range(1, last + 1) if i == 1 or term(i) != term(i - 1)
        ]
    finally:
        store.close()
    return outcome if last == 300 else "shorter"


def attempt(read: Callable[[], object]) -> object:
    try:
        return read()
    except StorageError as error:
        return error


def test_flipped_bits_in_the_file(made: Path, tmp_path: Path) -> None:
    """Each bit of the database may flip: what is read is right, or it is not read."""
    sound = (made / DATABASE_FILE).read_bytes()
    chosen = random.Random(7)
    outcomes: dict[str, int] = {}
    for number in range(150):
        data = bytearray(sound)
        # Half of the flips into the first hundreds of bytes of a page, where sqlite keeps its own.
        page = chosen.randrange(len(data) // 4096) * 4096
        offset = page + chosen.randrange(4096 if number % 2 else 200)
        data[offset] ^= 1 << chosen.randrange(8)
        data_dir = tmp_path / str(number)
        data_dir.mkdir()
        (data_dir / DATABASE_FILE).write_bytes(data)
        shutil.copyfile(made / MARK_FILE, data_dir / MARK_FILE)
        outcome = read_everything(data_dir)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(data_dir)
    # The flips do land where it matters: measured 70; the others hit space that is not in use.
    assert outcomes["CorruptLogError on reading"] + outcomes["CorruptLogError"] >= 50, outcomes
    # Rows that fall off the end of the tree look like a shorter log; the mark tells (guard 4).
    assert "shorter" not in outcomes, outcomes


def test_a_cut_or_zeroed_file(made: Path, tmp_path: Path) -> None:
    sound = (made / DATABASE_FILE).read_bytes()
    pages = len(sound) // 4096
    for page in range(pages):
        data_dir = tmp_path / str(page)
        data_dir.mkdir()
        zeroed = sound[: page * 4096] + bytes(4096) + sound[(page + 1) * 4096 :]
        (data_dir / DATABASE_FILE).write_bytes(zeroed)
        assert read_everything(data_dir) != "unharmed"
        (data_dir / DATABASE_FILE).write_bytes(sound[: page * 4096 + 1000])
        assert read_everything(data_dir) != "unharmed"


def test_check_head_trusts_no_type() -> None:
    row = rows.pack(1, 1, [b"a", b"b"])
    heads: list[tuple[Any, Any, Any]] = [
        (None, 1, 2),
        (1, "1", 2),
        (1, 1, 2.0),
        (-1, 1, 2),
        (1, 1, 0),
    ]
    for first, entry_term, entries in heads:
        with pytest.raises(CorruptLogError):
            rows.check_head(first, entry_term, entries, row.head_crc)
    with pytest.raises(CorruptLogError):
        rows.unpack(row._replace(data=b"ac"))
