"""A server that starts once on a long log and tells how that went: a process of its own.

    python -m bench.peers.restart_node DIRECTORY [--fill LAST --snapshot INDEX]

One voter, the default configuration, a state machine that counts. With `--fill` it writes the log
and ends as if killed: the stores are not closed. Else it opens the stores, starts, waits until it
leads (on its own vote, written to disk), until all of the log is applied, and prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from bench.peers import long_log
from bench.peers.ours_node import Counter

from rafthttp import (
    Config,
    FileSnapshotStore,
    NetworkTransport,
    Raft,
    Server,
    ServerAddress,
    ServerID,
    SqliteStore,
    TCPStreamLayer,
)

ID: Final = ServerID("n1")
SERVERS: Final = (Server(ID, ServerAddress("127.0.0.1:1")),)
"""Nobody dials it."""
WAIT_SECONDS: Final = 60.0


def memory_bytes(field: str) -> int:
    """A line of this process's status: VmRSS is now, VmHWM the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10


def read_bytes() -> int:
    """What this process has read by now, from the page cache or from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


async def fill(directory: Path, last: int, snapshot: int) -> None:
    """Write the log, and the snapshot of the counter at one of its first entries."""
    store = SqliteStore.open(directory, ID)
    await long_log.extend(store, Config(ID), SERVERS, last)
    snapshots = FileSnapshotStore(directory / "snapshots")
    long_log.take_snapshot(snapshots, SERVERS, snapshot, b"%d" % (snapshot - 1))
    os._exit(0)


async def restart(directory: Path) -> dict[str, Any]:
    """Start, lead, replay."""
    layer = await TCPStreamLayer.listen("127.0.0.1")
    counter = Counter()
    read, began = read_bytes(), time.perf_counter()
    store = SqliteStore.open(directory, ID)
    opened = time.perf_counter()
    snapshots = FileSnapshotStore(directory / "snapshots")
    transport = NetworkTransport(layer)
    raft = await Raft.start(Config(ID), counter, store, store, snapshots, transport)
    started, read = time.perf_counter(), read_bytes() - read
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            async for leader in raft.leader_changes():
                if leader is not None and leader.id == ID:
                    break
            led, behind = time.perf_counter(), raft.last_index - raft.applied_index
            await raft.barrier()
            replayed = time.perf_counter()
        return {
            "open_ms": (opened - began) * 1e3,
            "start_ms": (started - began) * 1e3,
            "lead_ms": (led - began) * 1e3,
            "start_read_bytes": read,
            "replayed_entries": behind,
            "replay_ms": (replayed - led) * 1e3,
            "rss_bytes": memory_bytes("VmRSS"),
            "rss_max_bytes": memory_bytes("VmHWM"),
            "count": counter.count,
            "last_index": raft.last_index,
        }
    finally:
        await raft.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--fill", type=int)
    parser.add_argument("--snapshot", type=int, default=1000)
    given = parser.parse_args()
    if given.fill is not None:
        asyncio.run(fill(given.directory, given.fill, given.snapshot))
    else:
        print(json.dumps(asyncio.run(restart(given.directory))))
