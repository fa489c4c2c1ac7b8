"""What the pairs gave, as JSON, as a Markdown table, and as a plot."""

from __future__ import annotations

import importlib
import json
import platform
import sqlite3
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.pairs import Comparison, Run, median


def environment() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.release(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("raft-http", "msgpack", "uvicorn", "uvloop")},
    }


def markdown(rows: Sequence[Comparison], missing: Sequence[str]) -> str:
    """A table a title, the ratio in bold, what fell short marked."""
    lines: list[str] = []
    title = ""
    for row in rows:
        if row.title != title:
            title = row.title
            lines += ["", f"### {title}", ""]
            lines.append(f"| clients | {row.ours} /s | {row.peer} /s | ratio | each pair | goal |")
            lines.append("|---|---|---|---|---|---|")
        goal = "" if row.goal is None else f"≥ {row.goal:g}"
        short = " (short)" if row.goal is not None and row.ratio < row.goal else ""
        each = " ".join(f"{ratio:.2f}" for ratio in row.ratios)
        lines.append(
            f"| {row.load.clients} | {_rates(row.runs_ours)} | {_rates(row.runs_peer)}"
            f" | **{row.ratio:.2f}**{short} | {each} | {goal} |"
        )
    lines += [f"\nNot measured: {text}." for text in missing]
    return "\n".join(lines).strip() + "\n"


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


def write(directory: Path, rows: Sequence[Comparison], missing: Sequence[str]) -> None:
    """`results.json`, `results.md` and `results.svg`."""
    found = {
        "environment": environment(),
        "missing": list(missing),
        "rows": [row.as_json() for row in rows],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (directory / "results.md").write_text(markdown(rows, missing))
    try:
        plot(rows, directory / "results.svg")
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


def plot(rows: Sequence[Comparison], path: Path) -> None:
    """Bars of ours / peer on a logarithmic axis, one group a title; 1 is the peer's own rate."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    labels = [f"{row.title}, {row.load.clients}" for row in rows]
    ratios = [row.ratio for row in rows]
    errors = [
        [row.ratio - min(*row.ratios, row.ratio) for row in rows],
        [max(*row.ratios, row.ratio) - row.ratio for row in rows],
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axes.barh(labels, ratios, xerr=errors, color="#4477aa", ecolor="#444444")
    goals = [(at, row.goal) for at, row in enumerate(rows) if row.goal is not None]
    axes.plot([goal for _, goal in goals], [at for at, _ in goals], "|", color="#cc3311", ms=14)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("commits a second, ratio to the peer (red: the goal)")
    axes.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})
