"""Opening a data directory: what is made, what is refused in one line, how long it takes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from zlib import crc32

import pytest

from rafthttp.raft.errors import CorruptLogError, DataDirectoryError, StorageError
from rafthttp.raft.storage import rows
from rafthttp.raft.storage.sqlite import APPLICATION_ID, DATABASE_FILE, FORMAT, SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID

N1 = ServerID("n1")


def refusal(data_dir: Path, node_id: ServerID = N1) -> str:
    """The one line with which this directory is refused."""
    with pytest.raises(DataDirectoryError) as caught:
        SqliteStore.open(data_dir, node_id).close()
    text = str(caught.value)
    assert "\n" not in text
    assert str(data_dir) in text
    return text


def edit(data_dir: Path, *statements: str) -> None:
    """Change a closed store behind its back."""
    database = sqlite3.connect(data_dir / DATABASE_FILE, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The data directory of a closed store of n1 with some entries."""
    store = SqliteStore.open(tmp_path, N1)
    store.set({b"vote": b"n2"})
    for first in range(1, 40, 4):
        store.write([LogWrite({}, batches=(LogBatch(first, first, [b"record"] * 4),))])
    store.close()
    return tmp_path


def test_directories_are_created(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "b"
    SqliteStore.open(data_dir, N1).close()
    assert (data_dir / DATABASE_FILE).stat().st_size > 0


def test_settings_took_effect(made: Path) -> None:
    """Guard 7, read back from the connection in use."""
    store = SqliteStore.open(made, N1)
    found = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode")
    }
    assert found == {"journal_mode": b"wal", "synchronous": 2, "locking_mode": b"exclusive"}
    assert not list(made.glob("*-shm"))
    store.close()


def test_a_setting_that_does_not_take_effect_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that keeps its own mind about one setting stands for a changed sqlite."""

    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
            del parameters
            return super().execute(sql.replace("synchronous = 2", "synchronous = 1"))

    def connect(path: Path, **settings: object) -> sqlite3.Connection:
        del settings
        return Stubborn(path, isolation_level=None)

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert "synchronous at 1" in refusal(made)


def test_opening_commits_durably_before_anything_is_reported(made: Path) -> None:
    """Guard 2: each open leaves a commit of its own in the wal, before `last_index` is known."""
    store = SqliteStore.open(made, N1)
    wal = made / f"{DATABASE_FILE}-wal"
    assert wal.stat().st_size > 4096
    store.close()


def test_another_id_is_refused(made: Path) -> None:
    assert refusal(made, ServerID("n2")).endswith("belongs to id 'n1', not 'n2'")
    SqliteStore.open(made, N1).close()


def test_a_newer_format_is_refused(made: Path) -> None:
    edit(made, f"PRAGMA user_version = {FORMAT + 1}")
    assert f"has format {FORMAT + 1}" in refusal(made)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    edit(tmp_path, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")
    assert "not a database of rafthttp" in refusal(tmp_path)
    database = sqlite3.connect(tmp_path / DATABASE_FILE)
    assert database.execute("SELECT x FROM theirs").fetchall() == [(1,)]
    database.close()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"a text of a hundred bytes or so. " * 40)
    assert refusal(tmp_path).endswith("raft.db is not a database")


@pytest.mark.parametrize("size", [0, None])
def test_a_database_that_is_gone_while_its_wal_is_not(made: Path, size: int | None) -> None:
    (made / f"{DATABASE_FILE}-wal").write_bytes(b"x" * 5000)
    (made / DATABASE_FILE).unlink()
    if size is not None:
        (made / DATABASE_FILE).touch()
    assert "raft.db is gone" in refusal(made)


def test_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refusal(file).endswith("is not a directory")
    assert refusal(file / "below").endswith("is not a directory")


def test_a_directory_where_the_database_should_be(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).mkdir()
    assert "cannot be used: raft.db: Is a directory" in refusal(tmp_path)


def as_nobody(action: Callable[[], object]) -> None:
    """Do `action` without the powers of root, for which every file is writable."""
    if os.geteuid() != 0:
        action()
        return
    os.seteuid(65534)
    try:
        action()
    finally:
        os.seteuid(0)


def open_up(path: Path) -> None:
    """Let every user get as far as `path`."""
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(0o755)


def test_unwritable(tmp_path: Path) -> None:
    open_up(tmp_path)
    tmp_path.chmod(0o555)
    texts: list[str] = []
    as_nobody(lambda: texts.append(refusal(tmp_path)))
    as_nobody(lambda: texts.append(refusal(tmp_path / "below")))
    tmp_path.chmod(0o755)
    assert [text.split(str(tmp_path))[1] for text in texts] == [
        " is not writable: Permission denied",
        "/below cannot be created: Permission denied",
    ]


def test_a_read_only_database(made: Path) -> None:
    open_up(made)
    for path in (made, made / "lock"):
        path.chmod(0o777)
    (made / DATABASE_FILE).chmod(0o444)
    texts: list[str] = []
    as_nobody(lambda: texts.append(refusal(made)))
    assert texts[0].endswith("cannot be used: raft.db: Permission denied")


# -- the lock (guard 8)

HOLDER = dedent("""
    import sys
    from pathlib import Path
    from rafthttp.raft.storage.sqlite import SqliteStore
    store = SqliteStore.open(Path(sys.argv[1]), "n1")
    print("open", flush=True)
    sys.stdin.read()
""")


def test_a_directory_in_use_names_the_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert refusal(tmp_path).endswith(f"is in use by process {holder.pid}")
        holder.kill()
        holder.wait()
    # What a killed process leaves does not matter.
    assert (tmp_path / "lock").read_text() == f"{holder.pid}\n"
    SqliteStore.open(tmp_path, N1).close()


# One write a line: both processes share the pipe.
FORKER = HOLDER.replace(
    "sys.stdin.read()", "os.write(1, f\"{os.fork() or 'child'}\\n\".encode())\nsys.stdin.read()"
).replace("import sys", "import os, sys")


def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_directory(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        lines = {holder.stdout.readline(), holder.stdout.readline()}
        (child,) = (int(line) for line in lines - {b"child\n"})
        assert refusal(tmp_path).endswith(f"is in use by process {holder.pid}")
        holder.kill()
        holder.wait()
        SqliteStore.open(tmp_path, N1).close()
        os.kill(child, 0)  # raises if it has gone, and with it the point of this test


def test_twice_in_one_process(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path, N1)
    assert refusal(tmp_path).endswith(f"is in use by process {os.getpid()}")
    store.close()
    SqliteStore.open(tmp_path, N1).close()


def test_a_refused_open_releases_the_lock(made: Path) -> None:
    for _ in range(2):
        assert "belongs to" in refusal(made, ServerID("n2"))


def test_a_database_that_another_program_has_open(made: Path) -> None:
    database = sqlite3.connect(made / DATABASE_FILE, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    assert "is in use: another process has raft.db open" in refusal(made)
    database.close()
    SqliteStore.open(made, N1).close()


def test_nobody_else_reads_or_writes_while_it_is_open(made: Path) -> None:
    store = SqliteStore.open(made, N1)
    other = sqlite3.connect(made / DATABASE_FILE, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM log")
    other.close()
    store.close()


def test_a_closed_store_says_so(made: Path) -> None:
    store = SqliteStore.open(made, N1)
    store.close()
    for call in (
        lambda: store.get(b"vote"),
        lambda: store.set({}),
        lambda: store.term_at(1),
        lambda: store.write([LogWrite({})]),
    ):
        with pytest.raises(StorageError, match="is closed"):
            call()


# -- contiguity (guard 3) and time


@pytest.mark.parametrize("gone", range(1, 37, 4))
def test_a_missing_row_is_noticed(made: Path, gone: int) -> None:
    """At open where the search meets it, else when it is read; no read goes over a gap."""
    edit(made, f"DELETE FROM log WHERE first = {gone}")
    try:
        store = SqliteStore.open(made, N1)
    except CorruptLogError as error:
        assert "is missing" in str(error)  # noqa: PT017 - opening may succeed as well
        return
    reads: list[Callable[[], object]] = [
        lambda: store.get_records(1, 40, 1 << 20),
        lambda: store.get_records(gone + 1, gone + 1, 1 << 20),
        lambda: store.get_records(gone - 1, gone, 1 << 20),
        lambda: store.term_at(gone),
        lambda: store.term_at(gone + 3),
    ]
    for read in reads:
        with pytest.raises(CorruptLogError, match="is missing"):
            read()
    store.close()


def test_most_gaps_are_met_only_by_reading(made: Path) -> None:
    """So that the test above tests both ways, and opening stays far from a scan."""
    met = 0
    for gone in range(1, 37, 4):
        data_dir = shutil.copytree(made, made.parent / f"gap{gone}")
        edit(data_dir, f"DELETE FROM log WHERE first = {gone}")
        try:
            SqliteStore.open(data_dir, N1).close()
        except CorruptLogError:
            met += 1
    assert 1 <= met <= 4


def test_terms_that_fall_are_noticed(made: Path) -> None:
    """Three rows with sound checksums in an order that no log has."""
    falling = rows.pack(37, 2, [b"record"] * 4)
    database = sqlite3.connect(made / DATABASE_FILE, isolation_level=None)
    database.execute("REPLACE INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", falling)
    database.close()
    with pytest.raises(CorruptLogError, match="terms"):
        SqliteStore.open(made, N1)


def test_a_million_entries_open_at_once(tmp_path: Path) -> None:
    """A restart must not scan the log: neither rows of batches nor rows of one entry."""
    store = SqliteStore.open(tmp_path, N1)
    record = b"x" * 133
    for first in range(1, 1_000_001, 20_000):
        batches = (LogBatch(first, first // 50_000, [record] * 20_000),)
        store.write([LogWrite({}, batches=batches)])
    store.close()
    single = (rows.pack(index, 30, [record]) for index in range(1_000_001, 1_100_001))
    database = sqlite3.connect(tmp_path / DATABASE_FILE)
    database.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", single)
    database.commit()
    database.close()

    start = time.perf_counter()
    store = SqliteStore.open(tmp_path, N1)
    runs = store.term_runs(1, store.last_index())
    elapsed = time.perf_counter() - start
    assert store.last_index() == 1_100_000
    assert len(runs) == 21
    assert runs[-1] == (1_000_001, 30)
    assert elapsed < 0.5  # a scan of the rows alone takes longer; measured 5 ms
    store.close()


def test_the_format_is_written_down(made: Path) -> None:
    """The disk format, to be changed only together with `FORMAT`."""
    database = sqlite3.connect(made / DATABASE_FILE)
    assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    found = database.execute("SELECT * FROM log WHERE first = 5").fetchone()
    database.close()
    head = struct.pack("<QQQ", 5, 5, 4)
    sizes, data = b"\x06\0\0\0" * 4, b"record" * 4
    assert found == (5, 5, 4, crc32(head), crc32(head + sizes + data), sizes, data)


def test_whoevers_it_is(tmp_path: Path) -> None:
    """For tools: nothing is created where nothing is."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataDirectoryError, match=r"has no server's data \(raft.db\)"):
            SqliteStore.open(path, None)
    assert not list(tmp_path.iterdir())
    SqliteStore.open(tmp_path / "data", ServerID("n7")).close()
    store = SqliteStore.open(tmp_path / "data", None)
    assert store.node_id == "n7"
    with pytest.raises(DataDirectoryError, match="in use by process"):
        SqliteStore.open(tmp_path / "data", None)
    store.close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "raft.db").touch()
    with pytest.raises(DataDirectoryError, match="has no server's data"):
        SqliteStore.open(tmp_path / "empty", None)
