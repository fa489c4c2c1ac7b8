"""`rafthttp simulate`: the core on a virtual world, seed after seed, until one fails.

Knows how to show it; `rafthttp.testing.sim` knows the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rafthttp.cli.output import CommandFailedError, note, out
from rafthttp.testing.sim import Failure, Report, shrink_seed, simulate_many

# How often a line of progress appears where there is no terminal to draw a bar on.
_LINE_SECONDS: Final = 2.0
_SEEDS_DEFAULT: Final = 1000
# Shrinking takes some ten seconds each; who has so many failures looks at the first.
_SHRUNK_MAX: Final = 3


def simulate(
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", metavar="N", min=1, help="How many seeds. [default: 1000]"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", min=0.0, help="Begin none after so long."),
    ] = None,
    first: Annotated[int, typer.Option("--first", metavar="SEED", help="The first seed.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes at a time.")] = 2,
) -> None:
    """Try out the consensus core on simulated networks, disks and clocks.

    Every seed is one history of three to five servers, with faults that the seed picks. A seed that
    breaks a property of Raft is printed with the smallest schedule that still breaks it. The exit
    code is 1 where there is one.
    """
    if seeds is None and minutes is None:
        seeds = _SEEDS_DEFAULT
    report = Report()
    progress = _SimulationProgress(seeds, minutes, Console(stderr=True))
    with progress.shown():
        for part in simulate_many(
            first, seeds, jobs=jobs, seconds_max=None if minutes is None else minutes * 60
        ):
            report.merge(part)
            progress(report)
    out(progress.summary(report))
    if report.failures:
        _tell(sorted(report.failures))
        raise CommandFailedError(f"{len(report.failures)} of {report.runs} seeds failed")


def _tell(failures: list[Failure]) -> None:
    for at, failure in enumerate(failures):
        out()
        out(f"seed {failure.seed}: {failure.text}")
        out(f"  as found: simulate_core({failure.seed})")
        if at < _SHRUNK_MAX:
            note(f"shrinking seed {failure.seed} ...")
            small = shrink_seed(failure.seed)
            out(f"  shrunk, after {small.tries} runs: {small.outcome.text}")
            for deed in small.outcome.deeds:
                out(f"    {deed}")
            out("  a test in one line (from rafthttp.testing.sim import Faults, simulate_core):")
            out(f"    {small.schedule.test}")


class _SimulationProgress:
    """A bar on a terminal, a line every two seconds elsewhere."""

    def __init__(self, seeds: int | None, minutes: float | None, console: Console) -> None:
        self._seeds = seeds
        self._began = time.monotonic()
        self._next_line = self._began + _LINE_SECONDS
        self._progress: Progress | None = None
        self._task: TaskID
        if console.is_terminal:
            self._progress = Progress(
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            # Where time alone ends it, the bar shows time.
            total = None if minutes is None else minutes * 60
            self._task = self._progress.add_task("", total=total if seeds is None else seeds)

    def __call__(self, report: Report) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._progress is not None:
            done = now - self._began if self._seeds is None else report.runs
            self._progress.update(self._task, completed=done, description=self.summary(report))
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            note(self.summary(report))

    def summary(self, report: Report) -> str:
        """How far it is, in one line."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        of = "" if self._seeds is None else f" of {self._seeds}"
        return (
            f"{report.runs}{of} seeds, {report.runs / seconds:.0f} seeds/s,"
            f" {report.events} events, {len(report.failures)} failures"
        )

    @contextmanager
    def shown(self) -> Generator[None]:
        """Draw while the block runs."""
        if self._progress is None:
            yield
            return
        with self._progress:
            yield
