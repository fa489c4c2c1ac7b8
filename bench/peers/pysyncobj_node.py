"""One member of a PySyncObj cluster, under load from inside: a process of its own.

    python bench/peers/pysyncobj_node.py ADDRESS OTHER OTHER [--journal FILE]

Questions and answers as `ours_node.py`. Tuned: a tick and a round of entries every millisecond,
batches on.
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


def load(counter: Any, clients: int, seconds: float, size: int) -> dict[str, Any]:
    """Keep `clients` commands under way: each answer's callback sends the next."""
    data = b"x" * size
    latencies: list[float] = []
    begin = time.perf_counter()
    end = begin + seconds
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

    cpu = time.process_time()
    for _ in range(clients):
        send()
    idle.wait(seconds + 30)
    ordered = sorted(latencies)
    return {
        "commits": len(ordered),
        "seconds": time.perf_counter() - begin,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "cpu_seconds": time.process_time() - cpu,
    }


def main(arguments: argparse.Namespace) -> None:
    """Run until standard input ends."""
    counter = Counter(arguments.address, arguments.others, arguments.journal)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "clients" in asked:
            answer = load(counter, asked["clients"], asked["seconds"], asked["size"])
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
    logging.disable(logging.WARNING)  # its members may diverge, and say so line by line
    main(parser.parse_args())
