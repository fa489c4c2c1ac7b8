"""`Node` on real sockets: three applications in one event loop, and one alone."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import msgpack
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from rafthttp import (
    FSM,
    Config,
    ConfigError,
    CorruptLogError,
    DataDirectoryError,
    EntryTooLargeError,
    ForwardRequest,
    ForwardResponse,
    Log,
    MembershipError,
    Node,
    NotLeaderError,
    Outcome,
    RaftError,
    RemoteApplyError,
    ServerID,
    ShutdownError,
    State,
    TimedOutError,
)
from rafthttp.joining import CLUSTER_ID, PENDING_JOIN
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import Configuration, Server, ServerAddress
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


class Recorder(FSM):
    """Keeps commands; answers what a command asks for (msgpack in, that value out)."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, log: Log) -> Any:
        self.commands.append(log.data)
        if log.data == b"raise":
            raise KeyError("asked to")
        if log.data == b"object":
            return object()
        return msgpack.unpackb(log.data)

    def snapshot(self) -> Any:
        return _Snapshot(list(self.commands))

    def restore(self, source: BinaryIO) -> None:
        self.commands = msgpack.unpackb(source.read())


class _Snapshot:
    def __init__(self, commands: list[bytes]) -> None:
        self.commands = commands

    def persist(self, sink: BinaryIO) -> None:
        sink.write(msgpack.packb(self.commands))

    def release(self) -> None:
        pass


def quick(node_id: str, **changes: Any) -> Config:
    return Config(
        ServerID(node_id),
        heartbeat_timeout=0.3,
        election_timeout=0.3,
        leader_lease_timeout=0.2,
        **changes,
    )


@asynccontextmanager
async def cluster(size: int = 3, **options: Any) -> AsyncGenerator[list[Node]]:
    """Members in one event loop; the first leads."""
    listeners = [loopback_listener() for _ in range(size)]
    addresses = [address_of(listener) for listener in listeners]
    nodes: list[Node] = []
    async with AsyncExitStack() as stack:
        for number, (listener, address) in enumerate(zip(listeners, addresses, strict=True)):
            node_id = f"n{number + 1}"
            node = Node(
                node_id,
                address,
                fsm=Recorder(),
                config=quick(node_id),
                bootstrap=number == 0,
                join=[f"http://{addresses[number - 1]}"] if number else [],
                **options,
            )
            app = FastAPI(lifespan=node.lifespan)
            node.mount(app, "/raft")
            await stack.enter_async_context(served(app, listener))
            nodes.append(node)
        await until(lambda: all(_is_whole(node, size) for node in nodes), "all are voters")
        yield nodes


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


def fsm(node: Node) -> Recorder:
    recorder = node._fsm
    assert isinstance(recorder, Recorder)
    return recorder


def test_apply_on_any_member_gives_the_state_machines_answer() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            assert nodes[0].raft.state is State.LEADER
            values: list[Any] = [None, True, -5, 2**63, 1.5, "text", b"\xff", [1, [b""]], {"k": []}]
            for node in nodes:
                for value in values:
                    assert await node.apply(msgpack.packb(value)) == value
            count = len(nodes) * len(values)
            await nodes[2].linearizable()
            assert len(fsm(nodes[2]).commands) == count

    run(scenario)


def test_a_read_on_a_follower_sees_what_was_acknowledged_elsewhere() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            for number in range(20):
                command = msgpack.packb(number)
                await nodes[number % 3].apply(command)
                reader = nodes[(number + 1) % 3]
                index = await reader.read_index()
                assert fsm(reader).commands[-1] == command
                assert reader.raft.applied_index >= index

    run(scenario)


def test_an_exception_of_the_state_machine_reaches_the_caller() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            with pytest.raises(KeyError, match="asked to"):
                await nodes[0].apply(b"raise")
            with pytest.raises(RemoteApplyError, match="KeyError: 'asked to'"):
                await nodes[1].apply(b"raise")
            assert type(await nodes[0].apply(b"object")) is object
            with pytest.raises(RemoteApplyError, match="cannot cross"):
                await nodes[1].apply(b"object")

    run(scenario)


def count_forwards(leader: Node) -> list[ForwardRequest]:
    """Every forward the leader gets from now on."""
    seen: list[ForwardRequest] = []
    handler = leader._handler
    assert handler is not None
    inner = handler.forward
    assert inner is not None

    async def counting(request: ForwardRequest) -> ForwardResponse:
        seen.append(request)
        return await inner(request)

    handler.forward = counting
    return seen


def test_commands_of_one_turn_share_one_forward_and_so_do_reads() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            seen = count_forwards(nodes[0])
            values = list(range(200))
            calls = [nodes[1].apply(msgpack.packb(value)) for value in values]
            assert await asyncio.gather(*calls) == values
            assert len(seen) == 1
            await asyncio.gather(*(nodes[1].read_index() for _ in range(100)))
            assert [request.op for request in seen] == ["apply", "read_index"]

    run(scenario)


def test_a_leader_that_takes_no_forwards_is_a_definite_not_leader_error() -> None:
    """As a Go leader answers: 405."""

    async def scenario() -> None:
        async with cluster() as nodes:
            assert nodes[0]._handler is not None
            nodes[0]._handler.forward = None
            before = asyncio.get_running_loop().time()
            for call in (nodes[1].apply(b"\x01"), nodes[1].read_index()):
                with pytest.raises(NotLeaderError) as caught:
                    await call
                assert caught.value.outcome is Outcome.DEFINITE
                assert caught.value.leader == (nodes[0].id, nodes[0].address)
            assert asyncio.get_running_loop().time() - before < 2, "not tried again"

    run(scenario)


def answer_instead(leader: Node, answer: Callable[[], ForwardResponse]) -> list[str]:
    """Make the leader apply what is forwarded, then answer something else."""
    applied: list[str] = []
    handler = leader._handler
    assert handler is not None
    inner = handler.forward
    assert inner is not None

    async def broken(request: ForwardRequest) -> ForwardResponse:
        await inner(request)
        applied.append(request.op)
        return answer()

    handler.forward = broken
    return applied


@pytest.mark.parametrize("status", [200, 500, 502, 503])
def test_what_may_have_reached_the_leader_is_unknown_and_never_sent_again(status: int) -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            applied = answer_instead(nodes[0], lambda: ForwardResponse(status, b"\xc1"))
            with pytest.raises(RaftError) as caught:
                await nodes[1].apply(msgpack.packb("once"))
            assert caught.value.outcome is Outcome.UNKNOWN
            assert applied == ["apply"]
            assert fsm(nodes[0]).commands.count(msgpack.packb("once")) == 1

    run(scenario)


def test_what_the_leader_refused_unseen_is_sent_again() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            handler = nodes[0]._handler
            assert handler is not None
            inner, handler._forwards_max = handler._forwards_max, 0

            def admit() -> None:
                handler._forwards_max = inner

            asyncio.get_running_loop().call_later(0.2, admit)
            assert await nodes[1].apply(msgpack.packb("once")) == "once"
            assert fsm(nodes[0]).commands.count(msgpack.packb("once")) == 1

    run(scenario)


def test_a_read_that_broke_is_asked_again() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            handler = nodes[0]._handler
            assert handler is not None
            inner = handler.forward
            failures = iter([500, 503, 502])

            async def flaky(request: ForwardRequest) -> ForwardResponse:
                assert inner is not None
                status = next(failures, None)
                return await inner(request) if status is None else ForwardResponse(status)

            handler.forward = flaky
            await nodes[1].read_index()
            assert next(failures, None) is None

    run(scenario)


def test_commands_wait_for_the_next_leader_within_their_deadline() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            await nodes[0].raft.shutdown()
            assert await nodes[1].apply(msgpack.packb("after"), timeout=15) == "after"
            assert await nodes[2].apply(msgpack.packb("again"), timeout=15) == "again"
            with pytest.raises(ShutdownError):
                await nodes[0].apply(b"\x01")

    run(scenario)


def test_without_a_quorum_commands_and_reads_end_at_their_deadline() -> None:
    async def scenario() -> None:
        async with cluster(2) as nodes:
            await nodes[0].raft.shutdown()
            with pytest.raises(TimedOutError) as caught:
                await nodes[1].apply(b"\x01", timeout=0.5)
            assert caught.value.outcome is Outcome.DEFINITE
            with pytest.raises(TimedOutError):
                await nodes[1].read_index(timeout=0.5)

    run(scenario)


def test_a_command_over_the_limit_is_refused_here() -> None:
    async def scenario() -> None:
        node = Node("n1", "127.0.0.1:1", fsm=Recorder(), config=quick("n1", entry_size_bytes_max=9))
        async with node:
            with pytest.raises(EntryTooLargeError, match="10 bytes"):
                await node.apply(b"x" * 10)

    run(scenario)


def test_a_member_leaves_the_leader_too() -> None:
    async def scenario() -> None:
        async with cluster() as nodes:
            await nodes[2].leave()
            await nodes[0].leave()
            await until(lambda: nodes[1].raft.state is State.LEADER, "the last one leads")
            servers = nodes[1].raft.get_configuration().configuration
            assert [server.id for server in servers] == ["n2"]
            with pytest.raises(MembershipError, match="voter"):
                await nodes[1].leave(timeout=2)

    run(scenario)


def test_the_token_is_for_members_of_the_cluster() -> None:
    async def scenario() -> None:
        async with cluster(token="secret") as nodes:
            assert await nodes[1].apply(msgpack.packb("with")) == "with"
            url = f"http://{nodes[0].address}/raft"
            async with httpx.AsyncClient() as client:
                for method in ("GET", "POST", "DELETE", "PUT"):
                    assert (await client.request(method, url)).status_code == 401

    run(scenario)


# -- one node alone


def lone(tmp_path: Path, **options: Any) -> Node:
    return Node(
        "n1", "127.0.0.1:1", fsm=Recorder(), data_dir=tmp_path, config=quick("n1"), **options
    )


def test_a_node_works_without_a_web_framework_and_starts_again(tmp_path: Path) -> None:
    """S26, S61: a single voter elects itself; the bootstrap flag is still on at the restart."""

    async def scenario() -> None:
        node = lone(tmp_path, bootstrap=True)
        async with node:
            assert await node.apply(msgpack.packb("a")) == "a"
            cluster_id, term = node.cluster_id, node.raft.current_term
            with pytest.raises(RuntimeError, match="running"):
                await node.start()
        assert node.leader is None
        assert node.cluster_id is None
        with pytest.raises(ShutdownError):
            await node.apply(b"a")
        await node.stop()

        again = lone(tmp_path, bootstrap=True)
        async with again:
            await again.linearizable()
            assert fsm(again).commands == [msgpack.packb("a")]
            assert again.cluster_id == cluster_id
            assert again.raft.current_term > term
        async with lone(tmp_path) as plain:
            await plain.linearizable()
            assert plain.cluster_id == cluster_id

    run(scenario)


def test_the_cluster_id_is_minted_at_bootstrap_and_adopted_for_good_at_join(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = loopback_listener(), loopback_listener()
        n1 = Node("n1", address_of(first), fsm=Recorder(), config=quick("n1"), bootstrap=True)
        n2 = Node(
            "n2",
            address_of(second),
            fsm=Recorder(),
            config=quick("n2"),
            data_dir=tmp_path,
            join=[f"http://{address_of(first)}/ignored"],
        )
        async with AsyncExitStack() as stack:
            for node, listener in ((n1, first), (n2, second)):
                app = Starlette(lifespan=node.lifespan)
                node.mount(app)
                await stack.enter_async_context(served(app, listener))
            await until(lambda: _is_whole(n2, 2), "n2 is a member")
            minted = n1.cluster_id
            assert minted is not None
            assert n2.cluster_id == minted
        store = SqliteStore.open(tmp_path, ServerID("n2"))
        assert store.get(CLUSTER_ID) == minted.encode()
        assert store.get(PENDING_JOIN) is None
        store.close()

    run(scenario)


def test_a_node_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lone(tmp_path, bootstrap=True):
            with pytest.raises(DataDirectoryError, match="in use"):
                await lone(tmp_path).start()
        store = SqliteStore.open(tmp_path, ServerID("n1"))
        store.set({b"HardState": b"garbage"})
        store.close()
        with pytest.raises(CorruptLogError):
            await lone(tmp_path).start()
        SqliteStore.open(tmp_path, ServerID("n1")).close()  # it is not locked

    run(scenario)


@pytest.mark.parametrize("changes", [{"join": ["127.0.0.1:2"]}, {"bootstrap": True}, {}])
def test_a_node_with_snapshots_and_no_log_does_not_start(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """S62: it has forgotten its votes, and by its snapshot it is a voter that may campaign."""
    three = Configuration(
        tuple(Server(ServerID(f"n{n}"), ServerAddress(f"127.0.0.1:{n}")) for n in range(1, 4))
    )
    FileSnapshotStore(tmp_path / "snapshots").create(10, 2, three, 1).close()

    async def scenario() -> None:
        for _ in range(2):  # nor has the first try made another of it
            with pytest.raises(DataDirectoryError, match="snapshots, and no log"):
                await lone(tmp_path, **changes).start()

    run(scenario)


def test_the_endpoint_answers_503_while_the_node_does_not_run() -> None:
    async def scenario() -> None:
        node = Node("n1", "127.0.0.1:1", fsm=Recorder())
        app = Starlette()
        node.mount(app)
        listener = loopback_listener()
        async with served(app, listener), httpx.AsyncClient() as client:
            answer = await client.get(f"http://{address_of(listener)}/raft")
            assert answer.status_code == 503
            assert "not running" in answer.text

    run(scenario)


def test_the_endpoint_is_an_exact_route() -> None:
    async def scenario() -> None:
        async with cluster(1) as (node,), httpx.AsyncClient() as client:
            assert (await client.get(f"http://{node.address}/raft")).status_code == 400
            assert (await client.get(f"http://{node.address}/raft/x")).status_code == 404
            assert (await client.patch(f"http://{node.address}/raft")).status_code == 405

    run(scenario)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("", "h:1"), {}, "server ID"),
        (("a\nb", "h:1"), {}, "server ID"),
        (("n1", "h"), {}, "HOST:PORT"),
        (("n1", "h:1"), {"path": "raft"}, "path"),
        (("n1", "h:1"), {"timeout": 0}, "timeout"),
        (("n1", "h:1"), {"timeout": float("nan")}, "timeout"),
        (("n1", "h:1"), {"token": ""}, "token"),
        (("n1", "h:1"), {"config": Config(ServerID("n2"))}, "local_id"),
        (("n1", "h:1"), {"config": Config(ServerID("n1"), heartbeat_timeout=-1)}, "heartbeat"),
        (("n1", "h:1"), {"join": ["h"]}, "join URL"),
        (("n1", "h:1"), {"join": "http://h:2"}, "join is a list of URLs"),
        (("n1", "h:1"), {"join": ["http://"]}, "join URL"),
        (("n1", "h:1"), {"join": ["http://h:1"]}, "through itself"),
        (("n1", "h:1"), {"join": ["h:1"]}, "through itself"),
        (("n1", "h:1"), {"join": ["http://h:99999"]}, "join URL"),
    ],
)
def test_arguments_out_of_bounds(
    arguments: tuple[str, str], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Node(*arguments, fsm=Recorder(), **options)


@pytest.mark.parametrize("path", ["/other", "raft", "/ft"])
def test_a_mount_that_other_members_would_not_find(path: str) -> None:
    node = Node("n1", "127.0.0.1:1", fsm=Recorder())
    with pytest.raises(ConfigError, match="cannot mount"):
        node.mount(Starlette(), path)
