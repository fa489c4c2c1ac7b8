"""Taking in a snapshot, from a leader played by hand over real wire bytes."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pytest

from rafthttp.raft.bootstrap import bootstrap_cluster
from rafthttp.raft.errors import PeerUnreachableError, RemoteError, StorageError, TransportError
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.snapshot_files import (
    PARTIAL_SUFFIX,
    FileSnapshotSink,
    FileSnapshotStore,
)
from rafthttp.raft.transport.inmem import InmemTransport
from rafthttp.raft.transport.memory import InmemNetwork
from rafthttp.raft.transport.snapshot_body import SnapshotBody
from rafthttp.raft.types import (
    Configuration,
    Index,
    Server,
    ServerAddress,
    ServerID,
    State,
)
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.records import InstallSnapshotRequest, Response, RPCHeader
from rafthttp.testing.cluster import Recorder, fast_config, until
from rafthttp.testing.played import PlayedLeader

HERE: Final = Server(ServerID("n1"), ServerAddress("n1:1"))
ALL: Final = Configuration(
    (HERE, *(Server(ServerID(i), ServerAddress(f"{i}:1")) for i in ("n2", "n3")))
)


class Gate(io.RawIOBase):
    """A file whose second half comes once it is let go."""

    def __init__(self, data: bytes, cut_at: int | None = None) -> None:
        self._data = data
        self._at = 0
        self._half = len(data) // 2
        self._cut_at = cut_at
        self.go = threading.Event()
        self.half_read = threading.Event()

    def read(self, size: int = -1, /) -> bytes:
        if self._at >= self._half:
            self.half_read.set()
            assert self.go.wait(30)
        limit = len(self._data) if self._cut_at is None else self._cut_at
        end = min(
            self._at + size,
            limit,
            max(self._half, self._at + 1 if self._at < self._half else limit),
        )
        data = self._data[self._at : end]
        self._at = end
        return data


class Follower:
    """One server of three, with a leader by hand."""

    def __init__(self, raft: Raft, fsm: Recorder, store: MemoryStore, files: Path) -> None:
        self.raft = raft
        self.fsm = fsm
        self.store = store
        self.files = files

    @property
    def kept(self) -> list[Index]:
        """Snapshots on disk, newest first; and no partial one besides."""
        whole = FileSnapshotStore(self.files).list()
        assert len(list(self.files.iterdir())) == len(whole)
        return [meta.index for meta in whole]

    async def nothing_partial(self) -> None:
        await until(lambda: all(p.suffix != PARTIAL_SUFFIX for p in self.files.iterdir()))


@asynccontextmanager
async def follower(
    tmp_path: Path, fsm: Recorder | None = None
) -> AsyncGenerator[tuple[Follower, PlayedLeader, PlayedLeader]]:
    network = InmemNetwork()
    fsm = fsm or Recorder()
    config = replace(
        fast_config("n1"), heartbeat_timeout=5.0, election_timeout=5.0, trailing_logs=100
    )
    store, files = MemoryStore(), tmp_path / "snapshots"
    await bootstrap_cluster(config, store, store, None, ALL)
    raft = await Raft.start(
        config, fsm, store, store, FileSnapshotStore(files), InmemTransport(network, HERE.address)
    )
    one, two = (PlayedLeader(network, server, HERE, ALL, 2) for server in ALL.servers[1:])
    try:
        yield Follower(raft, fsm, store, files), one, two
    finally:
        await raft.shutdown()
        await one.close()
        await two.close()


def state_of(*commands: bytes) -> bytes:
    return b"".join(len(c).to_bytes(4, "big") + c for c in commands)


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def test_a_snapshot_replaces_a_log_that_is_short_of_it(tmp_path: Path) -> None:
    """S45: the term is the leader's, not the snapshot's."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            leader.term = 7
            assert (await leader.append(1, 1, [b"a", b"b"])).success
            answer = await leader.install(50, 6, state_of(b"x", b"y"))
            assert (answer.success, answer.term) == (True, 7)
            assert here.fsm.data == [b"x", b"y"]
            assert (here.raft.applied_index, here.raft.last_index) == (50, 50)
            assert (here.store.first_index(), here.store.last_index()) == (51, 50)
            assert here.raft.current_term == 7
            assert here.kept == [50]
            assert (await leader.append(50, 6, [b"c"], 51)).success
            await until(lambda: here.fsm.data == [b"x", b"y", b"c"])

    run(test())


def test_an_old_snapshot_is_not_taken_and_the_state_left_alone(tmp_path: Path) -> None:
    """S39, S42: what it brings is applied already; its body is drained, and the answer comes."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            assert (await leader.append(1, 1, [b"a", b"b", b"c"], 4)).success
            await until(lambda: here.raft.applied_index == 4)
            answer = await leader.install(3, 2, state_of(b"never read") + bytes(8 << 20))
            assert answer.success
            assert here.fsm.data == [b"a", b"b", b"c"]
            assert not here.kept

    run(test())


def test_a_matching_suffix_is_kept(tmp_path: Path) -> None:
    """S40."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            assert (await leader.append(1, 1, [b"a", b"b", b"c", b"d"])).success
            assert (await leader.install(3, 2, state_of(b"a", b"b"))).success
            assert (here.raft.applied_index, here.raft.last_index) == (3, 5)
            assert here.store.last_index() == 5
            assert (await leader.append(5, 2, [b"e"], 6)).success
            await until(lambda: here.fsm.data == [b"a", b"b", b"c", b"d", b"e"])

    run(test())


def test_a_stream_that_is_cut_changes_nothing(tmp_path: Path) -> None:
    """S41: the old snapshot stays, the partial one is removed."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            assert (await leader.install(10, 2, state_of(b"old"))).success
            body = Gate(bytes(4 << 20), cut_at=3 << 20)
            sending = leader.install(20, 2, cast("BinaryIO", body), 4 << 20)
            await until(body.half_read.is_set)
            await until(lambda: here.raft.stats()["snapshot_receiving_bytes"] == 2 << 20)
            assert here.raft.stats()["snapshot_receiving_size"] == 4 << 20
            body.go.set()
            with pytest.raises(TransportError, match="short"):
                await sending
            await until(lambda: here.raft.stats()["snapshot_receiving_bytes"] is None)
            await here.nothing_partial()
            assert here.kept == [10]
            assert (here.fsm.data, here.raft.applied_index) == ([b"old"], 10)
            assert (await leader.install(20, 2, state_of(b"new"))).success
            assert here.kept == [20, 10]
            assert here.fsm.data == [b"new"]

    run(test())


@pytest.mark.parametrize("step", ["create", "write", "close"])
def test_a_full_disk_refuses_the_snapshot_and_nothing_else(tmp_path: Path, step: str) -> None:
    """The leader tries again later; entries go on meanwhile."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            full = StorageError("No space left on device")

            def fail(*args: object) -> None:
                raise full

            with pytest.MonkeyPatch.context() as patch:
                owner = FileSnapshotStore if step == "create" else FileSnapshotSink
                patch.setattr(owner, step, fail)
                assert not (await leader.install(10, 2, state_of(b"x"))).success
            assert (await leader.append(1, 1, [b"a"], 2)).success
            await until(lambda: here.fsm.data == [b"a"])
            await here.nothing_partial()
            assert not here.kept
            assert (await leader.install(10, 2, state_of(b"x"))).success

    run(test())


def test_a_leader_of_an_old_term_is_refused_at_once(tmp_path: Path) -> None:
    """S42: an early answer; nothing is written."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, old):
            leader.term = 5
            assert (await leader.heartbeat()).success
            answer = await old.install(10, 2, bytes(16 << 20))
            assert (answer.success, answer.term) == (False, 5)
            assert not here.kept

    run(test())


def test_what_no_leader_sends_closes_the_stream_or_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            with pytest.raises(RemoteError, match="unsupported snapshot version 9"):
                await leader.install(10, 2, b"x", snapshot_version=9)
            wrongs: tuple[dict[str, Any], ...] = (
                {"configuration": b"\xff"},
                {"configuration": encode_configuration(Configuration())},
                {"configuration_index": 11},
                {"last_log_index": 1 << 63},
            )
            for wrong in wrongs:
                with pytest.raises(PeerUnreachableError):
                    await leader.install(10, 2, b"x", **wrong)
            assert not (await leader.install(10, 3, b"x")).success, "from behind the leader's term"
            assert not here.kept
            assert (await leader.install(10, 2, state_of(b"fine"))).success

    run(test())


def test_entries_and_heartbeats_go_on_while_a_snapshot_streams(tmp_path: Path) -> None:
    """Also such as make it superfluous: then it is given up, and the state is left alone."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            body = Gate(bytes(2 << 20))
            sending = leader.install(4, 2, cast("BinaryIO", body), 2 << 20)
            await until(body.half_read.is_set)
            assert (await leader.heartbeat()).success
            assert (await leader.append(1, 1, [b"a", b"b", b"c", b"d"], 5)).success
            await until(lambda: here.raft.applied_index == 5)
            body.go.set()
            assert (await sending).success
            assert here.fsm.data == [b"a", b"b", b"c", b"d"]
            await here.nothing_partial()
            assert not here.kept

    run(test())


def test_a_newer_leader_during_the_transfer_makes_it_void(tmp_path: Path) -> None:
    """Votes are given meanwhile; what the old leader streams on does not count."""

    async def test() -> None:
        async with follower(tmp_path) as (here, old, new):
            assert (await old.append(1, 1, [b"a"])).success
            body = Gate(bytes(2 << 20))
            sending = old.install(40, 2, cast("BinaryIO", body), 2 << 20)
            await until(body.half_read.is_set)
            new.term = 3
            assert await new.vote(2, 2)
            assert (await new.append(2, 2, [b"b"], 3)).success
            body.go.set()
            answer = await sending
            assert (answer.success, answer.term) == (False, 3)
            await here.nothing_partial()
            assert not here.kept
            await until(lambda: here.fsm.data == [b"a", b"b"])
            assert (await new.install(50, 3, state_of(b"z"))).success
            assert here.fsm.data == [b"z"]

    run(test())


def test_a_second_snapshot_takes_the_place_of_one_that_still_streams(tmp_path: Path) -> None:
    """S43: a leader that sends again has given the first one up, or is another."""

    async def test() -> None:
        async with follower(tmp_path) as (here, leader, new):
            body = Gate(bytes(2 << 20))
            first = leader.install(40, 2, cast("BinaryIO", body), 2 << 20)
            await until(body.half_read.is_set)
            assert (await leader.install(40, 2, state_of(b"again"))).success
            body.go.set()
            assert not (await first).success
            new.term = 3
            assert (await new.install(60, 3, state_of(b"newer"))).success
            assert here.fsm.data == [b"newer"]
            await here.nothing_partial()
            assert here.kept == [60, 40]

    run(test())


class Answered:
    """Implements `InboundRpc`."""

    def __init__(self) -> None:
        self.response: Response | None = None

    def respond(self, response: Response) -> None:
        self.response = response

    def fail(self, text: str) -> None:
        raise AssertionError(text)


def test_one_that_gives_way_before_it_began_is_answered(tmp_path: Path) -> None:
    """Three in one pass of the loop: the second never runs, and its leader waits for a word."""

    async def test() -> None:
        async with follower(tmp_path) as (here, _, _):
            inbound = here.raft._driver.inbound  # pyright: ignore[reportPrivateUsage] # at once
            rpcs = [Answered(), Answered(), Answered()]
            for rpc in rpcs:
                body = SnapshotBody(len(state_of(b"one")), lambda: None)
                body.add(state_of(b"one"))
                inbound.on_install_snapshot(
                    InstallSnapshotRequest(
                        RPCHeader(id=ALL.servers[1].id, address=ALL.servers[1].address),
                        1,
                        2,
                        ALL.servers[1].address,
                        40,
                        2,
                        None,
                        encode_configuration(ALL),
                        1,
                        len(state_of(b"one")),
                    ),
                    body,
                    rpc,
                )
            await until(lambda: all(rpc.response is not None for rpc in rpcs))
            assert [cast("Any", rpc.response).success for rpc in rpcs] == [False, False, True]
            assert here.fsm.data == [b"one"]
            await here.nothing_partial()

    run(test())


class Slow(Recorder):
    """A state machine that takes its time to restore."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.begun = threading.Event()
        self.error: Exception | None = None

    def restore(self, source: BinaryIO) -> None:
        self.begun.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        super().restore(source)


def test_while_the_state_machine_restores_everything_else_goes_on(tmp_path: Path) -> None:
    """Entries are acknowledged, and applied behind it; a second snapshot is answered at once."""

    async def test() -> None:
        fsm = Slow()
        async with follower(tmp_path, fsm) as (here, leader, new):
            sending = leader.install(40, 2, state_of(b"x"))
            await until(fsm.begun.is_set)
            assert here.raft.applied_index == 0
            assert here.raft.commit_index == 40
            assert (await leader.heartbeat()).success
            assert (await leader.append(40, 2, [b"y"], 41)).success
            new.term = 3
            assert (await new.append(41, 2, [b"z"], 42)).success
            assert not (await new.install(50, 3, state_of(b"w"))).success
            assert not sending.done()
            assert fsm.data == []
            fsm.go.set()
            assert (await sending).success
            await until(lambda: fsm.data == [b"x", b"y", b"z"])
            assert (await new.install(50, 3, state_of(b"w"))).success

    run(test())


def test_a_state_machine_that_cannot_restore_stops_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log begins behind a state it does not have: it must not go on, nor look as if it had."""

    async def test() -> None:
        fsm = Slow()
        fsm.error = ValueError("of a newer version")
        fsm.go.set()
        async with follower(tmp_path, fsm) as (here, leader, _):
            with pytest.raises(TransportError):
                await leader.install(40, 2, state_of(b"x"))
            await until(lambda: here.raft.state is State.SHUTDOWN)
            assert "of a newer version" in str(here.raft.failure)

    run(test())
    assert "of a newer version" in caplog.text


def test_a_shutdown_during_an_install_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with follower(tmp_path) as (here, leader, _):
            body = Gate(bytes(2 << 20))
            sending = leader.install(40, 2, cast("BinaryIO", body), 2 << 20)
            await until(body.half_read.is_set)
            await here.raft.shutdown()
            body.go.set()
            with pytest.raises(TransportError):
                await sending
            assert not here.kept
            await until(
                lambda: not [t for t in threading.enumerate() if t.name == "rafthttp-install"]
            )

    run(test())


def test_a_shutdown_during_a_restore_ends_it(tmp_path: Path) -> None:
    """The snapshot counts: the next start begins from it."""

    async def test() -> None:
        fsm = Slow()
        async with follower(tmp_path, fsm) as (here, leader, _):
            sending = leader.install(40, 2, state_of(b"x"))
            await until(fsm.begun.is_set)
            stopping = asyncio.create_task(here.raft.shutdown())
            await until(lambda: here.raft.state is State.SHUTDOWN)
            fsm.go.set()
            await stopping
            with pytest.raises(TransportError):
                await sending
            assert here.kept == [40]
            assert fsm.data == []

    run(test())
