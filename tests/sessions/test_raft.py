"""`SessionFSM` under a real `Raft`: time that the log tells, snapshots, restarts."""

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import pytest

from rafthttp import (
    FSM,
    BytesSnapshot,
    Config,
    Configuration,
    FileSnapshotStore,
    InmemNetwork,
    InmemTransport,
    Log,
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
# Its snapshots leave nothing of the log behind.
CONFIG = Config(
    NAME,
    heartbeat_timeout=0.02,
    election_timeout=0.02,
    leader_lease_timeout=0.02,
    trailing_logs=0,
)


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns


@asynccontextmanager
async def server(
    directory: Path, fsm: SessionFSM, clock: Clock, config: Config = CONFIG
) -> AsyncGenerator[Raft]:
    """One that leads alone."""
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


class Durable(FSM):
    """Keeps its state itself: the object outlives the server. An entry it has is not applied."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.answers: dict[int, int] = {}
        self.restored: list[bytes] = []

    def apply(self, log: Log) -> int:
        if log.index not in self.answers:
            self.commands.append(log.data)
            self.answers[log.index] = len(self.commands)
        return self.answers[log.index]

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"".join(self.commands))

    def restore(self, source: BinaryIO) -> None:
        self.restored.append(source.read())


def image(fsm: SessionFSM) -> bytes:
    sink = io.BytesIO()
    fsm.snapshot().persist(sink)
    return sink.getvalue()


def test_what_the_state_machine_keeps_itself_is_not_restored_and_the_table_is(
    tmp_path: Path,
) -> None:
    """`no_snapshot_restore_on_start`: else a replica that was restarted would apply twice."""

    async def scenario() -> None:
        clock, inner = Clock(), Durable()
        config = replace(CONFIG, no_snapshot_restore_on_start=True)
        pay, behind = envelope.once("key-1", None, b"pay"), envelope.once("key-2", None, b"more")
        fsm = SessionFSM(inner)
        async with server(tmp_path, fsm, clock, config) as raft:
            await raft.apply(envelope.opening(ID))
            assert await raft.apply(pay) == 1
            assert await raft.apply(request(1)) == 2
            await raft.snapshot()
            assert await raft.apply(behind) == 3
        before = image(fsm)
        for _ in range(2):
            fsm = SessionFSM(inner)
            async with server(tmp_path, fsm, clock, config) as raft:
                assert image(fsm) == before
                assert await raft.apply(pay) == 1
                assert await raft.apply(request(1)) == 2
                assert await raft.apply(behind) == 3
                assert inner.commands == [b"pay", msgpack.packb(None), b"more"]
                assert not inner.restored
        # Without the option both are.
        async with server(tmp_path, SessionFSM(inner), clock):
            assert inner.restored == [b"pay" + msgpack.packb(None)]

    asyncio.run(scenario())
