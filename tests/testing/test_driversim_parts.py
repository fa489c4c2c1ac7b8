"""What the simulator of whole servers stands on: its loop, its network, its disk. And mutants.

A checker that catches nothing is no checker: bugs are planted into driver, transport and sessions,
and each must be found within a few seeds.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from unittest import mock

import pytest

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.election import Campaign
from rafthttp.raft.core.server import Server
from rafthttp.raft.core.status import Status
from rafthttp.raft.errors import Outcome, StorageError, TimedOutError
from rafthttp.raft.raft import Raft
from rafthttp.raft.reading import RaftReads
from rafthttp.raft.runtime.disk import ThreadLane, _Write
from rafthttp.raft.transport.pipeline import Pipeline
from rafthttp.raft.types import LogWrite, ServerID, State
from rafthttp.sessions.client import OnceClient
from rafthttp.sessions.envelope import plain
from rafthttp.testing.driversim import (
    DeadlockError,
    Faults,
    LivelockError,
    VirtualLoop,
    VirtualNetwork,
    member,
    shrink_driver_seed,
    simulate_driver,
    simulate_driver_seeds,
    virtual_loop,
)
from rafthttp.testing.driversim.disk import Disk
from rafthttp.testing.driversim.loop import Life
from rafthttp.testing.driversim.machine import COMMAND
from rafthttp.testing.driversim.run import DriverCluster
from rafthttp.testing.invariants import InvariantError

# -- the loop


def test_time_jumps_to_the_next_timer() -> None:
    loop = virtual_loop()

    async def main() -> float:
        began = loop.time()
        async with asyncio.timeout(7200):
            await asyncio.sleep(3600)
        return loop.time() - began

    assert loop.run(main()) == pytest.approx(3600)
    loop.close()


def test_waiting_for_nothing_is_an_error() -> None:
    loop = virtual_loop()

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(DeadlockError):
        loop.run(main())
    loop.close()


def test_time_that_does_not_pass_is_an_error() -> None:
    loop = virtual_loop()

    async def main() -> None:
        while True:  # noqa: ASYNC110 - this is the defect
            await asyncio.sleep(0)

    with pytest.raises(LivelockError):
        loop.run(main())
    loop.close()


def test_there_are_no_sockets_and_no_threads() -> None:
    loop = virtual_loop()
    ran: list[bool] = []

    async def main() -> None:
        await asyncio.to_thread(ran.append, True)
        with pytest.raises(NotImplementedError):
            await loop.sock_accept(mock.Mock())

    loop.run(main())
    assert ran == [True]
    loop.close()


def test_a_killed_process_runs_nothing_more_and_a_paused_one_later() -> None:
    """S70: what was due meanwhile runs behind the pause; after a crash not even a `finally`."""
    loop = virtual_loop()
    done: list[tuple[str, float]] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(1)
        finally:
            done.append((name, round(loop.now - 1000, 3)))

    async def main() -> None:
        paused, killed = Life("paused", "1"), Life("killed", "2")
        tasks = [loop.create_task(work(x.name), context=x.context) for x in (paused, killed)]
        await asyncio.sleep(0.5)
        loop.pause(paused)
        loop.kill(killed)
        await asyncio.sleep(4.5)
        assert not done
        loop.resume(paused)
        await tasks[0]

    loop.run(main())
    assert done == [("paused", 5.0)]
    loop.close()


# -- the network


class _End(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.lost: list[Exception | None] = []
        self.paused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.paused -= 1


class _Pair:
    """Two hosts, and a connection between them."""

    def __init__(self) -> None:
        self.loop: VirtualLoop = virtual_loop()
        self.network = VirtualNetwork(self.loop, random.Random(1), lambda _: None)
        self.one, self.two = Life("one", "1"), Life("two", "2")
        self.far = _End()

    async def connect(self) -> _End:
        loop = self.loop
        await loop.create_task(
            loop.create_server(lambda: self.far, "2", 80), context=self.two.context
        )
        dial: Any = loop.create_connection(_End, "2", 80)
        _, near = await loop.create_task(dial, context=self.one.context)
        assert isinstance(near, _End)
        return near


def test_bytes_are_cut_anywhere_and_arrive_in_order() -> None:
    """S24: with a small window they wait for the reader, and the writer is told."""
    pair = _Pair()
    pair.network.cuts, pair.network.window_bytes = "mixed", 4096
    sent = random.Random(2).randbytes(200_000)

    async def main() -> None:
        near = await pair.connect()
        await asyncio.sleep(1)
        pair.far.transport.pause_reading()
        near.transport.write(sent)
        await asyncio.sleep(1)
        assert near.paused == 1
        assert pair.far.pieces == []
        pair.far.transport.resume_reading()
        await asyncio.sleep(60)
        assert near.paused == 0

    pair.loop.run(main())
    assert b"".join(pair.far.pieces) == sent
    assert len(pair.far.pieces) > 50
    pair.loop.close()


def test_what_a_partition_holds_back_arrives_after_it() -> None:
    pair = _Pair()

    async def main() -> None:
        near = await pair.connect()
        pair.network.blocked = {("1", "2")}
        near.transport.write(b"late")
        pair.far.transport.write(b"the other way is open")
        await asyncio.sleep(30)
        assert pair.far.pieces == []
        assert near.pieces == [b"the other way is open"]
        pair.network.blocked = set()
        pair.network.check()
        await asyncio.sleep(1)

    pair.loop.run(main())
    assert pair.far.pieces == [b"late"]
    pair.loop.close()


@pytest.mark.parametrize("silent", [False, True])
def test_a_process_ends_with_a_reset_and_a_machine_without_a_word(silent: bool) -> None:
    pair = _Pair()

    async def main() -> None:
        near = await pair.connect()
        await asyncio.sleep(1)
        pair.loop.kill(pair.two)
        if silent:
            pair.network.dark.add("2")
        pair.network.crash(pair.two, silent=silent)
        await asyncio.sleep(3600)
        assert bool(near.lost) is not silent
        pair.network.dark.clear()
        near.transport.write(b"anybody there?")
        await asyncio.sleep(1)
        assert [type(error) for error in near.lost] == [ConnectionResetError]

    pair.loop.run(main())
    assert pair.far.lost == []
    pair.loop.close()


def test_a_half_open_stream_says_nothing() -> None:
    pair = _Pair()

    async def main() -> None:
        near = await pair.connect()
        await asyncio.sleep(1)
        pair.network.mute(pair.network.live_ends("1", "2")[0])
        near.transport.write(b"lost")
        pair.far.transport.write(b"lost")
        await asyncio.sleep(3600)
        assert near.pieces == pair.far.pieces == []
        assert near.lost == pair.far.lost == []

    pair.loop.run(main())
    pair.loop.close()


# -- the disk


def test_a_failed_write_poisons_the_store_until_it_is_opened_again() -> None:
    """S6: nothing is known of what is on disk, and a second try must not look like success."""
    loop = virtual_loop()
    outcomes: set[bytes | None] = set()
    for seed in range(20):
        disk = Disk(loop, random.Random(seed), mock.MagicMock())
        disk.fails_next = "eio"
        for _ in range(2):
            with pytest.raises(StorageError):
                disk.store.write([LogWrite(stable={b"k": b"v"})])
        disk.forget()
        outcomes.add(disk.store.get(b"k"))
        disk.store.write([LogWrite(stable={b"k": b"w"})])
        assert disk.store.get(b"k") == b"w"
    assert outcomes == {None, b"v"}
    loop.close()


# -- bugs, planted


def _submit_early(self: ThreadLane, seq: int, write: LogWrite) -> bool:
    self._jobs.put(_Write(seq, write))
    return True


_within = Raft._within


async def _timeouts_are_definite(self: Raft, future: Any, timeout: float | None) -> Any:
    try:
        return await _within(self, future, timeout)
    except TimedOutError as error:
        raise TimedOutError("late", outcome=Outcome.DEFINITE) from error


async def _read_without_a_quorum(self: RaftReads, _: float | None) -> int:
    self._driver.check_leads()
    return self.commit_index


async def _repeat_without_a_session(self: OnceClient, command: bytes, timeout: float) -> Any:
    return await self._send(plain(command), timeout)


def _deaf(self: Pipeline, _: Exception) -> None:
    del self


_crash = Disk.crash


def _forget_the_newest(self: Disk) -> None:
    """A disk that had said it is durable."""
    store = self.store
    del store._records[-1:], store._terms[-1:]
    _crash(self)


def _open_anyhow(_: Disk) -> None:
    pass


_apply = Raft.apply


async def _answer_unasked(self: Raft, data: bytes, *, timeout: float | None = None) -> Any:
    _, value = COMMAND.unpack_from(data)
    return value if value % 8 == 7 else await _apply(self, data, timeout=timeout)


def _one_vote_less(self: Campaign, server: Server) -> bool:
    votes = sum(voter in self.granted for voter in server.members.voters)
    return votes >= server.members.quorum - 1


_enter_term = Server.enter_term


def _jump(self: Server, term: int, vote: ServerID | None) -> None:
    _enter_term(self, term + 200 * (vote == self.local_id), vote)


_on_persisted = Consensus.on_persisted


def _cut_its_own(self: Consensus, seq: int, now_ns: int) -> Any:
    more = _on_persisted(self, seq, now_ns)
    log = self._server.log
    if self.state is State.LEADER and log.last_index > max(self.commit_index, 3):
        log.truncate_from(log.last_index)
    return more


def _commit_less(self: Status) -> int:
    return max(self._server.commit_index - 1, 0)


def _change_at_any_time(self: Status) -> bool:
    return self.accepts_proposals


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("found", "kind", "faults", "owner", "name", "mutant"),
    [
        ("durable commit", "raft", None, ThreadLane, "submit", _submit_early),
        ("durable commit", "node", None, ThreadLane, "submit", _submit_early),
        ("durable commit", "raft", None, Disk, "crash", _forget_the_newest),
        ("durable commit", "node", None, Disk, "crash", _forget_the_newest),
        ("flip", "node", Faults(flip_rate=3), member, "check_whole", _open_anyhow),
        ("acknowledged", "raft", None, Raft, "apply", _answer_unasked),
        ("errors", "raft", Faults(hung_fsync_rate=10), Raft, "_within", _timeouts_are_definite),
        (
            "linearizable",
            "raft",
            Faults(clog_rate=6, transfer_rate=15),
            RaftReads,
            "_confirm_by_round",
            _read_without_a_quorum,
        ),
        (
            "applied once",
            "node",
            Faults(reset_rate=20, hung_fsync_rate=4, transfer_rate=8),
            OnceClient,
            "_apply_numbered",
            _repeat_without_a_session,
        ),
        ("healed", "raft", Faults(reset_rate=20), Pipeline, "fail", _deaf),
        ("election safety", None, None, Campaign, "is_won", _one_vote_less),
        ("bounded", None, None, Server, "enter_term", _jump),
        ("leader append-only", None, None, Consensus, "on_persisted", _cut_its_own),
        ("order", None, None, Status, "commit_index", property(_commit_less)),
        (
            "configurations",
            None,
            None,
            Status,
            "can_change_configuration",
            property(_change_at_any_time),
        ),
    ],
)
def test_a_planted_bug_is_found(
    found: str, kind: str | None, faults: Faults | None, owner: object, name: str, mutant: object
) -> None:
    """Within twenty seeds; without it they pass (see the other file)."""
    said: list[str] = []
    with mock.patch.object(owner, name, mutant):
        for seed in range(20):
            try:
                simulate_driver(seed, faults, kind=kind)
            except AssertionError as error:
                said.append(str(error))
                if said[-1].startswith(found):
                    return
    raise AssertionError(f"{found} was not said, but {said}")


def _break(*_: Any) -> None:
    raise RuntimeError("broken")


def test_any_error_says_how_to_repeat_it_and_costs_no_other_seed() -> None:
    with mock.patch.object(DriverCluster, "_check_kept", _break):
        with pytest.raises(RuntimeError) as caught:
            simulate_driver(0, Faults(crash_rate=9), kind="raft")
        report = simulate_driver_seeds(range(2))
    (note,) = caught.value.__notes__
    assert note.endswith("simulate_driver(0, Faults(crash_rate=9), kind='raft')")
    assert report.runs == 2
    assert report.failures == [(0, "RuntimeError: broken"), (1, "RuntimeError: broken")]


def test_a_failure_shrinks_to_the_fault_that_matters() -> None:
    """Here a crash, of which there are several kinds."""
    with mock.patch.object(Disk, "crash", _break):
        seed = simulate_driver_seeds(range(10)).failures[0].seed
        small = shrink_driver_seed(seed)
        assert len(small.faults.kinds()) == 1
        assert "broken" in small.text
        names: dict[str, Any] = {"simulate_driver": simulate_driver, "Faults": Faults}
        exec(small.test, names)  # as it would stand in a test
        with pytest.raises(InvariantError, match="broken"):
            names[f"test_seed_{small.seed}"]()
    with pytest.raises(ValueError, match="does not fail"):
        shrink_driver_seed(seed)
