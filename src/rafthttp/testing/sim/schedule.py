"""A run as data, and the smallest one that still breaks the same property.

Knows what can be left out of a run: faults, servers, clients, single deeds, time. A candidate is a
whole history of its own; that it fails is found by running it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from rafthttp.testing.shrink import shrink_items, shrink_number
from rafthttp.testing.sim.cluster import Cluster, swarm_of
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.nemesis import Deed

# Events of the first phase: about one and a half simulated seconds, fifteen election timeouts.
EVENTS: Final = 1000
# Runs for one shrinking: about ten seconds.
TRIES_MAX: Final = 600
# Where a candidate does not fail on its own seed, so many others are tried: what is taken out
# changes what happens after it.
_OTHER_SEEDS: Final = 6


def property_of(text: str) -> str:
    """The property that a failure breaks, without the figures of its run."""
    kind, _, rest = text.partition(": ")
    name = rest.partition(":")[0] if kind == "InvariantError" else rest
    return f"{kind}: {re.sub(r'[0-9]+', '#', name)[:40]}"


class Outcome(NamedTuple):
    """How a run ended. `events` counts those until then, `text` is empty where all is well.

    `servers`: how many there were, 0 in a run that never began.
    """

    text: str
    events: int
    deeds: tuple[Deed, ...]
    servers: int = 0

    @property
    def broken(self) -> str:
        """The property that is broken."""
        return property_of(self.text)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run of the simulator, whole: the arguments of `simulate_core`."""

    seed: int
    faults: Faults | None = None
    events: int = EVENTS
    servers: int | None = None
    clients: int | None = None
    skipped: tuple[str, ...] = ()

    def cluster(self) -> Cluster:
        """The cluster, about to run."""
        return Cluster(
            self.seed,
            self.faults,
            servers=self.servers,
            clients=self.clients,
            skipped=self.skipped,
        )

    def play(self) -> Outcome:
        """Run it."""
        cluster = None
        text = ""
        try:
            cluster = self.cluster()
            cluster.run(self.events)
        except Exception as error:  # noqa: BLE001 - whatever a broken core raises, it is shrunk
            text = f"{type(error).__name__}: {error}"
        if cluster is None:
            return Outcome(text, 0, ())
        deeds = tuple(cluster.nemesis.deeds)
        return Outcome(text, cluster.world.events, deeds, len(cluster.voters))

    @property
    def call(self) -> str:
        """The call that runs it again."""
        words = [str(self.seed)]
        if self.faults is not None:
            words.append(self.faults.call)
        if self.events != EVENTS:
            words.append(f"events={self.events}")
        words += [
            f"{name}={value!r}"
            for name in ("servers", "clients")
            if (value := getattr(self, name)) is not None
        ]
        if self.skipped:
            words.append(f"skipped={self.skipped!r}")
        return f"simulate_core({', '.join(words)})"

    @property
    def test(self) -> str:
        """A test of one line."""
        return f"def test_seed_{self.seed}() -> None: {self.call}"


class Shrunk(NamedTuple):
    """A small schedule that breaks the same property."""

    schedule: Schedule
    outcome: Outcome
    tries: int


def shrink_schedule(schedule: Schedule, *, tries_max: int = TRIES_MAX) -> Shrunk:
    """Leave out of a failing run all that can be: faults, servers, clients, deeds, events.

    Raises:
        ValueError: it does not fail.
    """
    outcome = schedule.play()
    if not outcome.text:
        raise ValueError(f"seed {schedule.seed} does not fail")
    shrinker = _Shrinker(schedule, outcome, tries_max)
    shrinker.drop_faults()
    shrinker.drop_servers_and_clients()
    shrinker.drop_faults()
    shrinker.round_faults()
    shrinker.shorten()
    shrinker.drop_deeds()
    shrinker.shorten()
    return Shrunk(shrinker.best, shrinker.outcome, shrinker.tries)


class _Shrinker:
    """The smallest failing schedule so far."""

    def __init__(self, schedule: Schedule, outcome: Outcome, tries_max: int) -> None:
        faults = swarm_of(schedule.seed) if schedule.faults is None else schedule.faults
        self.best = replace(schedule, faults=faults)
        self.outcome = outcome
        self.tries = 1
        self._tries_max = tries_max
        self._broken = outcome.broken

    def _fails(self, schedule: Schedule, other_seeds: int = 0) -> bool:
        """Whether it breaks the same property; then it is the best."""
        for more in range(other_seeds + 1):
            if self.tries >= self._tries_max:
                return False
            self.tries += 1
            candidate = replace(schedule, seed=schedule.seed + more)
            outcome = candidate.play()
            if outcome.text and outcome.broken == self._broken:
                self.best, self.outcome = candidate, outcome
                return True
        return False

    def drop_faults(self) -> None:
        """Only what must exist."""
        faults = self.best.faults
        assert faults is not None

        def fails(names: list[str]) -> bool:
            kept = Faults(**{name: getattr(faults, name) for name in names})
            return self._fails(replace(self.best, faults=kept), _OTHER_SEEDS)

        shrink_items(faults.kinds(), fails)

    def round_faults(self) -> None:
        """Two figures of each, where that does."""
        faults = self.best.faults
        assert faults is not None
        rounded: dict[str, float] = {}
        for name in faults.kinds():
            value = getattr(faults, name)
            rounded[name] = float(f"{value:.2g}") if isinstance(value, float) else value
        self._fails(replace(self.best, faults=Faults(**rounded)), _OTHER_SEEDS)  # type: ignore[arg-type] # by name

    def drop_servers_and_clients(self) -> None:
        """Three servers, one client, where that does."""
        for servers in range(3, self.outcome.servers):
            if self._fails(replace(self.best, servers=servers), _OTHER_SEEDS):
                break
        for clients in (1, 2):
            if self._fails(replace(self.best, clients=clients), _OTHER_SEEDS):
                break

    def drop_deeds(self) -> None:
        """Only the single deeds that matter; the schedule keeps its seed."""
        names = [deed.name for deed in self.outcome.deeds]
        before = self.best.skipped

        def fails(kept: list[str]) -> bool:
            left_out = tuple(name for name in names if name not in kept)
            return self._fails(replace(self.best, skipped=before + left_out))

        shrink_items(names, fails)

    def shorten(self) -> None:
        """As few events of harm as it takes."""
        best = self.best
        if self.outcome.events <= best.events:
            # It broke within them, at the last.
            self._fails(replace(best, events=self.outcome.events))
            return

        def fails(events: int) -> bool:
            return self._fails(replace(best, events=events))

        shrink_number(0, best.events, fails)
