"""Commits/s as the cluster, its values and its log grow: `growth`. Writes `bench/growth.svg`.

    python -m bench.figures.growth [--quick]

Members and values: clusters of 3, 5 and 7 processes on this machine under 64 clients, with values
of 64 B to 256 KiB, with fsync; ours and Go's (with boltdb) in turn, each idle while the other one
works. All members share the cores, so a commit costs each of them its part: a cliff
is a step to more members by which commits/s times members fall, or a step to larger values by which
bytes/s fall, by more than a fifth.

The log: clusters of three whose logs were written to their full length by the stores' own calls
(`bench.peers.growth_node`), and a fresh one beside each, in turn. A cliff is a length at which
commits/s are below four fifths of the fresh one's.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from bench.figures.figure import Figure, Line, main, spread
from bench.peers.base import Cluster, LineCluster, LineProcess, Load, MissingPeerError, free_ports
from bench.peers.go import BINARY, GoCluster
from bench.peers.ours import NODE

CLIENTS: Final = 64
LOG_SIZE_BYTES: Final = 64
KEPT_GOAL: Final = 0.8
WARM_SECONDS: Final = 0.3
# A store in memory holds all it is given: of large values, or of ten million, that is what one
# would measure.
STORES: Final = ("fsync",)
PLOT: Final = Path(__file__).parents[1] / "growth.svg"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    stores: Sequence[str]
    members: Sequence[int]
    sizes_bytes: Sequence[int]
    lengths: Sequence[int]
    log_stores: Sequence[str]
    pairs: int
    seconds: float


FULL: Final = Plan(
    STORES, (3, 5, 7), (64, 1 << 10, 16 << 10, 256 << 10), (10**6, 5 * 10**6, 10**7), STORES, 3, 1.2
)
QUICK: Final = Plan(("fsync",), (3, 5), (64, 16 << 10), (300_000,), ("fsync",), 1, 0.4)


@dataclass
class Cell:
    """One store, number of members and size of values; rates of each run."""

    store: str
    members: int
    size_bytes: int
    ours: list[float] = field(default_factory=list[float])
    go: list[float] = field(default_factory=list[float])
    ours_p99_ms: list[float] = field(default_factory=list[float])
    go_p99_ms: list[float] = field(default_factory=list[float])


@dataclass
class Length:
    """One store and length of the log; rates with it, and of a fresh cluster beside it."""

    store: str
    entries: int
    grown: list[float] = field(default_factory=list[float])
    fresh: list[float] = field(default_factory=list[float])

    @property
    def ratios(self) -> list[float]:
        """Grown / fresh, pair by pair."""
        return [grown / fresh for grown, fresh in zip(self.grown, self.fresh, strict=True)]


def measure(quick: bool, directory: Path | None) -> Figure:
    """The figure."""
    plan = QUICK if quick else FULL
    cells: list[Cell] = []
    missing: list[str] = []
    for store in plan.stores:
        for members in plan.members:
            cells += _cells(store, members, plan, directory, missing)
    lengths: list[Length] = []
    for store in plan.log_stores:
        lengths += _lengths(store, plan, directory)
    lines = [*_member_lines(cells), *_size_lines(cells), *_length_lines(lengths)]
    try:
        _plot(cells, lengths, PLOT)
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    return Figure(f"Growth, {CLIENTS} clients", lines, missing)


# -- members and values


def _cells(
    store: str, members: int, plan: Plan, directory: Path | None, missing: list[str]
) -> Sequence[Cell]:
    cells = [Cell(store, members, size) for size in plan.sizes_bytes]
    with ExitStack() as stack:
        files = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="bench-"))
        )
        data = files if store == "fsync" else None
        begun = _begun(
            stack,
            partial(_start_ours, members, data and data / "ours"),
            partial(_start_go, members, data and data / "go"),
        )
        ours, go = begun[0].result(), None
        try:
            go = begun[1].result()
        except (MissingPeerError, TimeoutError) as error:
            missing.append(f"Go with {members} members, {store}: {error}")
        warm = Load(CLIENTS, WARM_SECONDS, plan.sizes_bytes[0])
        for cluster in (ours, go):
            if cluster is not None:
                cluster.bench(warm)
        for _ in range(plan.pairs):
            for cell in cells:
                load = Load(CLIENTS, plan.seconds, cell.size_bytes)
                for name, cluster, rates, p99_ms in (
                    ("ours", ours, cell.ours, cell.ours_p99_ms),
                    ("Go", go, cell.go, cell.go_p99_ms),
                ):
                    try:
                        if cluster is not None:
                            _run(cluster, load, rates, p99_ms)
                    except (OSError, RuntimeError) as error:
                        what = f"{name} with {members} members, {store}, {_size(cell.size_bytes)}"
                        missing.append(f"{what}: {error}")
    return [cell for cell in cells if cell.ours]


def _run(cluster: Cluster, load: Load, rates: list[float], p99_ms: list[float]) -> None:
    sample = cluster.bench(load)
    rates.append(sample.commits_a_second)
    p99_ms.append(sample.p99_ms)


def _start_ours(members: int, directory: Path | None) -> LineCluster:
    ports = free_ports(members)
    commands: list[list[str]] = []
    for number, port in enumerate(ports):
        command = [sys.executable, str(NODE), f"n{number}", f"127.0.0.1:{port}", "--uvloop"]
        command += ["--bootstrap"] if number == 0 else ["--join", f"http://127.0.0.1:{ports[0]}"]
        if directory is not None:
            command += ["--data", str(directory / f"n{number}")]
        commands.append(command)
    return _started(commands)


def _begun(stack: ExitStack, *starts: Callable[[], Cluster]) -> Sequence[Future[Cluster]]:
    """Several clusters at a time; those that have started end with the stack."""
    with ThreadPoolExecutor(len(starts)) as pool:
        futures = [pool.submit(start) for start in starts]
    for future in futures:
        if future.exception() is None:
            stack.callback(future.result().stop)
    return futures


def _started(commands: Sequence[Sequence[str]]) -> LineCluster:
    """All of them, once they lead and follow; none is left where that fails."""
    with ExitStack() as stack:
        processes: list[LineProcess] = []
        for command in commands:
            processes.append(LineProcess(command))
            stack.callback(processes[-1].stop)
        for process in processes:  # each answers once its log is there
            process.ask({})
        cluster = LineCluster(processes)
        stack.pop_all()
        return cluster


def _start_go(members: int, directory: Path | None) -> GoCluster:
    if not BINARY.exists():
        raise MissingPeerError("the Go node is not built: make interop")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(members)]
    commands: list[list[str]] = []
    for number, address in enumerate(addresses):
        command = [str(BINARY), "-id", f"n{number}", "-address", address, "-count"]
        command += ["-log-level", "ERROR"]
        command += ["-bootstrap"] if number == 0 else ["-join", addresses[0]]
        if directory is not None:
            command += ["-data-dir", str(directory / f"n{number}")]
        commands.append(command)
    return GoCluster(addresses, commands)


# -- the log


def _lengths(store: str, plan: Plan, directory: Path | None) -> Sequence[Length]:
    """Every length in turn, the data of the last one growing into the next."""
    found = [Length(store, entries) for entries in plan.lengths]
    load = Load(CLIENTS, plan.seconds, LOG_SIZE_BYTES)
    warm = Load(CLIENTS, WARM_SECONDS, LOG_SIZE_BYTES)
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        for length in found:
            with ExitStack() as stack:
                data = Path(name) if store == "fsync" else None
                begun = _begun(
                    stack,
                    partial(_start_grown, length.entries, data and data / "grown"),
                    partial(_start_grown, 1, data and data / f"fresh{length.entries}"),
                )
                grown, fresh = (each.result() for each in begun)
                for cluster in (grown, fresh):
                    cluster.bench(warm)
                for _ in range(plan.pairs):
                    length.fresh.append(fresh.bench(load).commits_a_second)
                    length.grown.append(grown.bench(load).commits_a_second)
    return found


def _start_grown(entries: int, directory: Path | None) -> LineCluster:
    servers = [f"n{number}=127.0.0.1:{port}" for number, port in enumerate(free_ports(3))]
    commands: list[list[str]] = []
    for server in servers:
        server_id, _, address = server.partition("=")
        command = [sys.executable, "-m", "bench.peers.growth_node", server_id, address]
        command += [f"--server={each}" for each in servers]
        command += ["--entries", str(entries), "--uvloop"]
        if directory is not None:
            command += ["--data", str(directory / server_id)]
        commands.append(command)
    return _started(commands)


# -- what is said of it


def _member_lines(cells: Sequence[Cell]) -> Sequence[Line]:
    """A line a store and size: the rate by the number of members."""
    lines: list[Line] = []
    for store, size in sorted({(cell.store, cell.size_bytes) for cell in cells}):
        row = [cell for cell in cells if (cell.store, cell.size_bytes) == (store, size)]
        work = [statistics.median(cell.ours) * cell.members for cell in row]
        kept = [after / before for before, after in pairwise(work)]
        measured = "; ".join(_versus(cell) for cell in row)
        lines.append(
            Line(
                f"{store}, {_size(size)}, at {_listed([cell.members for cell in row])} members:"
                " commits/s",
                measured,
                f"each step keeps ≥ {KEPT_GOAL:g} of commits/s x members",
                min(kept, default=1.0) >= KEPT_GOAL,
                {"cells": [vars(cell) for cell in row], "kept": kept},
            )
        )
    return lines


def _versus(cell: Cell) -> str:
    ours = spread(cell.ours, "/s")
    if not cell.go:
        return ours
    ratio = statistics.median(cell.ours) / statistics.median(cell.go)
    return f"{ours}, {ratio:.2f} x Go's"


def _size_lines(cells: Sequence[Cell]) -> Sequence[Line]:
    """A line a store and number of members: the bytes by the size of a value."""
    lines: list[Line] = []
    for store, members in sorted({(cell.store, cell.members) for cell in cells}):
        row = [cell for cell in cells if (cell.store, cell.members) == (store, members)]
        mib = [statistics.median(cell.ours) * cell.size_bytes / (1 << 20) for cell in row]
        kept = [after / before for before, after in pairwise(mib)]
        sizes = ", ".join(_size(cell.size_bytes) for cell in row)
        lines.append(
            Line(
                f"{store}, {members} members, values of {sizes}: MiB/s committed",
                ", ".join(f"{each:.3g}" for each in mib),
                f"each step keeps ≥ {KEPT_GOAL:g}",
                min(kept, default=1.0) >= KEPT_GOAL,
                {"mib_a_second": mib, "kept": kept},
            )
        )
    return lines


def _length_lines(lengths: Sequence[Length]) -> Sequence[Line]:
    return [
        Line(
            f"{length.store}, 3 members, a log of {length.entries:,}: commits/s / fresh cluster's",
            f"{spread(length.ratios, '')}; {spread(length.grown, '/s')}"
            f" and {spread(length.fresh, '/s')}",
            f"≥ {KEPT_GOAL:g}",
            statistics.median(length.ratios) >= KEPT_GOAL,
            {"ratios": length.ratios, **vars(length)},
        )
        for length in lengths
    ]


def _size(size_bytes: int) -> str:
    return f"{size_bytes >> 10} KiB" if size_bytes >= 1 << 10 else f"{size_bytes} B"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _plot(cells: Sequence[Cell], lengths: Sequence[Length], path: Path) -> None:
    """Rates by members and by size, in logarithms, and by length: a cliff is a bend downwards."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    smallest = min(cell.size_bytes for cell in cells)
    fewest = min(cell.members for cell in cells)
    for store, colour in zip(STORES, ("#4477aa",), strict=True):
        rows = [cell for cell in cells if cell.store == store]
        by_members = [(c.members, c) for c in rows if c.size_bytes == smallest]
        by_size = [(c.size_bytes, c) for c in rows if c.members == fewest]
        for axis, row in ((axes[0], by_members), (axes[1], by_size)):
            for kind, style, name in (("ours", "o-", "ours"), ("go", "s:", "Go")):
                known = [(x, getattr(c, kind)) for x, c in row if getattr(c, kind)]
                _curve(axis, known, f"{name}, {store}", style, colour)
        _curve(
            axes[2],
            [(length.entries / 1e6, length.grown) for length in lengths if length.store == store],
            f"ours, {store}",
            "o-",
            colour,
        )
        _curve(
            axes[2],
            [(length.entries / 1e6, length.fresh) for length in lengths if length.store == store],
            f"a fresh log beside it, {store}",
            "x:",
            colour,
        )
    labels = (
        f"members, {_size(smallest)}",
        f"bytes a value, {fewest} members",
        "million entries held",
    )
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel(label)
        axis.set_ylabel(f"commits a second, {CLIENTS} clients")
        axis.legend(fontsize="small")
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[0].set_xticks(sorted({cell.members for cell in cells}))
    axes[1].set_xscale("log", base=2)
    axes[2].set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})


def _curve(
    axis: Any, points: Sequence[tuple[float, Sequence[float]]], label: str, style: str, colour: str
) -> None:
    if not points:
        return
    middle = [statistics.median(rates) for _, rates in points]
    low = [at - min(rates) for at, (_, rates) in zip(middle, points, strict=True)]
    high = [max(rates) - at for at, (_, rates) in zip(middle, points, strict=True)]
    axis.errorbar([x for x, _ in points], middle, [low, high], fmt=style, color=colour, label=label)


if __name__ == "__main__":
    main(measure)
