"""A server's whole disk, killed again and again: append, vote, truncate, compact, snapshot.

Log and snapshots are one workload in one directory, which every life of the process goes on with.
What was acknowledged is there after each death, and nothing else but the one operation under way.
Run as a script, this file forks the lives, which costs little: a thousand take minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rafthttp.raft.storage import reserve, wal
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import (
    Configuration,
    LogBatch,
    LogWrite,
    Server,
    ServerAddress,
    ServerID,
    Term,
)
from rafthttp.testing.storage import DurableStore

N1 = ServerID("n1")
CONFIGURATION = Configuration((Server(N1, ServerAddress("127.0.0.1:8101")),))
RETAIN = 2
KINDS = ("append", "vote", "truncate", "reset", "compact", "snapshot")


def kind_of(store: DurableStore, number: int) -> str:
    """What the `number`-th operation is: the same for equal stores."""
    chosen = random.Random(f"kind {number}")
    first, last = store.first_index(), store.last_index()
    held = last - first + 1
    if held > 200 and chosen.random() < 0.5:
        return "compact"
    if held and chosen.random() < 0.05:
        return "snapshot"
    if held and chosen.random() < 0.1:
        return "truncate"
    return chosen.choices(["append", "vote", "reset"], [80, 15, 1])[0]


def write(store: DurableStore, kind: str, number: int) -> None:
    """An operation on the log alone."""
    chosen = random.Random(number)
    first, last = store.first_index(), store.last_index()
    vote: dict[bytes, bytes | None] = {b"term": b"%d" % number, b"vote": b"%d" % number}
    if kind == "vote":
        store.set(vote)
        return
    if kind == "compact":
        store.delete_prefix(first + chosen.randrange(150))
        return
    reset_to = last + chosen.randrange(50) if kind == "reset" else None
    truncate_from = max(first, last - chosen.randrange(20)) if kind == "truncate" else None
    if reset_to is not None:
        last = reset_to
    elif truncate_from is not None:
        last = truncate_from - 1
    records = [
        b"%d/%d " % (number, i) * chosen.choice([1, 10, 500])
        for i in range(chosen.choice([1, 1, 2, 30]))
    ]
    stable = vote if chosen.random() < 0.2 else {}
    batches = (LogBatch(last + 1, term_of(number), records),)
    store.write([LogWrite(stable, truncate_from, batches, reset_to)])


def term_of(number: int) -> Term:
    return 1 + number // 10


def content(number: int) -> Iterator[bytes]:
    """The state of the snapshot that the `number`-th operation takes."""
    for _ in range(random.Random(number).choice([0, 1, 3, 30])):
        yield hashlib.sha256(b"%d" % number).digest() * 1000


def take(snapshots: FileSnapshotStore, index: int, number: int) -> None:
    sink = snapshots.create(max(index, 1), term_of(number), CONFIGURATION, 1)
    for piece in content(number):
        sink.write(piece)
    sink.close()


class Model:
    """What a disk that loses nothing would hold."""

    def __init__(self) -> None:
        self.log = MemoryStore()
        self.snapshots: list[tuple[Term, int, int]] = []
        self.number = 0

    def step(self) -> str:
        """The next operation; its kind."""
        kind = kind_of(self.log, self.number)
        if kind == "snapshot":
            index = max(self.log.last_index(), 1)
            self.snapshots.append((term_of(self.number), index, self.number))
        else:
            write(self.log, kind, self.number)
        self.number += 1
        return kind

    def state(self) -> tuple[Any, ...]:
        """All there is to know."""
        newest = max(self.snapshots, default=None)
        taken = None if newest is None else (*newest[:2], b"".join(content(newest[2])))
        return log_state(self.log), taken


def log_state(store: DurableStore) -> tuple[Any, ...]:
    first, last = store.first_index(), store.last_index()
    records = store.get_records(first, last, 1 << 40) if last >= first else []
    runs = store.term_runs(first, last) if last >= first else []
    return first, last, runs, records, store.get(b"term"), store.get(b"vote")


def disk_state(data_dir: Path) -> tuple[Any, ...]:
    """What is there after a death; all snapshots that are listed are whole."""
    with closing(SqliteStore.open(data_dir, N1)) as store:
        snapshots = FileSnapshotStore(data_dir / "snapshots", RETAIN)
        metas = snapshots.list()
        assert len(metas) <= RETAIN + 1, metas
        names = sorted(os.listdir(data_dir / "snapshots"), reverse=True)
        assert names == [meta.id for meta in metas], "nothing partial stays"
        taken = None
        for meta in reversed(metas):
            with snapshots.open(meta.id)[1] as source:
                taken = (meta.term, meta.index, source.read())
        return log_state(store), taken


def live(data_dir: Path, number: int, acknowledge: int) -> None:
    """One life: operation after operation, each acknowledged by its number, until killed."""
    store = SqliteStore.open(data_dir, N1)
    snapshots = FileSnapshotStore(data_dir / "snapshots", RETAIN)
    while True:
        kind = kind_of(store, number)
        if kind == "snapshot":
            take(snapshots, store.last_index(), number)
        else:
            write(store, kind, number)
        os.write(acknowledge, b"%d\n" % number)
        if number % 13 == 5:
            store.maintain()
        number += 1


def die(data_dir: Path, number: int, chosen: random.Random) -> int:
    """Let a life run for a few operations, and kill it anywhere; how many were acknowledged."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        live(data_dir, number, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as acknowledged:
        seen = b""
        for _ in range(chosen.choice([0, 1, 2, 10, 30])):
            seen += acknowledged.read(1 << 16)
        # Then anywhere in what follows: no more acknowledgement than this is waited for.
        select.select([acknowledged], [], [], chosen.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := acknowledged.read(1 << 16):
            seen += more
    return seen.count(b"\n")


def loop(data_dir: Path, kills: int, seed: int) -> dict[str, Any]:
    """So many lives and deaths.

    Raises:
        AssertionError: something acknowledged is gone, or something is there by half.
    """
    chosen = random.Random(seed)
    model = Model()
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for kill in range(kills):
        for _ in range(die(data_dir, model.number, chosen)):
            kinds[model.step()] += 1
        found = disk_state(data_dir)
        if found == model.state():
            outcomes["acknowledged"] += 1
            continue
        under_way = model.step()
        kinds[under_way] += 1
        outcomes[f"one more: {under_way}"] += 1
        assert found == model.state(), f"after kill {kill}, in operation {model.number - 1}"
    return {"kills": kills, "operations": kinds, "outcomes": outcomes}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kills", "seed"), [(40, 1), pytest.param(1000, 2, marks=pytest.mark.soak)]
)
def test_killed_again_and_again(tmp_path: Path, kills: int, seed: int) -> None:
    """S1, S2, S3, S5, S8, S41, S49."""
    command = [sys.executable, __file__, str(tmp_path / "data"), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2900, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(told)
    assert sum(told["outcomes"].values()) == kills
    assert told["outcomes"]["acknowledged"] < kills, "some die in an operation"
    if kills >= 1000:
        assert set(told["operations"]) == set(KINDS)


if __name__ == "__main__":
    reserve.RESERVE_SIZE_BYTES = 64 << 10  # type: ignore[misc]  # hundreds of opens
    # Checkpoints, which come with megabytes otherwise, belong to the workload.
    wal.DUE_BYTES, wal.BOUND_BYTES = 64 << 10, 256 << 10  # type: ignore[misc]
    print(json.dumps(loop(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
