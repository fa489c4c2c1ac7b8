"""One member of a cluster of ours whose application keeps the event loop busy: a process.

    python -m bench.peers.busy_node ID ADDRESS (--bootstrap | --join URL) [--data DIR] [--uvloop]

Questions and answers as `ours_node.py`; with `spin_ms` in a load, a callback computes for so long
in pure Python and asks for its next turn, back to back, on the loop that the node runs on. Tells
how many of them there were, how many commands failed, and the term.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
from array import array
from typing import Any, Final

from bench.peers.ours_node import Counter, served

from rafthttp import Config, Node, RaftError

LOAD_SECONDS_MAX: Final = 30.0
"""How much longer than asked for a load may take, before its clients are given up."""


def burn(rounds: int) -> None:
    """Compute without letting anybody in but a thread that demands it."""
    for _ in range(rounds):
        pass


def rounds_a_ms() -> float:
    """How many rounds of `burn` take a millisecond; the fastest of some tries."""
    rounds, fastest = 50_000, float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        burn(rounds)
        fastest = min(fastest, time.perf_counter() - begin)
    return rounds / (fastest * 1e3)


class Application:
    """Callbacks of `spin_ms` on the running loop, back to back."""

    def __init__(self, spin_ms: float) -> None:
        self._rounds = int(rounds_a_ms() * spin_ms)
        self._stopped = False
        self.spins = 0

    def start(self) -> None:
        """Begin."""
        asyncio.get_running_loop().call_soon(self._spin)

    def stop(self) -> None:
        """Ask for no further turn."""
        self._stopped = True

    def _spin(self) -> None:
        burn(self._rounds)
        self.spins += 1
        if not self._stopped:
            asyncio.get_running_loop().call_soon(self._spin)


async def load(node: Node, clients: int, seconds: float, size: int) -> dict[str, Any]:
    """Keep `clients` commands of `size` bytes under way; a client whose command fails is done."""
    data = b"x" * size
    latencies = array("d")
    failed = 0
    begin = time.perf_counter()
    end = begin + seconds

    async def client() -> None:
        nonlocal failed
        now = time.perf_counter()
        while now < end:
            started = now
            try:
                await node.raft.apply(data)
            except RaftError:
                failed += 1
                return
            now = time.perf_counter()
            latencies.append(now - started)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    _, pending = await asyncio.wait(tasks, timeout=seconds + LOAD_SECONDS_MAX)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    ordered = sorted(latencies) or [float("inf")]
    return {
        "commits": len(latencies),
        "failed": failed + len(pending),
        "seconds": max(seconds, time.perf_counter() - begin),
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
    }


async def loaded(node: Node, asked: dict[str, Any]) -> dict[str, Any]:
    """One load, beside an application or alone."""
    application = Application(asked["spin_ms"])
    if asked["spin_ms"]:
        application.start()
    cpu = time.process_time()
    try:
        answer = await load(node, asked["clients"], asked["seconds"], asked["size"])
    finally:
        application.stop()
    answer["spins"] = application.spins
    answer["cpu_seconds"] = time.process_time() - cpu
    return answer


async def answer_lines(node: Node) -> None:
    """Do what standard input asks for until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked = json.loads(line)
        answer = await loaded(node, asked) if "clients" in asked else {}
        leader = node.leader
        answer |= {
            "leads": leader is not None and leader.id == node.id,
            "voters": len(node.raft.get_configuration().configuration.voters),
            "term": node.raft.current_term,
        }
        print(json.dumps(answer), flush=True)


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
    runner: Any = importlib.import_module("uvloop") if given.uvloop else asyncio
    runner.run(main(given))
