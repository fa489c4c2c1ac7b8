"""One of several replicas does a job, and another takes over when it dies. No web framework.

python examples/plain.py n1 127.0.0.1:8001 data/n1
python examples/plain.py n2 127.0.0.1:8002 data/n2 http://127.0.0.1:8001
"""

import asyncio
import sys
from typing import BinaryIO

from rafthttp import FSM, BytesSnapshot, Listener, Log, Node


class Nothing(FSM):
    """No shared state: only the leader is wanted."""

    def apply(self, log: Log) -> None:
        """Nothing to apply."""

    def snapshot(self) -> BytesSnapshot:
        """Nothing to keep."""
        return BytesSnapshot(b"")

    def restore(self, source: BinaryIO) -> None:
        """Nothing to restore."""


async def job(name: str) -> None:
    """What only one replica may do at a time."""
    print(f"{name} works", flush=True)
    await asyncio.Event().wait()


async def main(name: str, address: str, data_dir: str, *join: str) -> None:
    """Run a replica until it is killed."""
    node = Node(name, address, fsm=Nothing(), data_dir=data_dir, bootstrap=not join, join=join)
    host, _, port = address.rpartition(":")
    work: asyncio.Task[None] | None = None
    async with node:
        assert node.handler is not None, "it is there while the node runs"
        async with Listener(node.handler, host, int(port)):
            async for leader in node.raft.leader_changes():
                if leader is not None and leader.id == name:
                    work = asyncio.create_task(job(name))
                elif work is not None:
                    work.cancel()
                    work = None


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
