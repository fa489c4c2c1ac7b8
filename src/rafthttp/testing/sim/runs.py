"""One seed, or many: what they did, and which failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rafthttp.testing.sim.cluster import Cluster
from rafthttp.testing.sim.faults import Faults

# Events of the first phase: about one and a half simulated seconds, fifteen election timeouts.
EVENTS: Final = 1000


class Failure(NamedTuple):
    """A seed that broke a property; `simulate_core(seed)` breaks it again."""

    seed: int
    text: str


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

    def add(self, cluster: Cluster) -> None:
        """Count one run."""
        world, checks = cluster.world, cluster.checks
        self.runs += 1
        self.events += world.events
        self.simulated_ns += world.now_ns
        self.committed += checks.states.committed_index
        self.acknowledged += len(cluster.clients.acknowledged)
        self.operations += len(cluster.clients.history)
        self.terms += checks.bounded.terms
        self.digest = world.digest
        self.seen.update(world.seen)


def simulate_core(seed: int, faults: Faults | None = None, *, events: int = EVENTS) -> Report:
    """Run one history of the core. Without `faults` the seed picks them (swarm testing).

    Raises:
        AssertionError: a property is broken; the text names it, and the seed.
    """
    report = Report()
    cluster = Cluster(seed, faults)
    try:
        cluster.run(events)
    except (AssertionError, IndexError, KeyError) as error:
        # Index and key errors too: a broken core hands out what is in no log.
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    report.add(cluster)
    return report


def simulate_seeds(seeds: Iterable[int], *, events: int = EVENTS) -> Report:
    """Run many seeds, failing ones included, and add them up."""
    report = Report()
    for seed in seeds:
        cluster = Cluster(seed)
        try:
            cluster.run(events)
        except (AssertionError, IndexError, KeyError) as error:
            report.failures.append(Failure(seed, f"{type(error).__name__}: {error}"))
        report.add(cluster)
    return report
