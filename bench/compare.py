"""Ours side by side with real peers: `make bench`, or in 3 minutes `make bench QUICK=1`.

    python -m bench.compare [--quick] [--only TEXT] [--directory DIR]

Each row runs two clusters of three processes in turn on this machine; then come the figures of
`bench/figures`. Writes `bench/results.json`, `bench/results.md` and `bench/results.svg`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from bench import report
from bench.figures.figure import Measure
from bench.pairs import compare
from bench.peers import go, ours, pysyncobj_cluster, services
from bench.peers.base import Load, Make, MissingPeerError

Goals = dict[int, float | None]

FIGURES = (
    "carriers",
    "dial",
    "snapshot",
    "failover",
    "idle",
    "restart",
    "growth",
    "busy_loop",
    "wide_area",
)
NOT_QUICK = ("growth", "failover")

MEMORY = "memory, 64 B, against Go"
FSYNC = "fsync, 64 B, against Go + boltdb"


def plan() -> Iterator[tuple[str, Make, Make, int, Goals]]:
    """Every comparison: title, ours, the peer, size of a value, goal by number of clients."""
    compiled = ours.is_built()
    name = "ours, compiled" if compiled else "ours"
    memory = ours.make(name, fsync=False, compiled=compiled)
    fsync = ours.make(name, fsync=True, compiled=compiled)
    go_memory, go_bolt = go.make("Go", bolt=False), go.make("Go", bolt=True)
    go_memory_tuned = go.make("Go tuned", bolt=False, tuned=True)
    go_bolt_tuned = go.make("Go tuned", bolt=True, tuned=True)
    pysyncobj = pysyncobj_cluster.make("PySyncObj", journal=True)
    yield MEMORY, memory, go_memory, 64, {1: 1.0, 64: 1.5, 512: 1.5}
    yield f"{MEMORY} tuned", memory, go_memory_tuned, 64, {64: 1.5, 512: 1.1}
    yield FSYNC, fsync, go_bolt, 64, {1: 1.2, 64: 3.0, 512: 4.0}
    yield f"{FSYNC} tuned", fsync, go_bolt_tuned, 64, {64: 3.0, 512: 2.0}
    yield "fsync, 1 KiB, against Go + boltdb", fsync, go_bolt, 1024, {1: 1.2, 64: 2.0, 512: 2.0}
    yield (
        "fsync, 64 B, against PySyncObj (no fsync)",
        fsync,
        pysyncobj,
        64,
        {1: 0.7, 64: 10.0, 512: 10.0},
    )
    yield (
        "fsync, 64 B, against PySyncObj called from threads (no fsync)",
        fsync,
        pysyncobj_cluster.make("PySyncObj, threads", journal=True, threads=True),
        64,
        {1: 0.7, 64: 10.0, 512: 10.0},
    )
    everything: Goals = {1: None, 64: None, 512: None}
    for store, fsynced in (("memory", False), ("fsync", True)):
        yield (
            f"compiled against interpreted, {store}, 64 B",
            ours.make("compiled", fsync=fsynced, compiled=True),
            ours.make("interpreted", fsync=fsynced),
            64,
            everything,
        )
    yield (
        "uvloop against asyncio's own loop, memory, 64 B",
        memory,
        ours.make("asyncio", fsync=False, compiled=compiled, uvloop=False),
        64,
        everything,
    )
    yield (
        "PUT /kv over HTTP, fsync, against etcd",
        services.serve(name, "kv_put.lua", compiled=compiled),
        services.etcd("etcd", "etcd_put.lua"),
        64,
        {1: 1.0, 64: 0.8, 256: 0.8},
    )
    yield (
        "linearizable GET /kv, against etcd",
        services.serve(name, "kv_get.lua", compiled=compiled),
        services.etcd("etcd", "etcd_get.lua"),
        64,
        {1: 1.0, 64: 1.0},
    )


def figures() -> Iterator[tuple[str, Measure]]:
    """Every other figure, by the name of its module."""
    for name in FIGURES:
        yield name, importlib.import_module(f"bench.figures.{name}").measure


def compare_all(arguments: argparse.Namespace, sections: report.Sections) -> None:
    """Rates of commits and requests, ours and a peer's in turn."""
    pairs, seconds = (1, 1.0) if arguments.quick else (3, 2.5)
    for title, mine, peer, size, goals in plan():
        if arguments.only not in title:
            continue
        print(title, flush=True)
        loads = [(Load(clients, seconds, size), goal) for clients, goal in goals.items()]
        try:
            found = compare(title, mine, peer, loads, pairs, arguments.directory)
        except MissingPeerError as error:
            sections.add(report.missing(title, str(error)))
        else:
            sections.add(report.rates(title, found, 3.0 if title == FSYNC else None))


def measure_all(arguments: argparse.Namespace, sections: report.Sections) -> None:
    """All other figures."""
    for name, measure in figures():
        if arguments.only not in name:
            continue
        print(name, flush=True)
        if arguments.quick and name in NOT_QUICK:
            sections.add(report.missing(name, "not in a quick run"))
        else:
            sections.add(report.figure(name, measure(arguments.quick, arguments.directory)))


def main(arguments: argparse.Namespace) -> None:
    """Run what is asked for, and write what it gave."""
    titles = [title for title, *_ in plan()] + list(FIGURES)
    sections = report.Sections(Path(__file__).parent, titles, keep=bool(arguments.only))
    try:
        compare_all(arguments, sections)
        measure_all(arguments, sections)
    finally:
        sections.write()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one pair of short runs each")
    parser.add_argument("--only", default="", help="what has this text in its title; keep the rest")
    parser.add_argument("--directory", type=Path, help="where the clusters keep their files")
    main(parser.parse_args())
