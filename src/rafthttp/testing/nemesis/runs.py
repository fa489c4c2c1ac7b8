"""A run: a real cluster, its clients and its nemesis; then everything heals, and all is judged.

Knows how the parts fit. The registers change every few seconds, since judging one takes the longer
the more was done to it; at the end all of them are read again, at every server.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from rafthttp.testing.counterexample import smallest
from rafthttp.testing.linearizability import NotLinearizableError, check_linearizable
from rafthttp.testing.nemesis.clients import (
    Client,
    History,
    KeyValue,
    LedgerRegister,
    Register,
)
from rafthttp.testing.nemesis.faults import HOLD_SECONDS, Fault, Nemesis, Scene, kinds
from rafthttp.testing.nemesis.network import Namespaces, Network, missing_namespaces
from rafthttp.testing.nemesis.relays import Relays
from rafthttp.testing.nemesis.servers import MixedServers, Server, ServeServers

CLIENTS: Final = 8
_KEYS: Final = 3
_EPOCH_SECONDS: Final = 4.0
_HEAL_SECONDS: Final = 60.0


class Servers(Protocol):
    """A cluster of either kind."""

    servers: list[Server]

    def start_all(self) -> object:
        """Begin it."""
        ...

    def wait_healed(self, timeout: float) -> None:
        """Wait until all follow one leader, within `timeout` seconds."""
        ...


@dataclass
class Report:
    """What happened in a run.

    Attributes:
        shape: how many servers, or which.
        seconds: under faults.
        heal_seconds: from the last fault's end until all follow one leader again.
        operations: in the history that was judged.
        outcomes: of the clients' operations.
        faults: how often each began.
        registers: judged.
        partitions: what cut the links: `namespaces`, `relays` or `none`.
    """

    shape: str
    seconds: float = 0.0
    heal_seconds: float = 0.0
    operations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    registers: int = 0
    partitions: str = "none"

    def __str__(self) -> str:
        told = ", ".join(f"{name} {many}" for name, many in sorted(self.outcomes.items()))
        faults = ", ".join(f"{name} {many}" for name, many in sorted(self.faults.items()))
        return (
            f"{self.shape}: {self.seconds:.0f} s, {self.operations} operations on"
            f" {self.registers} registers ({told}); faults: {faults}; partitions:"
            f" {self.partitions}; healed in {self.heal_seconds:.1f} s; linearizable"
        )


def run(
    directory: Path,
    shape: str,
    seconds: float,
    seed: int,
    *,
    register: Callable[[], Register] | None = None,
    only: Sequence[type[Fault]] | None = None,
    relays: bool = False,
) -> Report:
    """Run a cluster under faults, and judge what its clients saw.

    Args:
        directory: for data and logs.
        shape: `"3"`, `"5"`, … for so many `serve` processes, or letters (`MixedCluster`).
        seconds: under faults.
        seed: of what the clients and the nemesis choose; when it happens is the machine's.
        register: how each client reads and writes, instead of the usual.
        only: these faults, instead of all that can be had.
        relays: cut links by relays also where there could be namespaces.

    Raises:
        NotLinearizableError: with the smallest part of the history that is not.
        AssertionError: the cluster did not heal, nothing was done, or a process ended by itself.
    """
    size = int(shape) if shape.isdigit() else len(shape)
    report = Report(shape)
    with _network(size, relays=relays) as network:
        report.partitions = type(network).__name__.lower() if network.can_cut else "none"
        with _cluster(directory, network, shape) as cluster:
            cluster.start_all()
            made = register or (KeyValue if shape.isdigit() else LedgerRegister)
            history = _play(cluster, network, made, only, seconds, random.Random(seed), report)  # noqa: S311 - no secret
    _judge(history, report)
    return report


def _play(
    cluster: Servers,
    network: Network,
    made: Callable[[], Register],
    only: Sequence[type[Fault]] | None,
    seconds: float,
    rng: random.Random,
    report: Report,
) -> History:
    history = History()
    parted = network if network.can_cut else None
    scene = Scene(cluster.servers, parted, random.Random(rng.random()))  # noqa: S311 - no secret
    able = kinds(scene)
    chosen = able if only is None else [kind for kind in able if kind in only]
    # A short run has more than one, too.
    nemesis = Nemesis(scene, chosen, min(HOLD_SECONDS, seconds / 4))
    clients = [
        Client(f"c{number}", made(), cluster.servers, history, rng.randrange(1 << 30))
        for number in range(CLIENTS)
    ]
    try:
        begin = time.monotonic()
        _work(_Workers(clients), nemesis, seconds)
        report.seconds = time.monotonic() - begin
        report.faults = nemesis.counts
        healing = time.monotonic()
        cluster.wait_healed(_HEAL_SECONDS)
        report.heal_seconds = time.monotonic() - healing
        keys = sorted({str(op.key) for op in history.operations})
        for server in cluster.servers:
            for key in keys:
                clients[0].read(server, key)
    finally:
        for client in clients:
            client.close()
    report.outcomes = history.outcomes
    assert history.outcomes["read ok"] > len(keys), f"nothing was read: {report}"
    assert history.outcomes["write ok"] > 0, f"nothing was written: {report}"
    return history


def _work(workers: _Workers, nemesis: Nemesis, seconds: float) -> None:
    workers.start()
    nemesis.start()
    try:
        workers.wait(seconds)
    finally:
        try:
            nemesis.stop()
        finally:
            workers.stop()


def _judge(history: History, report: Report) -> None:
    report.operations = len(history.operations)
    report.registers = len({op.key for op in history.operations})
    try:
        check_linearizable(history.operations)
    except NotLinearizableError as error:
        raise NotLinearizableError(error.key, smallest(error.operations)) from None


class _Workers:
    """A thread for each client; the registers are those of the moment."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._begin = time.monotonic()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(client, number), daemon=True)
            for number, client in enumerate(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        if self._failure is not None:
            raise AssertionError(f"a client failed: {self._failure!r}") from self._failure

    def _work(self, client: Client, number: int) -> None:
        try:
            while not self._stopping.is_set():
                epoch = int((time.monotonic() - self._begin) / _EPOCH_SECONDS)
                number += 1
                client.step(f"r{epoch}-{number % _KEYS}")
        except BaseException as error:  # noqa: BLE001 - a thread's top: `stop` raises it
            self._failure = error
            self._stopping.set()


@contextmanager
def _network(size: int, *, relays: bool) -> Generator[Network]:
    """Namespaces where they can be had; else relays."""
    missing = missing_namespaces()
    if missing is not None:
        sys.stderr.write(f"no network namespaces: {missing}\n")
    network = Namespaces(size) if missing is None and not relays else Relays(size)
    try:
        yield network
    finally:
        network.close()


@contextmanager
def _cluster(directory: Path, network: Network, shape: str) -> Generator[Servers]:
    cluster: ServeServers | MixedServers
    if shape.isdigit():
        cluster = ServeServers(directory, network, int(shape))
    else:
        cluster = MixedServers(directory, network, shape)
    if isinstance(network, Relays):
        network.watch(cluster.servers)
    try:
        yield cluster
    finally:
        cluster.close()
