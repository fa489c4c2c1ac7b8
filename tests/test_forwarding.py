"""Forwards: bodies both ways, batches, and what every failure means to a client."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp import (
    DifferentLeaderError,
    EntryTooLargeError,
    ForwardError,
    Leader,
    LeadershipLostError,
    Outcome,
    OverloadedError,
    RaftError,
    RemoteApplyError,
    ServerAddress,
    ServerID,
    ShutdownError,
    TimedOutError,
    UnknownLeaderError,
)
from rafthttp import forwarding as fw

LEADER = Leader(ServerID("n1"), ServerAddress("127.0.0.1:1"))
OTHER = Leader(ServerID("n2"), ServerAddress("127.0.0.1:2"))

# What crosses msgpack and stays what it is.
RESULTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(commands=st.lists(st.binary(max_size=50)), milliseconds=st.integers(1, 3_600_000))
def test_commands_cross(commands: list[bytes], milliseconds: int) -> None:
    body = fw.encode_commands(commands, milliseconds / 1000)
    got, timeout = fw.decode_commands(body)
    assert got == commands
    assert timeout == pytest.approx(milliseconds / 1000, abs=0.002)


@given(st.lists(RESULTS, max_size=5))
def test_results_cross(results: list[Any]) -> None:
    assert fw.decode_answers(fw.encode_answers(results), len(results)) == results


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("kind", list(fw._KINDS.values()))
def test_errors_cross_with_outcome_and_leader(kind: type[RaftError], outcome: Outcome) -> None:
    sent = kind("why", outcome=outcome, leader=OTHER)
    (got,) = fw.decode_answers(fw.encode_answers([sent]), 1)
    assert type(got) is kind
    assert (str(got), got.outcome, got.leader) == ("why", outcome, OTHER)


def test_an_error_of_a_kind_of_its_own_crosses_as_its_nearest_known_one() -> None:
    sent = fw.ForwardRefusedError("no", leader=OTHER)
    (got,) = fw.decode_answers(fw.encode_answers([sent]), 1)
    assert type(got) is DifferentLeaderError


def test_an_exception_of_the_state_machine_crosses_as_text() -> None:
    (got,) = fw.decode_answers(fw.encode_answers([KeyError("k")]), 1)
    assert isinstance(got, RemoteApplyError)
    assert str(got) == "KeyError: 'k'"


class UntoldError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error",
    [UntoldError(), ValueError("\udcff"), LookupError("x" * (1 << 20))],
    ids=lambda e: type(e).__name__,
)
def test_an_error_with_an_odd_text_crosses(error: Exception) -> None:
    """The commands it came with are applied: their answers must cross with it."""
    body = fw.encode_answers([error, "fine"])
    got, fine = fw.decode_answers(body, 2)
    assert isinstance(got, RemoteApplyError)
    assert type(error).__name__ in str(got)
    assert fine == "fine"


@pytest.mark.parametrize("result", [object(), {1, 2}, 2**64, [lambda: 1]])
def test_a_result_that_cannot_cross_says_so_and_spares_its_neighbours(result: object) -> None:
    before, got, after = fw.decode_answers(fw.encode_answers([b"a", result, b"b"]), 3)
    assert (before, after) == (b"a", b"b")
    assert isinstance(got, RemoteApplyError)
    assert "cannot cross" in str(got)


def test_what_is_not_understood_is_not_known() -> None:
    body = msgpack.packb([1, [[2, "SomeNewError", "text", "perhaps", 7]]])
    (got,) = fw.decode_answers(body, 1)
    assert isinstance(got, ForwardError)
    assert (got.outcome, got.leader) == (Outcome.UNKNOWN, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb([]),
        msgpack.packb([2, 1000, [b""]]),
        msgpack.packb([1, 1000]),
        msgpack.packb([1, 0, [b""]]),
        msgpack.packb([1, True, [b""]]),
        msgpack.packb([1, 1 << 40, [b""]]),
        msgpack.packb([1, 1000, b"x"]),
        msgpack.packb([1, 1000, ["text"]]),
        msgpack.packb([1, 1000, [b"x"]]) + b"\x00",
    ],
)
def test_a_request_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(fw.ForwardFormatError):
        fw.decode_commands(body)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(fw.ForwardFormatError):
        fw.decode_commands(body)
    with contextlib.suppress(fw.ForwardFormatError):
        fw.decode_read_index(body)
    with contextlib.suppress(fw.ForwardFormatError):
        fw.decode_answers(body, 1)


@pytest.mark.parametrize("items", [[], [[0, 1], [0, 2]], [7], [[0]], [[9, "x"]], [[2, "a"]]])
def test_answers_of_another_count_or_form_are_refused(items: list[Any]) -> None:
    with pytest.raises(fw.ForwardFormatError):
        fw.decode_answers(msgpack.packb([1, items]), 1)


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (405, fw.ForwardRefusedError, Outcome.DEFINITE),
        (401, fw.ForwardRefusedError, Outcome.DEFINITE),
        (413, EntryTooLargeError, Outcome.DEFINITE),
        (503, ForwardError, Outcome.UNKNOWN),
        (500, ForwardError, Outcome.UNKNOWN),
        (502, ForwardError, Outcome.UNKNOWN),
        (504, ForwardError, Outcome.UNKNOWN),
        (204, ForwardError, Outcome.UNKNOWN),
    ],
)
def test_what_a_status_means(status: int, kind: type[RaftError], outcome: Outcome) -> None:
    with pytest.raises(kind) as caught:
        fw.raise_for_status(LEADER, status, "text")
    assert caught.value.outcome is outcome
    if status == 405:  # a Go leader's: definite, and it says where to go
        assert caught.value.leader == LEADER


def test_a_503_is_definite_when_the_member_itself_says_so() -> None:
    with pytest.raises(UnknownLeaderError) as caught:
        fw.raise_for_status(LEADER, 503, "closing", nothing_done=True)
    assert caught.value.outcome is Outcome.DEFINITE
    with pytest.raises(ForwardError):
        fw.raise_for_status(LEADER, 502, "a proxy's", nothing_done=True)


class FakeRaft:
    """The leader's server: answers each command as `results` says."""

    def __init__(self, results: dict[bytes, Any] | None = None, index: int | Exception = 7) -> None:
        self.results = results or {}
        self.index = index
        self.flushed = 0

    async def apply(self, data: bytes, *, timeout: float | None = None) -> Any:
        assert timeout is not None
        result = self.results[data]
        if isinstance(result, Exception):
            raise result
        return result

    async def confirm_read_index(self, *, timeout: float | None = None) -> int:
        assert timeout is not None
        if isinstance(self.index, Exception):
            raise self.index
        return self.index

    def flush_commit(self) -> None:
        self.flushed += 1


def test_the_leader_answers_each_command_for_itself() -> None:
    raft = FakeRaft({b"a": 1, b"b": LeadershipLostError("gone"), b"c": KeyError("c")})
    body = fw.encode_commands([b"a", b"b", b"c"], 1)
    answers = fw.decode_answers(asyncio.run(fw.answer(raft, fw.APPLY, body)), 3)
    assert answers[0] == 1
    assert isinstance(answers[1], LeadershipLostError)
    assert answers[1].outcome is Outcome.UNKNOWN
    assert isinstance(answers[2], RemoteApplyError)


def test_the_leader_answers_a_read_index_and_tells_the_follower_of_the_commit() -> None:
    raft = FakeRaft(index=42)
    body = asyncio.run(fw.answer(raft, fw.READ_INDEX, fw.encode_read_index(1)))
    assert fw.decode_index(LEADER, body) == 42
    assert raft.flushed == 1


def test_a_read_index_that_is_refused_is_an_error_on_the_other_side() -> None:
    raft = FakeRaft(index=DifferentLeaderError("not me", leader=OTHER))
    body = asyncio.run(fw.answer(raft, fw.READ_INDEX, fw.encode_read_index(1)))
    with pytest.raises(DifferentLeaderError) as caught:
        fw.decode_index(LEADER, body)
    assert caught.value.leader == OTHER
    assert raft.flushed == 0


@pytest.mark.parametrize("body", [b"\xc1", msgpack.packb([1, [[0, "7"]]])])
def test_a_read_index_that_is_none_is_a_forward_error(body: bytes) -> None:
    with pytest.raises(ForwardError):
        fw.decode_index(LEADER, body)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(fw.ForwardFormatError, match="nonsense"):
        asyncio.run(fw.answer(FakeRaft(), "nonsense", b""))


class Wire:
    """Stands for the way to the leader: records the batches, answers when told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[Leader, list[bytes]]] = []
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()
        self.error: Exception | None = None
        self.answer: Callable[[list[bytes]], bytes] = fw.encode_answers

    async def send(self, leader: Leader, body: bytes, timeout: float) -> bytes:
        commands, _ = fw.decode_commands(body)
        self.batches.append((leader, commands))
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer(commands)


def run_forwarder(
    scenario: Callable[[Wire, fw.Forwarder], Coroutine[Any, Any, None]],
    pending_bytes_max: int = 1 << 30,
) -> Wire:
    async def main() -> Wire:
        wire = Wire()
        forwarder = fw.Forwarder(wire.send, pending_bytes_max=pending_bytes_max)
        try:
            async with asyncio.timeout(10):
                await scenario(wire, forwarder)
        finally:
            await forwarder.close()
        return wire

    return asyncio.run(main())


def test_commands_of_one_turn_are_one_forward_in_order() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        wire.gate.set()
        data = [b"%d" % i for i in range(50)]
        assert await asyncio.gather(*(forwarder.apply(LEADER, d, 1) for d in data)) == data

    wire = run_forwarder(scenario)
    assert wire.batches == [(LEADER, [b"%d" % i for i in range(50)])]


def test_each_leader_gets_its_own() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        wire.gate.set()
        await asyncio.gather(forwarder.apply(LEADER, b"1", 1), forwarder.apply(OTHER, b"2", 1))

    assert run_forwarder(scenario).batches == [(LEADER, [b"1"]), (OTHER, [b"2"])]


def test_batches_are_bounded_by_bytes_and_a_large_command_goes_alone() -> None:
    big = b"x" * (fw.BATCH_SIZE_BYTES_MAX + 1)

    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        wire.gate.set()
        wire.answer = lambda commands: fw.encode_answers([len(c) for c in commands])
        half = b"h" * (fw.BATCH_SIZE_BYTES_MAX // 2)
        data = [half, half, half, big, b"small"]
        got = await asyncio.gather(*(forwarder.apply(LEADER, d, 1) for d in data))
        assert got == [len(d) for d in data]

    wire = run_forwarder(scenario)
    assert [len(commands) for _, commands in wire.batches] == [2, 1, 1, 1]


def test_what_comes_while_all_forwards_are_under_way_waits_and_goes_together() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        tasks: list[asyncio.Task[Any]] = []
        for i in range(fw.INFLIGHT_FORWARDS_MAX + 5):
            tasks.append(asyncio.create_task(forwarder.apply(LEADER, b"%d" % i, 5)))
            for _ in range(4):
                await asyncio.sleep(0)  # a turn of its own
        assert len(wire.batches) == fw.INFLIGHT_FORWARDS_MAX
        wire.gate.set()
        await asyncio.gather(*tasks)

    wire = run_forwarder(scenario)
    assert [len(c) for _, c in wire.batches] == [1] * fw.INFLIGHT_FORWARDS_MAX + [5]


def test_an_error_of_the_way_reaches_every_caller_with_its_outcome() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        wire.gate.set()
        wire.error = ForwardError("broken", outcome=Outcome.UNKNOWN, leader=LEADER)
        calls = [forwarder.apply(LEADER, b"x", 1) for _ in range(3)]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, ForwardError)
            assert error.outcome is Outcome.UNKNOWN

    assert len(run_forwarder(scenario).batches) == 1, "never sent twice"


def test_an_answer_that_cannot_be_read_is_unknown() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        wire.gate.set()
        wire.answer = lambda _: b"\xc1"
        with pytest.raises(ForwardError) as caught:
            await forwarder.apply(LEADER, b"x", 1)
        assert caught.value.outcome is Outcome.UNKNOWN

    run_forwarder(scenario)


def test_a_timeout_is_unknown_once_sent_and_definite_before() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        blockers: list[asyncio.Task[Any]] = []
        for _ in range(fw.INFLIGHT_FORWARDS_MAX):
            blockers.append(asyncio.create_task(forwarder.apply(LEADER, b"sent", 0.05)))
            for _ in range(4):
                await asyncio.sleep(0)
        with pytest.raises(TimedOutError) as caught:
            await forwarder.apply(LEADER, b"waits", 0.02)
        assert caught.value.outcome is Outcome.DEFINITE
        for error in await asyncio.gather(*blockers, return_exceptions=True):
            assert isinstance(error, TimedOutError)
            assert error.outcome is Outcome.UNKNOWN
        wire.gate.set()

    wire = run_forwarder(scenario)
    assert all(commands == [b"sent"] for _, commands in wire.batches), "it never left"


def test_too_many_bytes_are_refused_but_one_command_always_fits() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        first = asyncio.create_task(forwarder.apply(LEADER, b"x" * 200, 1))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await forwarder.apply(LEADER, b"y", 1)
        wire.gate.set()
        await first
        await forwarder.apply(LEADER, b"y", 1)

    run_forwarder(scenario, pending_bytes_max=100)


def test_closing_ends_what_is_under_way_as_unknown_and_what_waits_as_definite() -> None:
    async def scenario(wire: Wire, forwarder: fw.Forwarder) -> None:
        sent = asyncio.create_task(forwarder.apply(LEADER, b"sent", 5))
        await wire.asked.wait()
        waits = asyncio.create_task(forwarder.apply(LEADER, b"waits", 5))
        await asyncio.sleep(0)
        await forwarder.close()
        for task, outcome in ((sent, Outcome.UNKNOWN), (waits, Outcome.DEFINITE)):
            with pytest.raises(ShutdownError) as caught:
                await task
            assert caught.value.outcome is outcome

    assert [c for _, c in run_forwarder(scenario).batches] == [[b"sent"]]
