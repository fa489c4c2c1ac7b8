"""One seed of whole servers, or many: what they did, which failed, and how little it takes."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rafthttp.testing.driversim.jobs import DEVICE
from rafthttp.testing.driversim.loop import virtual_loop
from rafthttp.testing.driversim.patches import determined
from rafthttp.testing.driversim.run import DriverCluster
from rafthttp.testing.many import Failure, run_many
from rafthttp.testing.shrink import shrink_items
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.schedule import property_of

_KINDS: Final = ("raft", "node")
# Seeds of one piece of work for a process: about a second.
_BATCH: Final = 5
# Runs for one shrinking: up to half a minute.
TRIES_MAX: Final = 100
# Where a candidate does not fail on its own seed, so many others are tried: what is left out
# changes everything after it.
_OTHER_SEEDS: Final = 3


@dataclass(slots=True)
class DriverReport:
    """What came of a run, or of many.

    Attributes:
        digest: of the whole history; equal for equal seeds, wherever they run. Of the last run.
        events: callbacks that the loop ran.
        seconds: of virtual time.
        seen: how often each fault and operation was done.
        failures: the seeds that failed.
    """

    runs: int = 0
    digest: str = ""
    events: int = 0
    seconds: float = 0.0
    terms: int = 0
    committed: int = 0
    acknowledged: int = 0
    seen: Counter[str] = field(default_factory=Counter[str])
    failures: list[Failure] = field(default_factory=list[Failure])

    def add(self, cluster: DriverCluster | None) -> None:
        """Count one run; None for one that never began."""
        self.runs += 1
        if cluster is None:
            return
        self.digest = cluster.digest()
        self.events += cluster.loop.steps
        self.seconds += cluster.loop.now - cluster.began
        self.terms += cluster.watch.bounded.terms
        self.committed += cluster.watch.states.committed_index
        self.acknowledged += cluster.clients.answers
        self.seen.update(cluster.seen)

    def merge(self, other: DriverReport) -> None:
        """Count all that another counted."""
        self.runs += other.runs
        self.digest = other.digest
        self.events += other.events
        self.seconds += other.seconds
        self.terms += other.terms
        self.committed += other.committed
        self.acknowledged += other.acknowledged
        self.seen.update(other.seen)
        self.failures += other.failures


def _drawn(seed: int) -> tuple[random.Random, str, Faults]:
    """The source of chance of a seed, and what it picks first."""
    rng = random.Random(seed)  # noqa: S311 - histories must repeat
    kind = rng.choice(_KINDS)
    return rng, kind, Faults.swarm(rng)


def _run(report: DriverReport, seed: int, faults: Faults | None, kind: str | None) -> None:
    """One run, counted in, whatever comes of it."""
    rng, drawn, swarm = _drawn(seed)
    loop = virtual_loop()
    log = logging.getLogger("rafthttp")
    level, log_level = log.level, logging.CRITICAL + 1
    if not log.isEnabledFor(logging.DEBUG):
        log.setLevel(log_level)  # what it says of each fault is no news
    cluster = None
    try:
        with determined(loop, rng):
            try:
                cluster = DriverCluster(
                    loop, rng, swarm if faults is None else faults, kind or drawn
                )
                loop.executor_delay = lambda: DEVICE.get().busy()
                with cluster.watch.at_work():
                    loop.run(cluster.run())
            finally:
                report.add(cluster)
    except Exception as error:
        error.add_note(f"again: rafthttp.testing.driversim.{_call(seed, faults, kind)}")
        raise
    finally:
        loop.close()
        log.setLevel(level)


def _call(seed: int, faults: Faults | None, kind: str | None) -> str:
    words = [str(seed)]
    if faults is not None:
        words.append(faults.call)
    if kind is not None:
        words.append(f"kind={kind!r}")
    return f"simulate_driver({', '.join(words)})"


def simulate_driver(
    seed: int, faults: Faults | None = None, *, kind: str | None = None
) -> DriverReport:
    """One seed, one history. Where it breaks a property, the error says how to repeat it.

    Args:
        seed: of everything that is left to chance.
        faults: what goes wrong; the seed draws them where None.
        kind: `raft`, bare servers over TCP, or `node`, over HTTP; the seed draws it where None.

    Raises:
        AssertionError: a property does not hold.
    """
    report = DriverReport()
    _run(report, seed, faults, kind)
    return report


def simulate_driver_seeds(seeds: Iterable[int]) -> DriverReport:
    """Many seeds, failing ones included, and add them up."""
    report = DriverReport()
    for seed in seeds:
        text = _play(report, seed, None, None)
        if text:
            report.failures.append(Failure(seed, text))
    return report


def simulate_driver_many(
    first: int,
    seeds: int | None,
    *,
    jobs: int = 1,
    seconds_max: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[DriverReport]:
    """As `rafthttp.testing.sim.simulate_many`, of whole servers."""
    return run_many(
        simulate_driver_seeds,
        first,
        seeds,
        batch=_BATCH,
        jobs=jobs,
        seconds_max=seconds_max,
        clock=clock,
    )


def _play(report: DriverReport, seed: int, faults: Faults | None, kind: str | None) -> str:
    """What a run breaks; empty where all is well."""
    try:
        _run(report, seed, faults, kind)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other seeds go on
        return f"{type(error).__name__}: {error}"
    return ""


class ShrunkDriver(NamedTuple):
    """A run with few faults that breaks the same property."""

    seed: int
    faults: Faults
    kind: str
    text: str
    tries: int

    @property
    def call(self) -> str:
        """The call that runs it again."""
        return _call(self.seed, self.faults, self.kind)

    @property
    def test(self) -> str:
        """A test of one line."""
        return f"def test_seed_{self.seed}() -> None: {self.call}"


def shrink_driver_seed(seed: int, *, tries_max: int = TRIES_MAX) -> ShrunkDriver:
    """The fewest faults that break the property that a failing seed breaks.

    Raises:
        ValueError: the seed does not fail.
    """
    _, kind, faults = _drawn(seed)
    text = _play(DriverReport(), seed, faults, kind)
    if not text:
        raise ValueError(f"seed {seed} does not fail")
    best = ShrunkDriver(seed, faults, kind, text, 1)
    tries = 1

    def fails(names: list[str]) -> bool:
        nonlocal best, tries
        kept = Faults(**{name: getattr(faults, name) for name in names})
        for other in range(best.seed, best.seed + 1 + _OTHER_SEEDS):
            if tries >= tries_max:
                return False
            tries += 1
            said = _play(DriverReport(), other, kept, kind)
            if said and property_of(said) == property_of(text):
                best = ShrunkDriver(other, kept, kind, said, tries)
                return True
        return False

    shrink_items(faults.kinds(), fails)
    return best._replace(tries=tries)
