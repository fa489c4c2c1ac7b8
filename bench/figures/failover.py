"""How long nothing can be written when the leader dies: `kill -9`, and SIGSTOP.

    python -m bench.figures.failover [--quick] [--directory DIR]

Three processes with a disk and their own defaults: `rafthttp serve`, Go's hashicorp/raft with
boltdb, etcd. A prober writes to both survivors all the time, a new write to each every few
milliseconds, answered or not: no retry of the prober is in the figure. From the signal to the first
acknowledgement of a write that was begun after it. Then the old leader is started again (or goes
on), and nothing more is harmed until all three have the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures.figure import Figure, Line, main, spread
from bench.peers import members
from bench.peers.base import MissingPeerError
from bench.peers.members import COUNT, Members, Service

# Before the harm; at random, as no phase of heartbeats is to be preferred.
CALM_SECONDS = (0.2, 0.4)
# A writer that hears nothing gives up; only what is open at a time is bounded by it.
WRITE_SECONDS = 0.5
# Nobody takes longer by far; a cluster that does has failed.
LIMIT_SECONDS = 30.0

MEDIAN_GOAL_MS = 150.0
WORST_GOAL_MS = 2000.0
STOPPED_GOAL_MS = 3000.0


@dataclass(frozen=True)
class Harm:
    """What is done to the leader."""

    name: str
    signal: signal.Signals
    interval_seconds: float
    """Between two writes to one survivor."""


# A stopped leader costs a second or more, in which every write stays open.
KILL = Harm("kill -9", signal.SIGKILL, 0.005)
STOP = Harm("SIGSTOP", signal.SIGSTOP, 0.01)


class Writer:
    """Writes to one member at a steady pace, over connections that are kept."""

    def __init__(self, service: Service, number: int, interval_seconds: float) -> None:
        self._service = service
        self._port = service.ports[number]
        self._interval_seconds = interval_seconds
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self.acknowledged: Callable[[float], None] = lambda _: None
        """Called with when the write was begun."""

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while True:
                task = loop.create_task(self._write())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                due = max(due + self._interval_seconds, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for _, writer in self._idle:
                writer.close()

    async def _write(self) -> None:
        """One write; one that fails is nothing to the prober, there are others."""
        began = time.perf_counter()
        self._count += 1
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    if self._idle:
                        stream = self._idle.pop()
                    else:
                        stream = await asyncio.open_connection("127.0.0.1", self._port)
                    status = await self._exchange(*stream)
                self._idle.append(stream)
                stream = None
                if 200 <= status < 300:
                    self.acknowledged(began)
            finally:
                if stream is not None:
                    stream[1].transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        method, target, body = self._service.write(self._count)
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        lengths = [line for line in lines if line.startswith("content-length:")]
        if lengths:
            await reader.readexactly(int(lengths[0].partition(":")[2]))
        return int(lines[0].split()[1])


async def outage_seconds(cluster: Members, leader: int, harm: Harm) -> float:
    """Harm the leader under writes: seconds until the first write begun after it is acknowledged.

    Raises:
        TimeoutError: none was within `LIMIT_SECONDS`.
    """
    loop = asyncio.get_running_loop()
    survivors = [number for number in range(COUNT) if number != leader]
    writers = [Writer(cluster.service, number, harm.interval_seconds) for number in survivors]
    first: asyncio.Future[float] = loop.create_future()
    harmed = float("inf")

    def acknowledged(began: float) -> None:
        if began > harmed and not first.done():
            first.set_result(time.perf_counter())

    tasks: list[asyncio.Task[None]] = []
    try:
        for writer in writers:
            writer.acknowledged = acknowledged
            tasks.append(loop.create_task(writer.run()))
            await asyncio.sleep(harm.interval_seconds / len(writers))
        await asyncio.sleep(random.uniform(*CALM_SECONDS))
        began = time.perf_counter()
        cluster.signal(leader, harm.signal)
        harmed = time.perf_counter()
        return await asyncio.wait_for(first, LIMIT_SECONDS) - began
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def outages_ms(cluster: Members, harm: Harm, times: int) -> list[float]:
    """Harm and heal so many times."""
    found: list[float] = []
    for _ in range(times):
        cluster.wait_level()
        leader = cluster.wait_leader()
        found.append(asyncio.run(outage_seconds(cluster, leader, harm)) * 1e3)
        if harm is KILL:
            cluster.reap(leader)
            cluster.start(leader)
        else:
            cluster.signal(leader, signal.SIGCONT)
    return found


@dataclass
class Subject:
    """One make, how often it is harmed a round, and what that gave."""

    name: str
    make: Callable[[Path], Service]
    kills: int
    stops: int
    killed_ms: list[float] = field(default_factory=list[float])
    stopped_ms: list[float] = field(default_factory=list[float])

    def go_round(self, directory: Path | None) -> None:
        """A new cluster, harmed and healed."""
        with members.running(self.make, directory) as cluster:
            self.stopped_ms += outages_ms(cluster, STOP, self.stops)
            self.killed_ms += outages_ms(cluster, KILL, self.kills)


def lines_of(subject: Subject, *, has_goal: bool) -> list[Line]:
    """Medians and extremes."""
    lines: list[Line] = []
    if subject.killed_ms:
        median, worst = statistics.median(subject.killed_ms), max(subject.killed_ms)
        lines.append(
            Line(
                f"{subject.name}: {KILL.name} of the leader to the first new commit",
                spread(subject.killed_ms, "ms", 4),
                "median ≤ 150 ms, worst ≤ 2 s" if has_goal else "",
                (median <= MEDIAN_GOAL_MS and worst <= WORST_GOAL_MS) if has_goal else None,
                {"killed_ms": subject.killed_ms},
            )
        )
    if subject.stopped_ms:
        lines.append(
            Line(
                f"{subject.name}: {STOP.name} of the leader to the first new commit",
                spread(subject.stopped_ms, "ms", 4),
                "worst ≤ 3 s" if has_goal else "",
                max(subject.stopped_ms) <= STOPPED_GOAL_MS if has_goal else None,
                {"stopped_ms": subject.stopped_ms},
            )
        )
    return lines


def measure(quick: bool, directory: Path | None) -> Figure:
    """Ours and its peers in turn."""
    rounds = 1 if quick else 3
    ours = Subject("ours", members.Serve, 3 if quick else 17, 1 if quick else 4)
    peers = [
        Subject("Go", members.Go, 1 if quick else 4, 0 if quick else 2),
        Subject("etcd", members.Etcd, 1 if quick else 4, 0 if quick else 2),
    ]
    missing: dict[str, str] = {}
    for _ in range(rounds):
        ours.go_round(directory)
        for peer in peers:
            if peer.name in missing:
                continue
            try:
                peer.go_round(directory)
            except MissingPeerError as error:
                missing[peer.name] = f"{peer.name}: {error}"
    lines: list[Line] = []
    for subject in (ours, *peers):
        lines += lines_of(subject, has_goal=subject is ours)
    lines += ratios(ours, peers)
    return Figure("Failover: the leader dies under writes", lines, list(missing.values()))


def ratios(ours: Subject, peers: Sequence[Subject]) -> list[Line]:
    """The peers' medians over ours."""
    lines: list[Line] = []
    for peer in peers:
        if not peer.killed_ms:
            continue
        ratio = statistics.median(peer.killed_ms) / statistics.median(ours.killed_ms)
        lines.append(Line(f"{KILL.name}: {peer.name}'s median / ours", f"{ratio:.1f}"))
    return lines


if __name__ == "__main__":
    main(measure)
