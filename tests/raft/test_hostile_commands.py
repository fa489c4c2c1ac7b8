"""Whatever the state machine makes of a command is an answer to who sent it, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rafthttp.raft.runtime.worker import Worker
from rafthttp.raft.types import Log
from rafthttp.sessions import envelope
from rafthttp.sessions.fsm import SessionFSM
from rafthttp.testing.cluster import Cluster, Recorder, in_loop, until


class UntoldError(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


FAILURES: dict[bytes, Exception] = {
    b"ended": StopIteration("the iterator is empty"),
    b"ended async": StopAsyncIteration(),
    b"untold": UntoldError(),
    b"timeout": TimeoutError(),
    b"recursion": RecursionError(),
    b"memory": MemoryError(),
    b"several": ExceptionGroup("two", [KeyError(1), ValueError(2)]),
    b"text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
}


class Moody(Recorder):
    """Fails as a command asks for."""

    def apply(self, log: Log) -> int:
        if log.data in FAILURES:
            raise FAILURES[log.data]
        return super().apply(log)


class Sessions(SessionFSM):
    """The same behind a table of sessions."""

    def __init__(self) -> None:
        super().__init__(Moody())


async def fail(leader: Any, command: bytes, name: bytes) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is asserted below
        await leader.apply(command, timeout=5.0)
    expected = RuntimeError if name == b"ended" else type(FAILURES[name])
    assert type(caught.value) is expected


@in_loop
async def test_no_failure_of_a_command_stops_a_replica() -> None:
    async with Cluster(3, make_fsm=Moody) as cluster:
        leader = await cluster.leader()
        for name in FAILURES:
            await fail(leader, name, name)
        count = await leader.apply(b"good")
        assert count == 1
        await cluster.converged()
        assert await cluster.leader() is leader


@in_loop
async def test_nor_does_one_that_is_remembered() -> None:
    async with Cluster(3, make_fsm=Sessions) as cluster:
        leader = await cluster.leader()
        for name in FAILURES:
            command = envelope.once(name, None, name)
            await fail(leader, command, name)
            with pytest.raises(Exception, match=r"Error|Iteration|Group"):
                await leader.apply(command, timeout=5.0)
        await leader.apply(b"good")
        await until(lambda: leader.applied_index == leader.last_index)
        assert await cluster.leader() is leader


@in_loop
async def test_a_worker_tells_of_every_failure() -> None:
    """A state machine's `restore` may end in `next()` of a snapshot cut short."""

    def ended() -> None:
        next(iter(()))

    worker = Worker("test")
    try:
        async with asyncio.timeout(5.0):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await worker.call(ended)
    finally:
        worker.finish()
        await worker.ended
