"""Two makes in turn, A B A B: medians, extremes, and the ratio pair by pair.

The machine is never quiet, so only what ran side by side is compared. Records CPU and memory a
node, and the load that others put on the machine meanwhile. Never asserts a time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.base import Cluster, Load, Make, Sample, cpu_seconds, rss_bytes


@dataclass(frozen=True)
class Run:
    """One sample with what it cost."""

    sample: Sample
    cpu_cores: tuple[float, ...]
    rss_bytes: tuple[int, ...]
    outside_cores: float


@dataclass
class Comparison:
    """One row: ours against one peer under one load. `goal` is a ratio, None where none is set."""

    title: str
    ours: str
    peer: str
    load: Load
    goal: float | None
    runs_ours: list[Run] = field(default_factory=list[Run])
    runs_peer: list[Run] = field(default_factory=list[Run])

    @property
    def ratios(self) -> list[float]:
        """Ours / peer, pair by pair."""
        return [
            ours.sample.commits_a_second / peer.sample.commits_a_second
            for ours, peer in zip(self.runs_ours, self.runs_peer, strict=True)
        ]

    @property
    def ratio(self) -> float:
        """Ratio of the medians."""
        return median(self.runs_ours) / median(self.runs_peer)

    def as_json(self) -> dict[str, Any]:
        """All there is to know about the row."""
        return asdict(self) | {"ratios": self.ratios, "ratio": self.ratio}


def median(runs: Sequence[Run]) -> float:
    """Median rate."""
    return statistics.median(run.sample.commits_a_second for run in runs)


@contextmanager
def running(make: Make, directory: Path | None) -> Generator[Cluster]:
    """Three processes of a make, and their files, for a while."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        cluster = make.start(Path(name))
        try:
            yield cluster
        finally:
            cluster.stop()


def measure(cluster: Cluster, load: Load) -> Run:
    """One run, with the CPU and memory of each node and what others used meanwhile."""
    pids = cluster.pids()
    before, all_before = [cpu_seconds(pid) for pid in pids], _busy_seconds()
    begin = time.perf_counter()
    sample = cluster.bench(load)
    took = time.perf_counter() - begin
    used = [cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    outside = (_busy_seconds() - all_before - sum(used)) / took
    return Run(
        sample,
        tuple(seconds / took for seconds in used),
        tuple(rss_bytes(pid) for pid in pids),
        max(0.0, outside),
    )


def compare(
    title: str,
    ours: Make,
    peer: Make,
    loads: Sequence[tuple[Load, float | None]],
    pairs: int,
    directory: Path | None,
) -> list[Comparison]:
    """Run both makes `pairs` times in turn, under each load; fresh clusters each time.

    Raises:
        MissingPeerError: the peer cannot be had here.
    """
    rows = [Comparison(title, ours.name, peer.name, load, goal) for load, goal in loads]
    for _ in range(pairs):
        for make in (ours, peer):
            with running(make, directory) as cluster:
                for row in rows:
                    run = measure(cluster, row.load)
                    (row.runs_ours if make is ours else row.runs_peer).append(run)
    return rows


def _busy_seconds() -> float:
    """CPU time of the whole machine, all cores, without idling and waiting."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")
