"""Readers on a follower, and what they are told at the end."""

import asyncio

import pytest

from rafthttp.raft.errors import ShutdownError
from rafthttp.raft.runtime.reads import FollowerReads
from rafthttp.raft.types import Index, Leader, ServerAddress, ServerID

LEADER = Leader(ServerID("n1"), ServerAddress("127.0.0.1:1"))


def test_a_close_fails_also_the_reader_whose_forward_is_under_way() -> None:
    """It is told so; a CancelledError would look as if its own task had been cancelled."""

    async def main() -> None:
        asked = asyncio.Event()

        async def forward(leader: Leader, timeout: float) -> Index:
            del leader, timeout
            asked.set()
            never: asyncio.Future[Index] = asyncio.get_running_loop().create_future()
            return await never

        reads = FollowerReads(forward)
        first = asyncio.create_task(reads.get(lambda: LEADER, 1.0))
        await asked.wait()
        second = asyncio.create_task(reads.get(lambda: LEADER, 1.0))
        await asyncio.sleep(0)
        reads.close(ShutdownError("over"))
        for reader in (first, second):
            with pytest.raises(ShutdownError, match="over"):
                await asyncio.wait_for(reader, 5)

    asyncio.run(main())
