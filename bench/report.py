"""What the pairs gave, as JSON, as a Markdown table, and as a plot."""

from __future__ import annotations

import importlib
import json
import platform
import sqlite3
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.figures.figure import Figure
from bench.pairs import Comparison, Run, median


def environment() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("raft-http", "msgpack", "uvicorn", "uvloop")},
    }


@dataclass(frozen=True)
class Section:
    """One title of the report: as Markdown, and as data."""

    title: str
    markdown: str
    data: dict[str, Any]


def rates(title: str, rows: Sequence[Comparison], tail_goal: float | None = None) -> Section:
    """A table of one comparison: the ratio in bold, what fell short marked.

    `tail_goal` is the most that p99 may be of p50, with 64 clients.
    """
    lines = [f"### {title}", ""]
    lines.append(f"| clients | {rows[0].ours} /s | {rows[0].peer} /s | ratio | each pair | goal |")
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        goal = "" if row.goal is None else f"≥ {row.goal:g}"
        short = " (short)" if row.goal is not None and row.ratio < row.goal else ""
        each = " ".join(f"{ratio:.2f}" for ratio in row.ratios)
        lines.append(
            f"| {row.load.clients} | {_rates(row.runs_ours)} | {_rates(row.runs_peer)}"
            f" | **{row.ratio:.2f}**{short} | {each} | {goal} |"
        )
    lines += ["", _tails(rows, tail_goal), "", _costs(rows)]
    return Section(title, "\n".join(lines) + "\n", {"rows": [row.as_json() for row in rows]})


def figure(name: str, found: Figure) -> Section:
    """One of `bench/figures`."""
    return Section(name, found.markdown(), asdict(found))


def missing(title: str, why: str) -> Section:
    """What was not measured is named."""
    text = f"### {title}\n\nNot measured: {why}.\n"
    return Section(title, text, {"missing": why})


def _tails(rows: Sequence[Comparison], goal: float | None) -> str:
    """How far the slowest are from the median."""
    parts: list[str] = []
    for row in rows:
        tails = [run.sample.p99_ms / run.sample.p50_ms for run in row.runs_ours]
        peers = [run.sample.p99_ms / run.sample.p50_ms for run in row.runs_peer]
        tail = statistics.median(tails)
        text = f"{row.load.clients}: {tail:.1f} (the peer's {statistics.median(peers):.1f})"
        if goal is not None and row.load.clients == 64:
            text += f", goal ≤ {goal:g}" + (" (short)" if tail > goal else "")
        parts.append(text)
    return "p99 / p50 by number of clients: " + "; ".join(parts) + "."


def _costs(rows: Sequence[Comparison]) -> str:
    """What a node used under the greatest load, and what others used meanwhile."""
    row = rows[-1]
    parts: list[str] = []
    for name, runs in ((row.ours, row.runs_ours), (row.peer, row.runs_peer)):
        cores = [statistics.median(run.cpu_cores[at] for run in runs) for at in range(3)]
        mib = [statistics.median(run.rss_bytes[at] for run in runs) / 2**20 for at in range(3)]
        parts.append(
            f"{name} {' '.join(f'{each:.2f}' for each in cores)} cores,"
            f" {' '.join(f'{each:.0f}' for each in mib)} MiB"
        )
    outside = statistics.median(run.outside_cores for run in (*row.runs_ours, *row.runs_peer))
    return (
        f"With {row.load.clients} clients, the leader first: {'; '.join(parts)}."
        f" Everything else on the machine, the load generator included: {outside:.2f} cores."
    )


def _rates(runs: Sequence[Run]) -> str:
    rates = [run.sample.commits_a_second for run in runs]
    p50 = statistics.median(run.sample.p50_ms for run in runs)
    p99 = statistics.median(run.sample.p99_ms for run in runs)
    return (
        f"{_short(median(runs))} ({_short(min(rates))}-{_short(max(rates))};"
        f" p50 {p50:.2g} ms, p99 {p99:.2g} ms)"
    )


def _short(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"


class Sections:
    """The report in the making.

    Args:
        directory: where the files are.
        titles: all there can be, in order.
        keep: leave what is not measured anew as the files have it.
    """

    def __init__(self, directory: Path, titles: Sequence[str], *, keep: bool) -> None:
        self._directory = directory
        self._titles = titles
        self._found: dict[str, Section] = {}
        path = directory / "results.json"
        if keep and path.exists():
            for each in json.loads(path.read_text())["sections"]:
                self._found[each["title"]] = Section(**each)

    def add(self, section: Section) -> None:
        """One more; it is shown."""
        self._found[section.title] = section
        print(section.markdown, flush=True)

    def write(self) -> None:
        """Write `results.json`, `results.md` and `results.svg`."""
        found = [self._found[title] for title in self._titles if title in self._found]
        data = {"environment": environment(), "sections": [asdict(each) for each in found]}
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "results.json").write_text(json.dumps(data, indent=1) + "\n")
        text = "\n".join(each.markdown for each in found)
        (self._directory / "results.md").write_text(f"{_environment_line()}\n\n{text}")
        try:
            plot(found, self._directory / "results.svg")
        except ImportError:
            print("no plot: matplotlib is not installed", file=sys.stderr)


def _environment_line() -> str:
    return "Measured with " + ", ".join(f"{name} {of}" for name, of in environment().items()) + "."


def plot(sections: Sequence[Section], path: Path) -> None:
    """Bars of ours / peer on a logarithmic axis; 1 is the peer's own rate."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    rows = [row for section in sections for row in section.data.get("rows", ())]
    labels = [f"{row['title']}, {row['load']['clients']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    errors = [
        [row["ratio"] - min(*row["ratios"], row["ratio"]) for row in rows],
        [max(*row["ratios"], row["ratio"]) - row["ratio"] for row in rows],
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axes.barh(labels, ratios, xerr=errors, color="#4477aa", ecolor="#444444")
    goals = [(at, row["goal"]) for at, row in enumerate(rows) if row["goal"] is not None]
    axes.plot([goal for _, goal in goals], [at for at, _ in goals], "|", color="#cc3311", ms=14)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("commits a second, ratio to the peer (red: the goal)")
    axes.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})
