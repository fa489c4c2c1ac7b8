"""One member of a cluster whose log is long before it starts: a process of its own.

    python -m bench.peers.growth_node ID ADDRESS --server ID=ADDRESS ... --entries N
        [--data DIR] [--uvloop]

The log is written by the stores' own calls, in memory or to disk, with a snapshot of the counter at
its end, so that nothing of it is to be replayed; no snapshot taken later cuts it. A log that is
there already from an earlier run is cut back to its snapshot first, and goes on from there.
Questions and answers as `ours_node.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.peers import long_log
from bench.peers.ours_node import Counter, answer_lines, served

from rafthttp import (
    Config,
    FileSnapshotStore,
    LogWrite,
    MemorySnapshotStore,
    MemoryStore,
    Node,
    Server,
    ServerAddress,
    ServerID,
    SqliteStore,
)

KEEPS_ALL: Final = 1 << 40


class GrownNode(Node):
    """A node that finds a log of `entries` in its stores, in the form of `long_log`."""

    def __init__(
        self, server: Server, servers: Sequence[Server], entries: int, data_dir: Path | None
    ) -> None:
        config = Config(server.id, trailing_logs=KEEPS_ALL, snapshot_threshold=KEEPS_ALL)
        super().__init__(server.id, server.address, fsm=Counter(), data_dir=data_dir, config=config)
        self._servers = servers
        self._entries = entries

    async def _open_store(self) -> MemoryStore | SqliteStore:
        store = await super()._open_store()
        found = (await super()._open_snapshots()).list()
        kept = found[0].index if found else 1
        if store.last_index() > kept:
            store.write((LogWrite({}, truncate_from=kept + 1),))
        await long_log.extend(store, self.config, self._servers, self._entries)
        return store

    async def _open_snapshots(self) -> MemorySnapshotStore | FileSnapshotStore:
        snapshots = await super()._open_snapshots()
        if self._entries > 1 and not any(s.index == self._entries for s in snapshots.list()):
            state = b"%d" % (self._entries - 1)
            long_log.take_snapshot(snapshots, self._servers, self._entries, state)
        return snapshots


def server_of(text: str) -> Server:
    """`ID=ADDRESS`."""
    server_id, _, address = text.partition("=")
    return Server(ServerID(server_id), ServerAddress(address))


async def main(arguments: argparse.Namespace) -> None:
    """Run until standard input ends."""
    own = Server(ServerID(arguments.id), ServerAddress(arguments.address))
    node = GrownNode(own, arguments.server, arguments.entries, arguments.data)
    await served(node, arguments.address, answer_lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("address")
    parser.add_argument("--server", type=server_of, action="append", required=True)
    parser.add_argument("--entries", type=int, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    runner: Any = importlib.import_module("uvloop") if given.uvloop else asyncio
    runner.run(main(given))
