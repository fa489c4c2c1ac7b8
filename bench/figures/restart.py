"""A restart with a long log: `restart`.

    python -m bench.figures.restart [--quick]

A log of commands of 64 B is written by the store's own calls, with a snapshot of the counter near
its begin, so that nearly all of it is to be replayed; the writer ends as if killed. Then fresh
processes (`bench.peers.restart_node`) with one voter and the default configuration start on it, on
the long log and on one tenth of it in turn, with the files in the page cache and thrown out of it.

Timed from before the stores are opened, without the interpreter's own start: until `Raft.start`
returns, and until the server leads, which it does on its own vote once that is on disk. What the
start reads is counted by the kernel, whether it comes from the cache or the disk. Replay is from
leadership until a barrier is answered: read from disk, checked, decoded, applied. Memory is that of
the process at its most, replay included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.figures.figure import Figure, Line, main, spread

LONG_ENTRIES: Final = 1_000_000
SHORT_ENTRIES: Final = 100_000
SNAPSHOT_INDEX: Final = 1000
VOTE_MS_GOAL: Final = 2000.0
REPLAY_GOAL: Final = 200_000.0
READ_SHARE_GOAL: Final = 0.01
GROWTH_GOAL: Final = 1.1
PROCESS_SECONDS: Final = 120.0
PROGRAM: Final = (sys.executable, "-m", "bench.peers.restart_node")


@dataclass(frozen=True)
class Start:
    """One start, as `restart_node` tells it."""

    open_ms: float
    start_ms: float
    lead_ms: float
    start_read_bytes: int
    replayed_entries: int
    replay_ms: float
    rss_bytes: int
    rss_max_bytes: int
    count: int
    last_index: int

    @property
    def replay_a_second(self) -> float:
        """The rate."""
        return self.replayed_entries / self.replay_ms * 1e3


class _Log:
    """A data directory, and what starts on it gave."""

    def __init__(self, directory: Path, entries: int) -> None:
        self.entries = entries
        self._directory = directory
        self.warm: list[Start] = []
        self.cold: list[Start] = []
        fill = ("--fill", str(entries), "--snapshot", str(SNAPSHOT_INDEX))
        _run(str(directory), *fill)
        self.wal_bytes = (directory / "raft.db-wal").stat().st_size
        self.killed = self.start(cold=False)
        """The first one; it finds the wal that the writer left."""
        self.size_bytes = (directory / "raft.db").stat().st_size

    def start(self, *, cold: bool) -> Start:
        """One fresh process.

        Raises:
            RuntimeError: not all of the log was applied.
        """
        if cold:
            _evict(self._directory)
        start = Start(**json.loads(_run(str(self._directory))))
        if start.count != self.entries - 1:
            raise RuntimeError(f"{start.count} commands applied, of {self.entries - 1}")
        return start


def measure(quick: bool, directory: Path | None) -> Figure:
    """The figure."""
    times = 1 if quick else 5
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        short = _Log(Path(name, "short"), SHORT_ENTRIES)
        long = _Log(Path(name, "long"), LONG_ENTRIES)
        for _ in range(times):
            for log in (long, short):
                log.warm.append(log.start(cold=False))
                log.cold.append(log.start(cold=True))
    lines = [*_start_lines(long, short), _read_line(long, short)]
    lines += [*_replay_lines(long, short), *_memory_lines(long, short)]
    return Figure(f"A restart with a log of {LONG_ENTRIES:,} entries of 64 B", lines)


def _start_lines(long: _Log, short: _Log) -> Sequence[Line]:
    lines: list[Line] = []
    for what, starts in (
        ("files in the page cache", long.warm),
        ("files not in the page cache", long.cold),
        (f"behind a kill, {long.wal_bytes / (1 << 20):.0f} MiB of wal", [long.killed]),
        (f"{SHORT_ENTRIES:,} entries, files in the page cache", short.warm),
    ):
        begun = spread([start.start_ms for start in starts], "ms")
        lead_ms = [start.lead_ms for start in starts]
        lines.append(
            Line(
                f"its own vote is on disk and it leads; {what}",
                f"{spread(lead_ms, 'ms')}; `Raft.start` returned at {begun}",
                f"≤ {VOTE_MS_GOAL / 1e3:g} s",
                statistics.median(lead_ms) <= VOTE_MS_GOAL,
                {"starts": [vars(start) for start in starts]},
            )
        )
    return lines


def _read_line(long: _Log, short: _Log) -> Line:
    read = [start.start_read_bytes for start in (*long.warm, *long.cold)]
    read_short = [start.start_read_bytes for start in (*short.warm, *short.cold)]
    share = statistics.median(read) / long.size_bytes
    return Line(
        "read by the start: no scan",
        f"{spread([each / 1024 for each in read], 'KiB')}, {share:.2%} of"
        f" {long.size_bytes / (1 << 20):.0f} MiB;"
        f" with {SHORT_ENTRIES:,} entries {spread([each / 1024 for each in read_short], 'KiB')}",
        f"≤ {READ_SHARE_GOAL:.0%} of the file",
        share <= READ_SHARE_GOAL,
        {"read_bytes": read, "read_short_bytes": read_short, "size_bytes": long.size_bytes},
    )


def _replay_lines(long: _Log, short: _Log) -> Sequence[Line]:
    lines: list[Line] = []
    for what, starts, goal in (
        ("files in the page cache", long.warm, REPLAY_GOAL),
        ("files not in the page cache", long.cold, REPLAY_GOAL),
        (f"of {SHORT_ENTRIES:,} entries, files in the page cache", short.warm, None),
    ):
        rates = [start.replay_a_second for start in starts]
        lines.append(
            Line(
                f"replay into a counter, entries/s; {what}",
                spread([rate / 1e3 for rate in rates], "k/s"),
                "" if goal is None else f"≥ {goal / 1e3:g} k/s",
                None if goal is None else statistics.median(rates) >= goal,
                {"replayed_a_second": rates},
            )
        )
    return lines


def _memory_lines(long: _Log, short: _Log) -> Sequence[Line]:
    most = [start.rss_max_bytes for start in (*long.warm, *long.cold)]
    most_short = [start.rss_max_bytes for start in (*short.warm, *short.cold)]
    growth = statistics.median(most) / statistics.median(most_short)
    after = [start.rss_bytes for start in (*long.warm, *long.cold)]
    return (
        Line(
            f"memory at its most / with {SHORT_ENTRIES:,} entries",
            f"{growth:.3f} ({_mib(most)} and {_mib(most_short)})",
            f"≤ {GROWTH_GOAL:g}",
            growth <= GROWTH_GOAL,
            {"rss_max_bytes": most, "rss_max_short_bytes": most_short},
        ),
        Line("memory behind the replay", _mib(after), data={"rss_bytes": after}),
    )


def _mib(values_bytes: Sequence[int]) -> str:
    return spread([each / (1 << 20) for each in values_bytes], "MiB")


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [*PROGRAM, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PROCESS_SECONDS,
    )
    return done.stdout


def _evict(directory: Path) -> None:
    """Throw what is clean of these files out of the page cache; all of it is, once synced."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


if __name__ == "__main__":
    main(measure)
