"""Commands that are applied once, on real sockets: lost answers, leaders that go, restarts."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import pytest
from starlette.applications import Starlette

from rafthttp import (
    FSM,
    BytesSnapshot,
    ClientSession,
    Config,
    ConfigError,
    EntryTooLargeError,
    Log,
    Node,
    Outcome,
    RaftError,
    RemoteApplyError,
    RequestReusedError,
    ServerID,
    SessionExpiredError,
    SessionRequest,
    State,
    TimedOutError,
)
from rafthttp.sessions import envelope
from rafthttp.testing.lossy import LossyRelay, relayed
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


class Counting(FSM):
    """Appends each command; answers how many there are now."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, log: Log) -> int:
        self.commands.append(log.data)
        if log.data == b"raise":
            raise KeyError("asked to")
        return len(self.commands)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(msgpack.packb(self.commands))

    def restore(self, source: BinaryIO) -> None:
        self.commands = msgpack.unpackb(source.read())


@dataclass
class Member:
    """A node that the others reach through a relay."""

    node: Node
    fsm: Counting
    relay: LossyRelay
    stack: AsyncExitStack


@asynccontextmanager
async def cluster(size: int = 3, *, sessions: bool = True) -> AsyncGenerator[list[Member]]:
    """Members in one event loop; the first leads."""
    members: list[Member] = []
    async with AsyncExitStack() as all_of_them:
        for number in range(1, size + 1):
            stack = await all_of_them.enter_async_context(AsyncExitStack())
            listener, outer = loopback_listener(), loopback_listener()
            relay = await stack.enter_async_context(relayed(outer, address_of(listener)))
            fsm, node_id = Counting(), f"n{number}"
            node = Node(
                node_id,
                address_of(outer),
                fsm=fsm,
                config=Config(
                    ServerID(node_id),
                    heartbeat_timeout=0.3,
                    election_timeout=0.3,
                    leader_lease_timeout=0.2,
                ),
                bootstrap=number == 1,
                join=[members[0].node.address] if members else [],
                sessions=sessions,
            )
            app = Starlette(lifespan=node.lifespan)
            node.mount(app)
            await stack.enter_async_context(served(app, listener))
            members.append(Member(node, fsm, relay, stack))
        await until(lambda: all(_is_whole(member.node, size) for member in members), "all vote")
        yield members


def _is_whole(node: Node, size: int) -> bool:
    voters = node.raft.get_configuration().configuration.voters
    return len(voters) == size and node.leader is not None and not node.joining


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(40):
            await scenario()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "a task outlives the node"

    asyncio.run(main())


def _leads(node: Node) -> bool:
    return node.leader is not None and node.raft.state is State.LEADER


async def applied(members: list[Member]) -> list[bytes]:
    """What every one of them has applied, once that is the same."""
    goal = max(member.node.raft.last_index for member in members)
    await until(lambda: all(m.node.raft.applied_index >= goal for m in members), "all is applied")
    commands = members[0].fsm.commands
    assert all(member.fsm.commands == commands for member in members)
    return commands


def test_without_sessions_a_lost_answer_is_unknown_and_a_repeat_applied_twice() -> None:
    """What the option is for."""

    async def scenario() -> None:
        async with cluster(sessions=False) as members:
            leader, follower = members[0], members[1].node
            leader.relay.lose(1)
            with pytest.raises(RaftError) as caught:
                await follower.apply(b"a")
            assert caught.value.outcome is Outcome.UNKNOWN
            assert leader.relay.lost == 1
            assert await follower.apply(b"a") == 2
            assert await applied(members) == [b"a", b"a"]

    run(scenario)


def test_a_lost_answer_is_asked_for_again_and_the_command_applied_once() -> None:
    """The same, with the option on."""

    async def scenario() -> None:
        async with cluster() as members:
            leader, follower = members[0], members[1].node
            assert await follower.apply(b"first") == 1
            leader.relay.lose(3)
            assert await follower.apply(b"a") == 2
            leader.relay.lose(2)
            assert await follower.apply(b"a", request_id="key") == 3
            assert leader.relay.lost == 5
            answers = await asyncio.gather(*(follower.apply(b"b") for _ in range(100)))
            assert sorted(answers) == list(range(4, 104))
            assert Counter(await applied(members)) == {b"first": 1, b"a": 2, b"b": 100}

    run(scenario)


def test_an_answer_lost_while_the_session_is_opened_opens_another() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            leader, follower = members[0], members[1].node
            leader.relay.lose(2)
            assert await follower.apply(b"a") == 1
            assert await applied(members) == [b"a"]

    run(scenario)


def test_what_is_unknown_at_the_deadline_says_so_and_is_applied_once() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            leader, follower = members[0], members[1].node
            await follower.apply(b"first")
            leader.relay.lose(1_000_000)
            with pytest.raises(TimedOutError, match="not done within 1 s") as caught:
                await follower.apply(b"a", timeout=1.0)
            assert caught.value.outcome is Outcome.UNKNOWN
            assert leader.relay.lost > 1
            leader.relay.lose(0)
            assert await follower.apply(b"b") == 3
            assert await applied(members) == [b"first", b"a", b"b"]

    run(scenario)


def test_64_clients_while_leaders_go_lose_nothing_and_know_everything() -> None:
    """S35 with sessions: no outcome is unknown, whatever becomes of the leader."""

    async def scenario() -> None:
        async with cluster(5) as members:
            names: list[bytes] = []
            nodes = [member.node for member in members[2:]]
            calm = asyncio.Event()

            async def client(number: int) -> None:
                while not calm.is_set():
                    name = f"{number}-{len(names)}".encode()
                    names.append(name)
                    await nodes[number % len(nodes)].apply(name, timeout=20.0)

            async def disturb() -> None:
                counted = members[4].fsm.commands
                for member in members[:2]:
                    leader = next(m for m in members if _leads(m.node))
                    if leader is not member:
                        await leader.node.leadership_transfer(member.node.id)
                    before = len(counted)
                    await until(lambda b=before: len(counted) > b + 50, "writes go on")  # type: ignore[misc] # mypy infers no lambda with defaults
                    member.relay.lose(20)
                    await until(lambda m=member: m.relay.lost > 0, "some answers are lost")  # type: ignore[misc] # likewise
                    await member.node.stop(hand_over=0)
                    await until(lambda: any(_leads(m.node) for m in members), "another leads")
                calm.set()

            async with asyncio.TaskGroup() as group:
                group.create_task(disturb())
                for number in range(64):
                    group.create_task(client(number))
            assert Counter(await applied(members[2:])) == Counter(names)

    run(scenario)


def test_a_key_is_known_on_every_node() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            nodes = [member.node for member in members]
            calls = [node.apply(b"a", request_id="key") for node in nodes for _ in range(5)]
            assert await asyncio.gather(*calls) == [1] * 15
            assert await nodes[0].apply(b"b", request_id=b"other") == 2
            assert await applied(members) == [b"a", b"b"]

    run(scenario)


def test_a_key_is_known_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        for answers in ([1, 2], [1, 3]):
            fsm = Counting()
            node = Node("n1", "h:1", fsm=fsm, data_dir=tmp_path, bootstrap=True, sessions=True)
            async with node:
                assert await node.apply(b"a", request_id="key") == answers[0]
                assert await node.apply(b"b") == answers[1]
        assert fsm.commands == [b"a", b"b", b"b"]

    run(scenario)


def test_another_request_under_the_same_key_is_refused_wherever_it_comes() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            leader, follower = members[0].node, members[1].node
            assert await follower.apply(b"a", request_id="key", request_payload=b"one") == 1
            for node in (leader, follower):
                assert await node.apply(b"b", request_id="key", request_payload=b"one") == 1
                with pytest.raises(RequestReusedError) as caught:
                    await node.apply(b"b", request_id="key", request_payload=b"two")
                assert caught.value.outcome is Outcome.DEFINITE
            assert await applied(members) == [b"a"]

    run(scenario)


def test_an_exception_is_remembered_too() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            with pytest.raises(KeyError):
                await members[0].node.apply(b"raise", request_id="key")
            for member in members:
                with pytest.raises(RemoteApplyError, match="KeyError: 'asked to'"):
                    await member.node.apply(b"raise", request_id="key")
            assert await applied(members) == [b"raise"]

    run(scenario)


def test_a_client_of_the_application_numbers_its_requests_itself() -> None:
    async def scenario() -> None:
        async with cluster() as members:
            leader, follower = members[0].node, members[1].node
            session = await follower.open_session()
            one, two = session.begin(), session.begin()
            assert await leader.apply(b"two", request_id=two) == 1
            assert await follower.apply(b"one", request_id=one) == 2
            assert await follower.apply(b"two", request_id=two) == 1
            session.end(one)
            session.end(two)
            assert session.begin() == SessionRequest(session.key, 3, 3)
            for node in (leader, follower):
                with pytest.raises(SessionExpiredError) as caught:
                    await node.apply(b"x", request_id=SessionRequest(b"unknown!" * 2, 1, 1))
                assert caught.value.outcome is Outcome.DEFINITE
            assert await applied(members) == [b"two", b"one"]

    run(scenario)


def test_a_session_that_expired_is_replaced_unnoticed() -> None:
    async def scenario() -> None:
        async with cluster(1) as members:
            (member,) = members
            assert await member.node.apply(b"a") == 1
            member.node._once._session = ClientSession(b"expired!" * 2)
            assert await asyncio.gather(*(member.node.apply(b"b") for _ in range(9))) == [
                *range(2, 11)
            ]
            assert member.node._once._session.span == 0

    run(scenario)


def test_a_request_that_hangs_does_not_hold_up_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rafthttp.sessions.client._SPAN_MAX", 10)

    async def scenario() -> None:
        async with cluster(1) as members:
            node = members[0].node
            await node.apply(b"a")
            session = node._once._session
            assert session is not None
            session.begin()  # and never ends
            for _ in range(30):
                await node.apply(b"b")
            assert node._once._session is not session
            assert len(await applied(members)) == 31

    run(scenario)


def test_sizes_and_odd_commands() -> None:
    async def scenario() -> None:
        for sessions in (False, True):
            async with cluster(1, sessions=sessions) as members:
                node = members[0].node
                most = node.command_size_bytes_max
                assert most == node.config.entry_size_bytes_max - (40 if sessions else 0)
                odd = envelope.opening(b"x" * 16)
                assert await node.apply(odd) == 1
                assert await node.apply(b"x" * most) == 2
                with pytest.raises(EntryTooLargeError):
                    await node.apply(b"x" * (most + 1))
                assert members[0].fsm.commands[0] == odd

    run(scenario)


def test_without_the_option_an_id_is_refused() -> None:
    async def scenario() -> None:
        async with cluster(1, sessions=False) as members:
            node = members[0].node
            with pytest.raises(ConfigError, match="request_id needs"):
                await node.apply(b"a", request_id="key")
            with pytest.raises(ConfigError, match="a session needs"):
                await node.open_session()
            assert node.raft.state is State.LEADER

    run(scenario)
