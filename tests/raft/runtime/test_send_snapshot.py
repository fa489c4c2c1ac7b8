"""Sending a snapshot: when a transfer that does not move is given up."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.raft.errors import TransportError
from rafthttp.raft.runtime import send_snapshot
from rafthttp.raft.runtime.snapshot_bytes import Progress
from rafthttp.raft.wire.records import InstallSnapshotResponse, RPCHeader


def test_a_peer_that_takes_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that moves, however slowly, nor one that has it all and still restores it."""
    monkeypatch.setattr(send_snapshot, "_STALLED_S", 0.02)
    response = InstallSnapshotResponse(RPCHeader(), 1, success=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        progress = Progress(7, 10)
        answer: asyncio.Future[InstallSnapshotResponse] = loop.create_future()

        async def sending() -> InstallSnapshotResponse:
            return await answer

        task = loop.create_task(sending())
        watching = loop.create_task(send_snapshot._while_moving(task, progress))
        for _ in range(10):
            progress.passed(1)
            await asyncio.wait({watching}, timeout=0.015)
            assert not watching.done()
        await asyncio.wait({watching}, timeout=0.1)
        assert not watching.done()
        answer.set_result(response)
        assert await watching == response

        answer = loop.create_future()
        never = loop.create_task(sending())
        stalled = Progress(7, 10)
        stalled.passed(9)
        with pytest.raises(TransportError, match="nothing was taken"):
            await send_snapshot._while_moving(never, stalled)
        never.cancel()

    asyncio.run(run())
