"""What goes wrong when: faults of real processes, begun and ended at random, one or two at a time.

Knows servers and their network; nothing of clients. Each fault is one class with `begin` and `end`;
`end` leaves everything whole, so that faults may overlap.
"""

from __future__ import annotations

import random
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import httpx

from rafthttp.testing.nemesis.network import Network, every_link
from rafthttp.testing.nemesis.servers import Server

# Above and below a usual election timeout of a second, and long enough for a term to end.
HOLD_SECONDS: Final = 4.0
_HOLD_SECONDS_MIN: Final = 0.3
_REST_SECONDS: Final = (0.2, 2.0)
_DAY_SECONDS: Final = 86_400.0


class Scene:
    """What a fault needs to know.

    Args:
        servers: all of the cluster.
        network: theirs, or None where there is none to be cut.
        rng: chooses.
    """

    def __init__(
        self, servers: Sequence[Server], network: Network | None, rng: random.Random
    ) -> None:
        self.servers: Final = list(servers)
        self.network: Final = network
        self.rng: Final = rng

    def leader(self) -> Server | None:
        """One that says it leads, if any does within a moment."""
        for server in self.rng.sample(self.servers, len(self.servers)):
            if server.leads():
                return server
        return None

    def one(self) -> Server:
        """The leader every other time, else anybody."""
        found = self.leader() if self.rng.random() < 0.5 else None
        return found or self.rng.choice(self.servers)

    def some(self) -> list[Server]:
        """One server, or a few, or all."""
        if self.rng.random() < 0.6:
            return [self.one()]
        return self.rng.sample(self.servers, self.rng.randint(1, len(self.servers)))


class Fault(ABC):
    """Something that goes wrong for a while."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.hit: list[Server] = []

    @abstractmethod
    def begin(self) -> str:
        """Let it go wrong; what exactly."""

    @abstractmethod
    def end(self) -> None:
        """Let it be right again."""


class Kill(Fault):
    """SIGKILL to one, some or all; restarted at the end, with what the disk has."""

    def begin(self) -> str:
        """As `Fault`."""
        self.hit = [server for server in self.scene.some() if server.running]
        for server in self.hit:
            server.kill()
        return f"kill {_names(self.hit)}"

    def end(self) -> None:
        """As `Fault`."""
        for server in self.hit:
            server.start()


class Stop(Fault):
    """SIGSTOP: a process that sleeps, its sockets open and its lease ending."""

    def begin(self) -> str:
        """As `Fault`."""
        self.hit = self.scene.some()
        for server in self.hit:
            server.send(signal.SIGSTOP)
        return f"stop {_names(self.hit)}"

    def end(self) -> None:
        """As `Fault`."""
        for server in self.hit:
            server.send(signal.SIGCONT)


class Partition(Fault):
    """Links are cut: one server off, two sides, two sides with a bridge, or single directions."""

    def begin(self) -> str:
        """As `Fault`."""
        scene, rng = self.scene, self.scene.rng
        assert scene.network is not None, "there is a network to be cut"
        numbers = [server.number for server in scene.servers]
        shape = rng.choice(["one off", "sides", "bridge", "one way"])
        lonely = scene.one().number
        others = [number for number in numbers if number != lonely]
        rng.shuffle(others)
        half = len(others) // 2
        if shape == "one off":
            links = every_link([lonely], others)
        elif shape == "sides":
            links = every_link([lonely, *others[:half]], others[half:])
        elif shape == "bridge":
            links = every_link(others[:half], others[half:])
        else:
            every = every_link(numbers, numbers)
            pairs = sorted({(a, b) for a, b in every if a != b})
            links = rng.sample(pairs, rng.randint(1, len(pairs) // 2))
        scene.network.cut(links)
        return f"partition ({shape}) {' '.join(f'{a + 1}>{b + 1}' for a, b in links)}"

    def end(self) -> None:
        """As `Fault`."""
        assert self.scene.network is not None, "begun"
        self.scene.network.heal()


class _Troubled(Fault):
    """What is told to a server in Python."""

    def choose(self) -> list[Server]:
        self.hit = [server for server in self.scene.some() if server.python]
        return self.hit


class SlowDisk(_Troubled):
    """Every write late by up to 0.3 s."""

    def begin(self) -> str:
        """As `Fault`."""
        for server in self.choose():
            server.trouble = replace(server.trouble, disk_delay=self.scene.rng.uniform(0.01, 0.3))
        return f"slow disk {_names(self.hit)}"

    def end(self) -> None:
        """As `Fault`."""
        for server in self.hit:
            server.trouble = replace(server.trouble, disk_delay=0.0)


class HungDisk(_Troubled):
    """No write returns."""

    def begin(self) -> str:
        """As `Fault`."""
        for server in self.choose():
            server.trouble = replace(server.trouble, disk_hangs=True)
        return f"hung disk {_names(self.hit)}"

    def end(self) -> None:
        """As `Fault`."""
        for server in self.hit:
            server.trouble = replace(server.trouble, disk_hangs=False)


class WrongClock(_Troubled):
    """The wall clock jumps by up to a day, either way."""

    def begin(self) -> str:
        """As `Fault`."""
        for server in self.choose():
            server.trouble = replace(
                server.trouble, clock_offset=self.scene.rng.uniform(-_DAY_SECONDS, _DAY_SECONDS)
            )
        return f"wrong clock {_names(self.hit)}"

    def end(self) -> None:
        """As `Fault`."""
        for server in self.hit:
            server.trouble = replace(server.trouble, clock_offset=0.0)


def kinds(scene: Scene) -> list[type[Fault]]:
    """What can go wrong there."""
    found: list[type[Fault]] = [Kill, Stop]
    if scene.network is not None:
        found += [Partition, Partition]
    if any(server.python for server in scene.servers):
        found += [SlowDisk, HungDisk, WrongClock]
    return found


class Nemesis:
    """A thread that lets faults begin and end until stopped; then all is whole.

    Args:
        scene: whom they hit.
        allowed: which may come.
        hold_seconds: the longest that one lasts.

    Attributes:
        counts: how often each kind of fault began.
        told: what happened, in order.
        failure: why the thread ended early, or which process ended by itself.
    """

    def __init__(
        self, scene: Scene, allowed: Sequence[type[Fault]], hold_seconds: float = HOLD_SECONDS
    ) -> None:
        self._scene, self._allowed = scene, list(allowed)
        self._hold_seconds = hold_seconds
        self.counts: Counter[str] = Counter()
        self.told: list[str] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is under way has ended.

        Raises:
            AssertionError: it failed, or a process ended by itself.
        """
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"the nemesis hangs after {self.told[-3:]}"
        if self.failure is not None:
            raise AssertionError(f"after {self.told[-3:]}: {self.failure!r}") from self.failure

    def _run(self) -> None:
        rng = self._scene.rng
        # Every kind comes before any comes again.
        waiting: list[type[Fault]] = []
        try:
            while not self._stopping.is_set():
                if len(waiting) < 2:
                    waiting += rng.sample(self._allowed, len(self._allowed))
                chosen = [waiting.pop(0)]
                if waiting and rng.random() < 0.4 and waiting[0] is not chosen[0]:
                    chosen.append(waiting.pop(0))
                self._round(chosen)
                self._check_running()
                self._stopping.wait(rng.uniform(*_REST_SECONDS))
        except BaseException as error:  # noqa: BLE001 - a thread's top: `stop` raises it
            self.failure = error

    def _round(self, chosen: Sequence[type[Fault]]) -> None:
        """One or two faults that overlap."""
        rng = self._scene.rng
        ends: list[Callable[[], None]] = []
        try:
            for kind in chosen:
                fault = kind(self._scene)
                ends.append(fault.end)
                self.told.append(fault.begin())
                self.counts[kind.__name__] += 1
                held = rng.uniform(_HOLD_SECONDS_MIN, self._hold_seconds)
                self._stopping.wait(held / len(chosen))
        except httpx.HTTPError:
            pass  # whoever was asked who leads; the fault is ended all the same
        finally:
            rng.shuffle(ends)
            for end in ends:
                end()

    def _check_running(self) -> None:
        for server in self._scene.servers:
            assert server.running, f"{server.id} ended by itself"


def _names(servers: Sequence[Server]) -> str:
    return " ".join(server.id for server in servers) or "nobody"
