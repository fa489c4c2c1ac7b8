"""`SessionFSM` under a real `Raft`: time that the log tells, snapshots, restarts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rafthttp import (
    Config,
    Configuration,
    FileSnapshotStore,
    InmemNetwork,
    InmemTransport,
    Raft,
    RemoteApplyError,
    Server,
    ServerAddress,
    ServerID,
    SessionExpiredError,
    SessionFSM,
    SessionRequest,
    SqliteStore,
    State,
    bootstrap_cluster,
    has_existing_state,
)
from rafthttp.sessions import envelope
from rafthttp.testing.nodes import until

NAME = ServerID("n1")
ID = b"s" * 16
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns


@asynccontextmanager
async def server(directory: Path, fsm: SessionFSM, clock: Clock) -> AsyncGenerator[Raft]:
    """One that leads alone; its snapshots leave nothing of the log behind."""
    config = Config(
        NAME,
        heartbeat_timeout=0.02,
        election_timeout=0.02,
        leader_lease_timeout=0.02,
        trailing_logs=0,
    )
    store = SqliteStore.open(directory, NAME)
    snapshots = FileSnapshotStore(directory)
    transport = InmemTransport(InmemNetwork(), ServerAddress("n1"))
    if not has_existing_state(store, store, snapshots):
        alone = Configuration((Server(NAME, ServerAddress("n1")),))
        await bootstrap_cluster(config, store, store, snapshots, alone)
    raft = await Raft.start(config, fsm, store, store, snapshots, transport, wall_ns=clock)
    try:
        await until(lambda: raft.state is State.LEADER, "it leads")
        await raft.barrier()
        yield raft
    finally:
        await raft.shutdown()


def request(sequence: int, value: Any = None) -> bytes:
    return envelope.numbered(SessionRequest(ID, sequence, 1), msgpack.packb(value))


def test_answers_outlive_a_snapshot_and_a_restart(new_replica: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with server(tmp_path, new_replica().fsm, clock) as raft:
            await raft.apply(envelope.opening(ID))
            assert await raft.apply(request(1, "one")) == "one"
            with pytest.raises(KeyError):
                await raft.apply(envelope.once("key", None, b"raise"))
            await raft.snapshot()
            assert await raft.apply(request(2, "two")) == "two"
        replica = new_replica()
        async with server(tmp_path, replica.fsm, clock) as raft:
            assert await raft.apply(request(1)) == "one"
            assert await raft.apply(request(2)) == "two"
            with pytest.raises(RemoteApplyError, match="KeyError: 'raise'"):
                await raft.apply(envelope.once("key", None, b"raise"))
            assert len(replica.inner.commands) == 3

    asyncio.run(scenario())


def test_a_session_expires_by_the_leaders_stamps(new_replica: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        clock, replica = Clock(), new_replica()
        async with server(tmp_path, replica.fsm, clock) as raft:
            await raft.apply(envelope.opening(ID))
            assert await raft.apply(request(1, "one")) == "one"
            clock.now_ns += 365 * 86400 * SECOND  # a leap: a minute, no more
            assert await raft.apply(request(1)) == "one"
            for number in range(62):
                clock.now_ns += 60 * SECOND
                await raft.apply(envelope.once(f"key {number}", None, msgpack.packb(None)))
            with pytest.raises(SessionExpiredError):
                await raft.apply(request(1))
            assert len(replica.inner.commands) == 63

    asyncio.run(scenario())
