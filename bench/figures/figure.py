"""What a figure came to: lines with what was measured, and the goal beside it.

A benchmark never asserts: a line that falls short says so, and no more.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        what: what was measured.
        measured: the value with its unit, and the extremes.
        goal: what it should be; empty where there is no goal.
        met: whether it is; None where there is no goal, or nothing to compare with.
        data: the raw numbers, for `results.json`; names end in their units.
    """

    what: str
    measured: str
    goal: str = ""
    met: bool | None = None
    data: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Figure:
    """Lines under one title. `missing` names peers that could not be had."""

    title: str
    lines: Sequence[Line]
    missing: Sequence[str] = ()

    def markdown(self) -> str:
        """A table; what fell short is marked."""
        rows = [f"### {self.title}", "", "| | measured | goal |", "|---|---|---|"]
        for line in self.lines:
            short = " (short)" if line.met is False else ""
            rows.append(f"| {line.what} | {line.measured}{short} | {line.goal} |")
        rows += [f"\nNot measured: {text}." for text in self.missing]
        return "\n".join(rows) + "\n"


Measure = Callable[[bool, Path | None], Figure]


def spread(values: Sequence[float], unit: str, digits: int = 3) -> str:
    """Median, and the extremes where there are several values."""
    median = f"{statistics.median(values):.{digits}g} {unit}".strip()
    if len(values) < 2:
        return median
    return f"{median} ({min(values):.{digits}g}-{max(values):.{digits}g}, n={len(values)})"


def main(measure: Measure) -> None:
    """The command line of a figure that runs alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--directory", type=Path, help="where the clusters keep their files")
    given = parser.parse_args()
    print(measure(given.quick, given.directory).markdown())
