"""What a stream over the endpoint costs beside bare TCP: `carriers`.

A client process and a server process, both on uvloop, move the same bytes over one connection: by
an `asyncio.Protocol` of its own on bare TCP, and by our `Stream` over each carrier and door.
Requests of 300 B (a small AppendEntries) with answers of 300 B, one and 16 in flight, one write
each; and 64 KiB chunks one way, as fast as the connection takes them, each acknowledged by a byte.
Bare and ours in turn, the ratio of the rates pair by pair, and of the CPU time that both ends used
for the same, which other load on the machine changes least. The servers stay, each run dials.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from bench.figures.figure import Figure, Line, main, spread
from bench.peers.base import LineProcess
from bench.peers.stream_end import DOORS, process


class Workload(NamedTuple):
    """What is moved."""

    name: str
    size_bytes: int
    answer_bytes: int
    in_flight: int


class Way(NamedTuple):
    """A carrier through a door, and which part of bare TCP's rate it should have."""

    name: str
    carrier: str
    door: str
    goal: float | None


WORKLOADS: Final = (
    Workload("300 B, 1 in flight", 300, 300, 1),
    Workload("300 B, 16 in flight", 300, 300, 16),
    Workload("64 KiB one way", 64 << 10, 1, 0),
)
WAYS: Final = (
    Way("raw, listener", "raw", "listener", 0.9),
    Way("raw, uvicorn", "raw", "uvicorn", 0.9),
    Way("WebSocket, listener", "websocket", "listener", 0.5),
    Way("WebSocket, uvicorn", "websocket", "uvicorn", 0.5),
    Way("WebSocket, uvicorn's own", "websocket", "uvicorn-websockets", None),
)


class Run(NamedTuple):
    """One run: the rate of answers, and the CPU time of both ends for each."""

    per_second: float
    cpu_us: float


def measure(quick: bool, directory: Path | None) -> Figure:
    """Every way under every workload."""
    del directory  # nothing is stored
    pairs, seconds = (1, 0.25) if quick else (5, 0.6)
    lines: list[Line] = []
    with ExitStack() as stack:
        servers: dict[str, LineProcess] = {}
        for door in DOORS:
            servers[door] = process(door)
            stack.callback(servers[door].stop)
        client = process()
        stack.callback(client.stop)
        for workload in WORKLOADS:
            _run(client, servers["bare"], "bare", workload, seconds)  # warm
            for way in WAYS:
                bare: list[Run] = []
                ours: list[Run] = []
                for _ in range(pairs):
                    bare.append(_run(client, servers["bare"], "bare", workload, seconds))
                    ours.append(_run(client, servers[way.door], way.carrier, workload, seconds))
                lines.append(_line(way, workload, bare, ours))
    return Figure("A stream over the endpoint, against bare TCP under asyncio", lines)


def _run(
    client: LineProcess, server: LineProcess, carrier: str, workload: Workload, seconds: float
) -> Run:
    before = server.ask({})
    load = {key: value for key, value in workload._asdict().items() if key != "name"}
    question = {"call": "load", "carrier": carrier, "port": before["port"], "seconds": seconds}
    answer = client.ask(question | load)
    cpu_seconds = answer["cpu_seconds"] + server.ask({})["cpu_seconds"] - before["cpu_seconds"]
    return Run(answer["answered"] / answer["seconds"], cpu_seconds * 1e6 / answer["answered"])


def _line(way: Way, workload: Workload, bare: Sequence[Run], ours: Sequence[Run]) -> Line:
    ratios = [mine.per_second / floor.per_second for mine, floor in zip(ours, bare, strict=True)]
    cpu = [mine.cpu_us / floor.cpu_us for mine, floor in zip(ours, bare, strict=True)]
    return Line(
        f"{way.name}: {workload.name}",
        f"{spread(ratios, '')}; {_amount(ours, workload)} against {_amount(bare, workload)};"
        f" CPU time {statistics.median(cpu):.2f} of its",
        "" if way.goal is None else f"≥ {way.goal:g}",
        None if way.goal is None else statistics.median(ratios) >= way.goal,
        {
            "ratios": ratios,
            "cpu_ratios": cpu,
            "ours": [run._asdict() for run in ours],
            "bare": [run._asdict() for run in bare],
        },
    )


def _amount(runs: Sequence[Run], workload: Workload) -> str:
    rate = statistics.median(run.per_second for run in runs)
    if workload.in_flight:
        return f"{rate:,.0f} /s"
    return f"{rate * workload.size_bytes / (1 << 20):,.0f} MiB/s"


if __name__ == "__main__":
    main(measure)
