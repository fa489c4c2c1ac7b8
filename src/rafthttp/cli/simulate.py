"""`rafthttp simulate`: the core, or whole servers, on a virtual world, seed after seed.

Knows how to show it; `rafthttp.testing.sim` and `rafthttp.testing.driversim` know the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, NamedTuple, Protocol

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


class _Counts(Protocol):
    """What both reports tell."""

    runs: int
    events: int
    failures: list[Failure]


class _Shrunk(NamedTuple):
    """What of a failure is told when it is small."""

    tries: int
    text: str
    deeds: Sequence[object]
    test: str


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
    driver: Annotated[
        bool,
        typer.Option("--driver", help="Whole servers: driver, transport and HTTP as well."),
    ] = False,
) -> None:
    """Try out the consensus core on simulated networks, disks and clocks.

    Every seed is one history of three to five servers, with faults that the seed picks. A seed that
    breaks a property of Raft is printed with the smallest schedule that still breaks it. The exit
    code is 1 where there is one.
    """
    if seeds is None and minutes is None:
        seeds = _SEEDS_DEFAULT
    seconds_max = None if minutes is None else minutes * 60
    progress = _SimulationProgress(seeds, minutes, Console(stderr=True))
    report: _Counts
    with progress.shown():
        if driver:
            # Here: other commands start sooner without it.
            from rafthttp.testing.driversim import DriverReport, simulate_driver_many

            report = servers = DriverReport()
            for few in simulate_driver_many(first, seeds, jobs=jobs, seconds_max=seconds_max):
                servers.merge(few)
                progress(servers)
        else:
            report = cores = Report()
            for part in simulate_many(first, seeds, jobs=jobs, seconds_max=seconds_max):
                cores.merge(part)
                progress(cores)
    out(progress.summary(report))
    if report.failures:
        _tell(sorted(report.failures), driver=driver)
        raise CommandFailedError(f"{len(report.failures)} of {report.runs} seeds failed")


def _tell(failures: Iterable[Failure], *, driver: bool) -> None:
    call, where = ("simulate_driver", "driversim") if driver else ("simulate_core", "sim")
    for at, failure in enumerate(failures):
        out()
        out(f"seed {failure.seed}: {failure.text}")
        out(f"  as found: {call}({failure.seed})")
        if at < _SHRUNK_MAX:
            note(f"shrinking seed {failure.seed} ...")
            try:
                small = _shrunk(failure.seed, driver=driver)
            except ValueError:
                out("  it did not fail again: something beside the seed decided")
                continue
            out(f"  shrunk, after {small.tries} runs: {small.text}")
            for deed in small.deeds:
                out(f"    {deed}")
            out(f"  a test in one line (from rafthttp.testing.{where} import Faults, {call}):")
            out(f"    {small.test}")


def _shrunk(seed: int, *, driver: bool) -> _Shrunk:
    """Raises ValueError where the seed does not fail."""
    if driver:
        from rafthttp.testing.driversim import shrink_driver_seed

        servers = shrink_driver_seed(seed)
        return _Shrunk(servers.tries, servers.text, (), servers.test)
    cores = shrink_seed(seed)
    return _Shrunk(cores.tries, cores.outcome.text, cores.outcome.deeds, cores.schedule.test)


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

    def __call__(self, report: _Counts) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._progress is not None:
            done = now - self._began if self._seeds is None else report.runs
            self._progress.update(self._task, completed=done, description=self.summary(report))
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            note(self.summary(report))

    def summary(self, report: _Counts) -> str:
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
