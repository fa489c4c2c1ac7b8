"""One member of ours whose snapshot is as large as it is told to be: a process of its own.

    python -m bench.peers.blob_node ID ADDRESS --data DIR --blob-bytes N [--bootstrap] [--uvloop]

The state machine holds nothing of it in memory, so that what a transfer needs can be seen: it
writes its snapshot by the MiB, and reads the one it is restored from by the 256 KiB. It keeps no
log behind a snapshot. Answers each line on its standard input, one JSON object, with one:
`{"snapshot": true}` applies a command and takes a snapshot, `{"add": [ID, ADDRESS]}` adds a member
without a vote, and every answer tells how this one is.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, Final

from bench.peers.ours_node import served

from rafthttp import FSM, Config, Log, Node, ServerAddress, ServerID

PIECE_BYTES: Final = 1 << 20
READ_BYTES: Final = 256 << 10
TIMEOUT_SECONDS: Final = 60.0


class Blob(FSM):
    """So many bytes (also its own snapshot)."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def apply(self, log: Log) -> int:
        """Nothing changes (`FSM`)."""
        return log.index

    def snapshot(self) -> Blob:
        """Nothing changes (`FSM`)."""
        return self

    def persist(self, sink: BinaryIO) -> None:
        """Numbered pieces of bytes that do not repeat within one (`FSMSnapshot`)."""
        piece = bytearray(Random(1).randbytes(min(PIECE_BYTES, self._size_bytes)))
        for number, at in enumerate(range(0, self._size_bytes, PIECE_BYTES)):
            piece[:8] = number.to_bytes(8, "big")
            sink.write(bytes(piece[: self._size_bytes - at]))

    def release(self) -> None:
        """Nothing is held (`FSMSnapshot`)."""

    def restore(self, source: BinaryIO) -> None:
        """Read it all, and drop it (`FSM`)."""
        while source.read(READ_BYTES):
            pass


async def act(node: Node, asked: dict[str, Any]) -> None:
    """Do what a line asks for."""
    if asked.get("snapshot"):
        await node.raft.apply(b"x", timeout=TIMEOUT_SECONDS)
        await node.raft.snapshot(timeout=TIMEOUT_SECONDS)
    if "add" in asked:
        new, address = asked["add"]
        await node.raft.add_nonvoter(ServerID(new), ServerAddress(address), timeout=TIMEOUT_SECONDS)


async def answer_lines(node: Node) -> None:
    """Do what standard input asks for until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await act(node, json.loads(line))
        leader = node.leader
        answer = {
            "leads": leader is not None and leader.id == node.id,
            "term": node.raft.current_term,
            "applied": node.raft.applied_index,
            "snapshot_index": node.raft.stats()["last_snapshot_index"],
        }
        print(json.dumps(answer), flush=True)


async def main(arguments: argparse.Namespace) -> None:
    """Run until standard input ends."""
    node = Node(
        arguments.id,
        arguments.address,
        fsm=Blob(arguments.blob_bytes),
        data_dir=arguments.data,
        bootstrap=arguments.bootstrap,
        config=Config(arguments.id, trailing_logs=0),
    )
    await served(node, arguments.address, answer_lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("address")
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--blob-bytes", type=int, required=True)
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    runner: Any = importlib.import_module("uvloop") if given.uvloop else asyncio
    runner.run(main(given))
