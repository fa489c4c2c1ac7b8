"""Commits/s of `SqliteStore` against a raw `pwrite` + `fdatasync` loop of the same bytes.

    python bench/storage_log.py [--dir DIRECTORY] [--seconds 2]

And what the guards cost: how long single commits take under three kinds of checkpoints, and the
high-water mark.

Both run in turn, several times, in the same directory: compare the ratios, not the figures of two
runs. The raw loop writes one file of zero-filled blocks over and over, as a wal that is in use.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rafthttp.raft.storage import wal
from rafthttp.raft.storage.mark import Mark, MarkFile
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID

RECORD = b"x" * 133  # a 64-byte command as it is encoded
FILE_SIZE_BYTES = 8 << 20
TURNS = 3


def rate(step: Callable[[], None], seconds: float) -> float:
    """Steps a second."""
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return count / (time.perf_counter() - start)


class Raw:
    """What the disk allows."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(self.descriptor, bytes(FILE_SIZE_BYTES), 0)
        os.fsync(self.descriptor)
        self.data = b"y" * size_bytes
        self.offset = 0

    def step(self) -> None:
        if self.offset + len(self.data) > FILE_SIZE_BYTES:
            self.offset = 0
        os.pwrite(self.descriptor, self.data, self.offset)
        os.fdatasync(self.descriptor)
        self.offset += len(self.data)


def appender(store: SqliteStore, count: int) -> Callable[[], None]:
    """A step that commits `count` entries."""
    records = [RECORD] * count

    def step() -> None:
        store.write([LogWrite({}, batches=(LogBatch(store.last_index() + 1, 1, records),))])

    return step


def compare(directory: Path, count: int, seconds: float) -> None:
    """Print one line: both rates (medians of turns) and their ratio."""
    store = SqliteStore.open(directory / f"store{count}", ServerID("n1"))
    raw = Raw(directory / f"raw{count}", count * len(RECORD))
    pairs = [
        (rate(raw.step, seconds / TURNS), rate(appender(store, count), seconds / TURNS))
        for _ in range(TURNS)
    ]
    store.close()
    os.close(raw.descriptor)
    raw_rate, store_rate = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(
        f"{count:5} entries a commit: {store_rate:8,.0f} commits/s {store_rate * count:12,.0f} "
        f"entries/s   raw {raw_rate:8,.0f} commits/s   ratio {ratio:.2f}"
    )


def reopen(directory: Path) -> None:
    """Print how long a restart with a million entries takes."""
    store = SqliteStore.open(directory / "million", ServerID("n1"))
    step = appender(store, 500)
    while store.last_index() < 1_000_000:
        step()
    store.close()
    start = time.perf_counter()
    store = SqliteStore.open(directory / "million", ServerID("n1"))
    opened = time.perf_counter()
    store.term_runs(1, store.last_index())
    end = time.perf_counter()
    store.close()
    print(f"1,000,000 entries: open {(opened - start) * 1e3:.1f} ms, ", end="")
    print(f"term_runs {(end - opened) * 1e3:.2f} ms")


def latencies(directory: Path, count: int, commits: int) -> None:
    """Print how long a commit takes: with sqlite's own checkpoints, at the bound, when idle."""
    for kind in ("sqlite's own", "at the bound", "when idle") * 2:
        with tempfile.TemporaryDirectory(dir=directory) as data_dir:
            store = SqliteStore.open(Path(data_dir), ServerID("n1"))
            bound = wal.BOUND_BYTES
            if kind == "sqlite's own":
                # As it was: 1000 pages, in the middle of a commit.
                store._connection.execute("PRAGMA wal_autocheckpoint = 1000").close()
                setattr(wal, "BOUND_BYTES", 1 << 60)  # noqa: B010 - a Final, for this once
            step = appender(store, count)
            took: list[float] = []
            idle: list[float] = [0.0]
            for _ in range(commits):
                start = time.perf_counter()
                step()
                took.append(time.perf_counter() - start)
                if kind == "when idle":
                    due = store._wal.due
                    start = time.perf_counter()
                    store.maintain()
                    if due:
                        idle.append(time.perf_counter() - start)
            store.close()
            setattr(wal, "BOUND_BYTES", bound)  # noqa: B010 - see above
            took = sorted(took[commits // 10 :])  # without the growth of a new wal
            places = [took[int(len(took) * part)] * 1e6 for part in (0.5, 0.99, 0.999)]
            print(
                f"{count:5} entries a commit, checkpoints {kind:12}: p50 {places[0]:5.0f}  p99"
                f" {places[1]:5.0f}  p99.9 {places[2]:5.0f}  max {took[-1] * 1e6:6.0f} µs"
                f"   beside: {len(idle) - 1}, median {statistics.median(idle) * 1e3:.2f} ms"
            )


def mark(directory: Path) -> None:
    """Print what the high-water mark adds to a commit."""
    file = MarkFile(directory)
    count = 100_000
    start = time.perf_counter()
    for index in range(count):
        file.write(Mark(1, index))
    print(f"high-water mark: {(time.perf_counter() - start) / count * 1e6:.2f} µs a commit")
    file.close()


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row and each side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        for count in (1, 64, 512, 4096):
            compare(Path(directory), count, arguments.seconds)
        for count, commits in ((1, 20_000), (64, 5_000), (512, 2_000)):
            latencies(Path(directory), count, commits)
        mark(Path(directory))
        reopen(Path(directory))


if __name__ == "__main__":
    main()
