"""One member of a PySyncObj cluster, under load from inside: a process of its own.

    python bench/peers/pysyncobj_node.py ADDRESS OTHER OTHER [--journal FILE] [--threads]

Questions and answers as `ours_node.py`. Tuned: a tick and a round of entries every millisecond,
batches on. Clients are callbacks on its own thread, which is as fast as it gets; or, with
--threads, a thread each that calls with `sync=True`, as its documentation does.
PySyncObj never calls fsync, with a journal file or without.
"""

# pyright: basic
from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import threading
import time
from typing import Any

pysyncobj: Any = importlib.import_module("pysyncobj")  # it has no types


class Counter(pysyncobj.SyncObj):  # type: ignore[misc]  # likewise
    """Counts what it is given."""

    def __init__(self, address: str, others: list[str], journal: str | None) -> None:
        conf = pysyncobj.SyncObjConf(
            autoTickPeriod=0.001,
            appendEntriesPeriod=0.001,
            appendEntriesUseBatch=True,
            commandsQueueSize=1_000_000,
            journalFile=journal,
        )
        super().__init__(address, others, conf)
        self.count = 0

    @pysyncobj.replicated  # type: ignore[untyped-decorator]  # likewise
    def add(self, data: bytes) -> int:
        """One more."""
        del data
        self.count += 1
        return self.count


def load(
    counter: Counter, clients: int, seconds: float, size: int, *, threads: bool
) -> dict[str, Any]:
    """Keep `clients` commands under way."""
    data = b"x" * size
    begin, cpu = time.perf_counter(), time.process_time()
    run = in_threads if threads else by_callbacks
    ordered = sorted(run(counter, data, clients, begin + seconds))
    return {
        "commits": len(ordered),
        "seconds": time.perf_counter() - begin,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "cpu_seconds": time.process_time() - cpu,
    }


def by_callbacks(counter: Counter, data: bytes, clients: int, end: float) -> list[float]:
    """Each answer's callback sends the next; latencies in seconds."""
    latencies: list[float] = []
    pending = clients
    idle = threading.Event()

    def send() -> None:
        started = time.perf_counter()

        def on_done(_: Any, reason: int) -> None:
            nonlocal pending
            now = time.perf_counter()
            if reason == pysyncobj.FAIL_REASON.SUCCESS:
                latencies.append(now - started)
            if now < end:
                send()
                return
            pending -= 1
            if pending == 0:
                idle.set()

        counter.add(data, callback=on_done)

    for _ in range(clients):
        send()
    idle.wait(end - time.perf_counter() + 30)
    return latencies


def in_threads(counter: Counter, data: bytes, clients: int, end: float) -> list[float]:
    """A thread for each client, which waits for its answer; latencies in seconds."""
    latencies: list[float] = []

    def client() -> None:
        now = time.perf_counter()
        while now < end:
            started = now
            counter.add(data, sync=True, timeout=30)
            now = time.perf_counter()
            latencies.append(now - started)

    running = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return latencies


def main(arguments: argparse.Namespace) -> None:
    """Run until standard input ends."""
    counter = Counter(arguments.address, arguments.others, arguments.journal)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "clients" in asked:
            answer = load(
                counter,
                asked["clients"],
                asked["seconds"],
                asked["size"],
                threads=arguments.threads,
            )
        leader = counter._getLeader()
        leads = leader is not None and str(leader) == arguments.address and counter.isReady()
        answer |= {"leads": leads, "voters": 1 + len(arguments.others)}
        print(json.dumps(answer), flush=True)
    counter.destroy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--journal")
    parser.add_argument("--threads", action="store_true")
    logging.disable(logging.WARNING)  # its members may diverge, and say so line by line
    main(parser.parse_args())
