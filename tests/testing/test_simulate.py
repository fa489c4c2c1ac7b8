"""`simulate`: a deterministic state machine passes, each kind of broken one is told of."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from rafthttp import FSM, BytesSnapshot, ConfigError, Configuration, FSMSnapshot, Index, Log
from rafthttp.testing import simulate

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-state-machine.md"


class Stock(FSM):
    """How many there are of each thing; and the names in the order of their coming."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def apply(self, log: Log) -> Any:
        thing, change = log.data.decode().split()
        if int(change) < -2:
            raise ValueError(f"too few {thing}")
        self.counts[thing] = self.counts.get(thing, 0) + int(change)
        return self.counts[thing]

    def snapshot(self) -> FSMSnapshot:
        return BytesSnapshot(json.dumps(self.counts).encode())

    def restore(self, source: BinaryIO) -> None:
        self.counts = json.load(source)


class Random(Stock):
    """Decides by chance."""

    def apply(self, log: Log) -> Any:
        return super().apply(log) + random.randrange(2)


class WallTime(Stock):
    """Stores the time at which it applies, not that at which the leader took the command."""

    def apply(self, log: Log) -> Any:
        super().apply(log)
        self.counts["changed"] = time.time_ns()


class SortedOnRestore(Stock):
    """Answers by the order of a dictionary, which `restore` changes."""

    def apply(self, log: Log) -> Any:
        super().apply(log)
        return next(iter(self.counts))

    def snapshot(self) -> FSMSnapshot:
        return BytesSnapshot(json.dumps(self.counts, sort_keys=True).encode())


class SetOrder(Stock):
    """Answers by the order of a set of strings: the same on all replicas of one process."""

    def apply(self, log: Log) -> Any:
        super().apply(log)
        return list({*self.counts, "pears", "plums", "figs", "nuts", "dates", "limes"})


class Forgets(Stock):
    """`restore` begins its count of commands anew."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = 0

    def apply(self, log: Log) -> Any:
        super().apply(log)
        self.applied += 1
        return self.applied


class HalfRestored(Stock):
    """`restore` loses what is zero."""

    def restore(self, source: BinaryIO) -> None:
        self.counts = {thing: n for thing, n in json.load(source).items() if n > 0}


class LivingSnapshot(Stock):
    """`persist` writes the state as it is then, not as it was."""

    def snapshot(self) -> FSMSnapshot:
        machine = self

        class Living:
            def persist(self, sink: BinaryIO) -> None:
                sink.write(json.dumps(machine.counts).encode())

            def release(self) -> None:
                pass

        return Living()


class CannotRestore(Stock):
    """`restore` raises."""

    def restore(self, source: BinaryIO) -> None:
        raise OSError("no such snapshot")


class LosesAnswers(Stock):
    """A batch has fewer answers than commands."""

    def apply_batch(self, logs: Any) -> Any:
        return super().apply_batch(logs)[:1]


class Unordered(Stock):
    """Right, though equal states write different bytes."""

    def snapshot(self) -> FSMSnapshot:
        items = list(self.counts.items())
        random.shuffle(items)
        return BytesSnapshot(json.dumps(dict(items)).encode())


class Members(Stock):
    """Keeps the cluster's members, too."""

    def store_configuration(self, index: Index, configuration: Configuration) -> None:
        self.counts["members"] = len(configuration.servers)


def commands(rng: random.Random) -> bytes:
    return f"{rng.choice(['pears', 'plums', 'figs'])} {rng.randrange(-3, 9)}".encode()


@pytest.mark.parametrize("machine", [Stock, Members])
def test_a_right_one_passes(machine: type[FSM]) -> None:
    """Replicas begin from snapshots, their own and a leader's."""
    report = simulate(machine, commands)
    assert report.runs == 30
    assert report.acknowledged > 300
    assert min(report.seen[kind] for kind in ("crash", "install", "snapshot")) > 10


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (Random, r"Random is not deterministic: to command \d+, b'.*', one replica answered"),
        (WallTime, r"WallTime is not deterministic: after command \d+ one replica is b'.*'"),
        (SortedOnRestore, r"SortedOnRestore is not deterministic|SortedOnRestore is another after"),
        (SetOrder, r"SetOrder is not deterministic: to b'.*' it answers .* another PYTHONHASHSEED"),
        (Forgets, r"Forgets is not deterministic: to command \d+, .* nothing that restore leaves"),
        (HalfRestored, r"HalfRestored is another after snapshot and restore: at command \d+"),
        (LivingSnapshot, r"LivingSnapshot is another after snapshot and restore: at command \d+"),
        (CannotRestore, r"no such snapshot.*seed \d+"),
        (LosesAnswers, r"LosesAnswers.apply_batch got \d+ commands, gave 1 answers"),
        (Unordered, r"Where equal states may write different bytes, pass state="),
    ],
)
def test_a_broken_one_is_told_of(machine: type[FSM], told: str) -> None:
    with pytest.raises(AssertionError, match=told) as caught:
        simulate(machine, commands)
    if machine is not SetOrder:
        # The seed alone repeats it.
        found = re.search(r"seeds=\[(\d+)\]\) repeats it", str(caught.value))
        assert found is not None
        with pytest.raises(AssertionError, match=told):
            simulate(machine, commands, seeds=[int(found[1])])


def test_what_must_be_equal_can_be_said() -> None:
    simulate(Unordered, commands, state=lambda fsm: vars(fsm)["counts"], seeds=5)


def test_only_state_machines_are_taken() -> None:
    with pytest.raises(ConfigError, match="FSM"):
        simulate(dict, commands)  # type: ignore[arg-type] # the mistake


def test_the_example_of_the_page_runs() -> None:
    """docs/how-to/test-your-state-machine.md, as it stands there."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(program, names)  # a page is run as it stands
    names["test_stock"]()
