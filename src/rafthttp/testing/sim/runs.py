"""One seed, or many, on one core or on several: what they did, and which failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field
from typing import Final

from rafthttp.testing.many import Failure, run_many
from rafthttp.testing.sim.cluster import Cluster
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.schedule import EVENTS, Schedule, Shrunk, shrink_schedule

# Seeds of one piece of work for a process: about half a second.
_BATCH: Final = 25


@dataclass(slots=True)
class Report:
    """What one run, or many, did.

    Attributes:
        digest: of the whole history; equal for equal seeds, wherever they run. Of the last run.
        committed: entries committed.
        operations: requests of clients that ended, or whose outcome is unknown.
        seen: how often each fault and operation was done.
        failures: the seeds that failed.
    """

    runs: int = 0
    events: int = 0
    simulated_ns: int = 0
    committed: int = 0
    acknowledged: int = 0
    operations: int = 0
    terms: int = 0
    digest: int = 0
    seen: Counter[str] = field(default_factory=Counter[str])
    failures: list[Failure] = field(default_factory=list[Failure])

    def add(self, cluster: Cluster | None) -> None:
        """Count one run; None for one that never began."""
        self.runs += 1
        if cluster is None:
            return
        world, checks = cluster.world, cluster.checks
        self.events += world.events
        self.simulated_ns += world.now_ns
        self.committed += checks.states.committed_index
        self.acknowledged += len(cluster.clients.acknowledged)
        self.operations += len(cluster.clients.history)
        self.terms += checks.bounded.terms
        self.digest = world.digest
        self.seen.update(world.seen)

    def merge(self, other: Report) -> None:
        """Count all that another counted."""
        self.runs += other.runs
        self.events += other.events
        self.simulated_ns += other.simulated_ns
        self.committed += other.committed
        self.acknowledged += other.acknowledged
        self.operations += other.operations
        self.terms += other.terms
        self.digest = other.digest
        self.seen.update(other.seen)
        self.failures += other.failures


def simulate_core(
    seed: int,
    faults: Faults | None = None,
    *,
    events: int = EVENTS,
    servers: int | None = None,
    clients: int | None = None,
    skipped: Collection[str] = (),
) -> Report:
    """Run one history of the core. Without `faults` the seed picks them (swarm testing).

    `servers` and `clients` overrule the seed; `skipped` names single deeds to leave out, as a
    shrunk schedule does (`rafthttp simulate`).

    Raises:
        AssertionError: a property is broken; the text names it, and the seed.
    """
    report = Report()
    try:
        cluster = Cluster(seed, faults, servers=servers, clients=clients, skipped=skipped)
        cluster.run(events)
    except Exception as error:
        # Whatever a broken core raises: it may hand out what is in no log.
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    report.add(cluster)
    return report


def simulate_seeds(seeds: Iterable[int], *, events: int = EVENTS) -> Report:
    """Run many seeds, failing ones included, and add them up."""
    report = Report()
    for seed in seeds:
        cluster = None
        try:
            cluster = Cluster(seed)
            cluster.run(events)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other seeds go on
            report.failures.append(Failure(seed, f"{type(error).__name__}: {error}"))
        report.add(cluster)
    return report


def simulate_many(
    first: int,
    seeds: int | None,
    *,
    jobs: int = 1,
    seconds_max: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Report]:
    """Run `seeds` seeds from `first` on, in `jobs` processes; yields a report of each few.

    Args:
        first: the first seed.
        seeds: how many; None for as many as the time allows.
        jobs: processes; 1 for this one alone.
        seconds_max: none is begun after so long.
        clock: seconds.
    """
    return run_many(
        simulate_seeds,
        first,
        seeds,
        batch=_BATCH,
        jobs=jobs,
        seconds_max=seconds_max,
        clock=clock,
    )


def shrink_seed(seed: int) -> Shrunk:
    """The smallest schedule that breaks the property that a failing seed breaks.

    Raises:
        ValueError: the seed does not fail.
    """
    return shrink_schedule(Schedule(seed))
