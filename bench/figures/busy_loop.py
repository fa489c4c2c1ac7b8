"""Commits beside an application that keeps the leader's event loop busy: `busy_loop`.

Three processes of ours. In the leader's, on the very loop the node runs on, callbacks of 1 ms of
pure Python follow each other back to back; 512 clients there apply 64 B commands. Alone and beside
it in turn, in one cluster: the ratio of the rates, pair by pair. A term that grew, or a command
that failed, is a lost leadership. The application's part is the time its callbacks would need
alone, in percent of the time that passed.

With all three up, two quick followers make a quorum, and the leader's own disk is waited for by
nobody; so once more with one of them down.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.figures.figure import Figure, Line, main, spread
from bench.peers import ours
from bench.peers.base import LineCluster

CLIENTS: Final = 512
SIZE_BYTES: Final = 64
SPIN_MS: Final = 1.0
GOAL: Final = 0.25
PROGRAM: Final = ("-m", "bench.peers.busy_node")


class Case(NamedTuple):
    """A kind of cluster."""

    name: str
    fsync: bool
    stops_follower: bool = False


CASES: Final = (
    Case("memory", fsync=False),
    Case("fsync", fsync=True),
    Case("fsync, one follower down", fsync=True, stops_follower=True),
)


@dataclass(frozen=True)
class Run:
    """One load. `spins` is how many callbacks of the application ran meanwhile."""

    commits_a_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    application_percent: float
    term: int
    leads: bool


def measure(quick: bool, directory: Path | None) -> Figure:
    """Both stores, and where the leader's own disk has to be waited for."""
    pairs, seconds = (1, 0.9) if quick else (3, 4.0)
    lines: list[Line] = []
    for case in CASES:
        lines += _case(case, pairs, seconds, directory)
    return Figure(f"A busy event loop, {CLIENTS} clients, {SIZE_BYTES} B", lines)


def _case(case: Case, pairs: int, seconds: float, directory: Path | None) -> Sequence[Line]:
    make = ours.make(case.name, fsync=case.fsync, program=PROGRAM)
    alone: list[Run] = []
    beside: list[Run] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        cluster = make.start(Path(name))
        assert isinstance(cluster, LineCluster), "it is made of `busy_node` processes"
        try:
            if case.stops_follower:
                cluster.stop_last()
            _run(cluster, 0.0, min(seconds, 0.5))  # warm
            term = cluster.ask({})["term"]
            for _ in range(pairs):
                alone.append(_run(cluster, 0.0, seconds))
                beside.append(_run(cluster, SPIN_MS, seconds))
        finally:
            cluster.stop()
    return _lines(case.name, alone, beside, term)


def _run(cluster: LineCluster, spin_ms: float, seconds: float) -> Run:
    answer: dict[str, Any] = cluster.ask(
        {"clients": CLIENTS, "seconds": seconds, "size": SIZE_BYTES, "spin_ms": spin_ms}
    )
    took = answer["seconds"]
    return Run(
        answer["commits"] / took,
        answer["p50_ms"],
        answer["p99_ms"],
        answer["failed"],
        answer["spins"] * spin_ms / 10 / took,
        answer["term"],
        answer["leads"],
    )


def _lines(name: str, alone: Sequence[Run], beside: Sequence[Run], term: int) -> Sequence[Line]:
    rates = [run.commits_a_second for run in alone]
    busy_rates = [run.commits_a_second for run in beside]
    ratios = [busy / idle for busy, idle in zip(busy_rates, rates, strict=True)]
    ratio = sorted(ratios)[len(ratios) // 2]
    lost = max(run.term for run in (*alone, *beside)) - term
    failed = sum(run.failed for run in (*alone, *beside))
    kept = lost == 0 and failed == 0 and all(run.leads for run in beside)
    data = {"alone": [vars(run) for run in alone], "busy": [vars(run) for run in beside]}
    return (
        Line(
            f"{name}: rate beside the application / alone",
            spread(ratios, ""),
            f"≥ {GOAL:g}",
            ratio >= GOAL,
            {"ratios": ratios, **data},
        ),
        Line(f"{name}: commits/s alone", spread(rates, "/s")),
        Line(
            f"{name}: commits/s beside it",
            f"{spread(busy_rates, '/s')}; p50 {spread([run.p50_ms for run in beside], 'ms')},"
            f" p99 {spread([run.p99_ms for run in beside], 'ms')}",
        ),
        Line(
            f"{name}: the application's part of the loop",
            spread([run.application_percent for run in beside], "%"),
        ),
        Line(
            f"{name}: terms begun, commands failed",
            f"{lost}, {failed}",
            "0, 0",
            kept,
            {"terms_begun": lost, "failed": failed},
        ),
    )


if __name__ == "__main__":
    main(measure)
