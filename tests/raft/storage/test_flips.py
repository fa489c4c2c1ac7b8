"""A bit flips in any file of a server's data directory, which is then started from, for real.

The directory is that of a process that was killed: a log of which much stands in the live wal, the
mark, the reserve, the lock, and two snapshots. Each flip is told, or everything is there that ever
was acknowledged: every command, term and vote. None is lost without a word.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from rafthttp.raft.core.ready import HardState
from rafthttp.raft.errors import RaftHttpError
from rafthttp.raft.runtime import restart
from rafthttp.raft.storage.protocols import SnapshotMeta, SnapshotStore
from rafthttp.raft.storage.reserve import RESERVE_FILE
from rafthttp.raft.storage.snapshot_files import META_FILE, STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.sqlite import DATABASE_FILE, SqliteStore
from rafthttp.raft.types import (
    Configuration,
    LogBatch,
    LogType,
    LogWrite,
    Server,
    ServerAddress,
    ServerID,
)
from rafthttp.raft.wire.entries import decode_log, encode_log

N1 = ServerID("n1")
CONFIGURATION = Configuration((Server(N1, ServerAddress("127.0.0.1:8101")),))
SNAPSHOTS = "snapshots"
# Index 1 is the configuration.
OLD_SNAPSHOT, NEW_SNAPSHOT, COMPACTED, CHECKPOINTED, LAST = 60, 120, 100, 180, 220
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Found(NamedTuple):
    """All that a start finds."""

    commands: list[bytes]
    hard_state: HardState
    last_index: int


def term_of(index: int) -> int:
    return 1 + index // 50


def command(index: int) -> bytes:
    return b"%d," % index * (1 + index * 7 % 90)


EXPECTED = Found(
    [command(index) for index in range(2, LAST + 1)], HardState(term_of(LAST) + 1, N1), LAST
)


def fill(store: SqliteStore, first: int, last: int) -> None:
    for index in range(first, last + 1):
        term = term_of(index)
        record = encode_log(index, term, LogType.COMMAND, command(index), b"", index * 10**9)
        stable: dict[bytes, bytes | None] = {}
        if index % 50 == 0:
            stable = {restart.HARD_STATE: restart.encode_hard_state(HardState(term, N1))}
        store.write([LogWrite(stable, None, (LogBatch(index, term, [record]),))])


def take(snapshots: FileSnapshotStore, index: int) -> None:
    sink = snapshots.create(index, term_of(index), CONFIGURATION, 1)
    for at in range(2, index + 1):
        sink.write(command(at) + b";")
    sink.close()


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    """Each flip is told, with a traceback."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the killed process leaves; the last truncation is done, and the vote of a later term."""
    data_dir, left = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("left") / "data"
    with closing(SqliteStore.open(data_dir, N1)) as store:
        snapshots = FileSnapshotStore(data_dir / SNAPSHOTS, 2)
        restart.bootstrap(store, store, snapshots, CONFIGURATION, 1)
        fill(store, 2, NEW_SNAPSHOT)
        take(snapshots, OLD_SNAPSHOT)
        take(snapshots, NEW_SNAPSHOT)
        store.delete_prefix(COMPACTED)
        fill(store, NEW_SNAPSHOT + 1, CHECKPOINTED)
        store._checkpoint()
        fill(store, CHECKPOINTED + 1, LAST + 10)
        store.write([LogWrite({}, truncate_from=LAST + 1)])
        vote = restart.encode_hard_state(EXPECTED.hard_state)
        store.set({restart.HARD_STATE: vote})
        shutil.copytree(data_dir, left)
    assert (left / f"{DATABASE_FILE}-wal").stat().st_size > 100_000
    return left


def start(data_dir: Path) -> Found:
    """As a server starts: the state machine restored, and all of the log behind it read."""
    commands: list[bytes] = []
    with ExitStack() as files:
        store = files.enter_context(closing(SqliteStore.open(data_dir, N1)))
        snapshots = FileSnapshotStore(data_dir / SNAPSHOTS, 2)

        def restore(source: SnapshotStore, meta: SnapshotMeta) -> None:
            with source.open(meta.id)[1] as state:
                commands[:] = state.read().split(b";")[:-1]

        found = restart.load(store, store, snapshots, restore, LAST)
        applied = len(commands) + 1
        last = store.last_index()
        # What trails behind the snapshot goes to followers: it is right or not read.
        for index in range(store.first_index(), last + 1):
            (record,) = store.get_records(index, index, 1 << 40)
            log = decode_log(record)
            if log.type is LogType.COMMAND:
                assert (log.index, log.term, log.data) == (index, term_of(index), command(index))
            if index > applied:
                commands.append(log.data)
        return Found(commands, found.hard_state, last)


def attempt(data_dir: Path) -> str:
    """How it ends; what it finds in the end is right."""
    try:
        found = start(data_dir)
    except RaftHttpError as error:
        return type(error).__name__
    assert found == EXPECTED, "something was lost without a word"
    return "harmless"


def flips(made: Path, count: int, chosen: random.Random) -> list[tuple[Path, int]]:
    """Which byte of which file: every file, the more the larger it is."""
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    sizes = {file: (made / file).stat().st_size for file in files}
    weights = [sizes[file] ** 0.5 if file.name != RESERVE_FILE else 0.0 for file in files]
    each = [file for file in files for _ in range(min(sizes[file], 5))]
    each += chosen.choices(files, weights, k=max(0, count - len(each)))
    return [(file, chosen.randrange(sizes[file])) for file in each]


@pytest.mark.parametrize(
    ("count", "seed"), [(180, 1), pytest.param(10_000, 2, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(3000)
def test_each_is_told_or_harmless(made: Path, count: int, seed: int) -> None:
    """S8, S9, S10."""
    chosen = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        sound = Path(directory) / "sound"
        shutil.copytree(made, sound)
        assert attempt(Path(shutil.copytree(sound, Path(directory) / "first"))) == "harmless"
        for number, (file, offset) in enumerate(flips(made, count, chosen)):
            data_dir = Path(directory) / str(number)
            shutil.copytree(sound, data_dir)
            data = bytearray((data_dir / file).read_bytes())
            data[offset] ^= 1 << chosen.randrange(8)
            (data_dir / file).write_bytes(data)
            try:
                outcome = attempt(data_dir)
            except Exception as error:
                raise AssertionError(f"{file} at {offset}: {error!r}") from error
            outcomes.setdefault(file.name, Counter())[outcome] += 1
            shutil.rmtree(data_dir)
    print({name: dict(found) for name, found in outcomes.items()})
    assert set(outcomes) >= {DATABASE_FILE, f"{DATABASE_FILE}-wal", "raft.mark", RESERVE_FILE}
    for name in (DATABASE_FILE, f"{DATABASE_FILE}-wal", META_FILE, STATE_FILE):
        assert sum(outcomes[name].values()) > outcomes[name]["harmless"], outcomes[name]


def test_a_flip_that_nobody_tells_would_be_seen(made: Path, tmp_path: Path) -> None:
    """Without the mark a flipped bit in the wal loses acknowledged commands: the test notices."""
    data_dir = Path(shutil.copytree(made, tmp_path / "data"))
    (data_dir / "raft.mark").unlink()
    path = data_dir / f"{DATABASE_FILE}-wal"
    data = bytearray(path.read_bytes())
    data[10_000] ^= 1
    path.write_bytes(data)

    with pytest.raises(AssertionError, match="without a word"):
        attempt(data_dir)
