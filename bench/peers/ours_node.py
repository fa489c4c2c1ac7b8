"""One member of a cluster of ours, under load from inside: a process of its own.

    python bench/peers/ours_node.py ID ADDRESS (--bootstrap | --join URL) [--data DIR] [--uvloop]

Reads one JSON object a line from standard input, `{"clients": 64, "seconds": 3, "size": 64}`, and
answers each with one line: commits, seconds and latencies in milliseconds. As in the peers, the
load runs in the leader's own process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import logging
import resource
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, BinaryIO

from rafthttp import FSM, BytesSnapshot, Config, Listener, Log, Node


class Counter(FSM):
    """Counts what it is given."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, log: Log) -> int:
        """One more (`FSM`)."""
        del log
        self.count += 1
        return self.count

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Several at once (`FSM`)."""
        first = self.count + 1
        self.count += len(logs)
        return range(first, self.count + 1)

    def snapshot(self) -> BytesSnapshot:
        """The number (`FSM`)."""
        return BytesSnapshot(b"%d" % self.count)

    def restore(self, source: BinaryIO) -> None:
        """The number (`FSM`)."""
        self.count = int(source.read())


async def load(node: Node, clients: int, seconds: float, size: int) -> dict[str, Any]:
    """Keep `clients` commands of `size` bytes under way for `seconds`."""
    data = b"x" * size
    latencies = array("d")
    raft = node.raft
    begin = time.perf_counter()
    end = begin + seconds

    async def client() -> None:
        now = time.perf_counter()
        while now < end:
            started = now
            await raft.apply(data)
            now = time.perf_counter()
            latencies.append(now - started)

    cpu = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    took = time.perf_counter() - begin
    ordered = sorted(latencies)
    return {
        "commits": len(ordered),
        "seconds": took,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "cpu_seconds": time.process_time() - cpu,
    }


async def answer_lines(node: Node) -> None:
    """Do what standard input asks for until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "clients" in asked:
            answer = await load(node, asked["clients"], asked["seconds"], asked["size"])
        leader = node.leader
        usage = resource.getrusage(resource.RUSAGE_SELF)
        answer |= {
            "leads": leader is not None and leader.id == node.id,
            "voters": len(node.raft.get_configuration().configuration.voters),
            "applied": node.raft.applied_index,
            "cpu_total_seconds": usage.ru_utime + usage.ru_stime,
            "rss_max_bytes": usage.ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


async def served(node: Node, address: str, answer: Callable[[Node], Awaitable[None]]) -> None:
    """Run a node on a port of its own until `answer` is done."""
    host, _, port = address.rpartition(":")
    async with node:
        assert node.handler is not None, "it is there while the node runs"
        async with Listener(node.handler, host, int(port)):
            # As `rafthttp serve` does, and as docs/performance.md advises applications.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 10, 10)
            await answer(node)


async def main(arguments: argparse.Namespace) -> None:
    """Run until standard input ends."""
    node = Node(
        arguments.id,
        arguments.address,
        fsm=Counter(),
        data_dir=arguments.data,
        bootstrap=arguments.bootstrap,
        join=arguments.join,
        config=Config(arguments.id),
    )
    await served(node, arguments.address, answer_lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("address")
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--join", action="append", default=[])
    parser.add_argument("--data")
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # what is said of each end of a cluster is no result
    runner: Any = importlib.import_module("uvloop") if given.uvloop else asyncio
    runner.run(main(given))
