"""Autopilot: what it decides, as a table; and on real sockets, that it does so and no more."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import pytest
from starlette.applications import Starlette

from rafthttp import (
    FSM,
    AutopilotConfig,
    BytesSnapshot,
    Config,
    ConfigError,
    Configuration,
    LatestConfiguration,
    Log,
    Node,
    PeerProgress,
    PeerUnreachableError,
    RemoteError,
    Server,
    ServerAddress,
    ServerHealth,
    ServerID,
    State,
    Suffrage,
    UnknownLeaderError,
)
from rafthttp.autopilot import Autopilot, Promote, Remove, decide
from rafthttp.testing.nodes import address_of, loopback_listener, served, until

# -- the decision

CLEANS = AutopilotConfig(
    server_stabilization_time=10.0,
    cleanup_dead_servers=True,
    dead_server_last_contact_threshold=60.0,
)


def server(number: int, kind: str) -> ServerHealth:
    """`v` voter, `n` nonvoter, `s` staging; then `+` well, `~` lagging, `-` silent, `x` dead."""
    suffrage = {"v": Suffrage.VOTER, "n": Suffrage.NONVOTER, "s": Suffrage.STAGING}[kind[0]]
    silent = {"+": 0.0, "~": 0.0, "-": 59.0, "x": 60.0 + number}[kind[1]]
    healthy = kind[1] == "+"
    return ServerHealth(
        ServerID(f"n{number}"),
        ServerAddress(f"n{number}:1"),
        suffrage,
        healthy,
        silent,
        0 if healthy else 99,
        100.0 if healthy else None,
        silent,
    )


@pytest.mark.parametrize(
    ("servers", "removed"),
    [
        ("v+ v+ v+ v+ vx", "n5"),
        ("v+ v+ v+ v+ v+", None),
        ("v+ v+ v+ v+ v-", None),  # silent, but not for long enough
        ("v+ v+ vx", None),  # two could not lose one
        ("v+ vx", None),
        ("v+ v+ v+ vx", "n4"),  # a replacement has come
        ("v+ v+ v~ vx", None),  # of the three left one is not well
        ("v+ v+ v- vx", None),
        ("v+ v+ v+ vx vx", "n5"),  # the longest silent first, one at a time
        ("v+ v+ vx vx vx", None),  # not even a majority
        ("v+ v+ v~ v~ vx", None),  # two healthy of four left
        ("v+ v+ v+ v~ vx", "n5"),
        ("v+ v+ v+ v~ v~ vx", "n6"),  # three healthy of five left
        ("v+ v+ v+ v~ v~ v~ vx", None),  # three of six are no majority
        ("v+ v+ v+ v+ vx vx vx", "n7"),
        ("v+ v+ v+ nx", "n4"),
        ("v+ nx", "n2"),  # without a vote it takes nothing away
        ("v+ sx", "n2"),
        ("v+ v+ vx nx", "n4"),
        ("v+ v+ v+ v+ nx vx", "n5"),  # those without a vote first
        ("v+ v+ v+ n-", None),
    ],
)
def test_which_dead_server_is_removed(servers: str, removed: str | None) -> None:
    seen = [server(number, kind) for number, kind in enumerate(servers.split(), 1)]
    decision = decide(CLEANS, seen)
    assert (decision and decision.server.id) == removed
    assert decision is None or isinstance(decision, Remove)
    assert decide(replace(CLEANS, cleanup_dead_servers=False), seen) is None


def test_min_quorum_is_kept() -> None:
    seen = [server(n, kind) for n, kind in enumerate(["v+"] * 4 + ["vx"], 1)]
    assert decide(replace(CLEANS, min_quorum=4), seen) is not None
    assert decide(replace(CLEANS, min_quorum=5), seen) is None
    without_vote = [*seen, server(6, "nx")]
    decision = decide(replace(CLEANS, min_quorum=5), without_vote)
    assert decision is not None
    assert decision.server.id == "n6"


@pytest.mark.parametrize(
    ("kind", "stable_for", "promoted"),
    [
        ("s+", 10.0, True),
        ("s+", 9.9, False),
        ("s+", None, False),
        ("s-", None, False),
        ("n+", 100.0, False),  # added by add_nonvoter: it stays one
        ("v+", 100.0, False),
    ],
)
def test_who_is_promoted(kind: str, stable_for: float | None, promoted: bool) -> None:
    """S59: who cannot be reached is staged, and gets no vote that would put the quorum at risk."""
    joiner = replace(server(2, kind), stable_for=stable_for)
    decision = decide(CLEANS, [server(1, "v+"), joiner])
    assert decision == (Promote(joiner) if promoted else None)


def test_a_promotion_comes_before_a_removal() -> None:
    seen = [server(n, kind) for n, kind in enumerate(["v+", "v+", "v+", "vx", "s+"], 1)]
    decision = decide(CLEANS, seen)
    assert isinstance(decision, Promote)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"min_quorum": 2}, "min_quorum is 2; it must be from 3"),
        ({"server_stabilization_time": -1}, "server_stabilization_time"),
        ({"server_stabilization_time": float("nan")}, "server_stabilization_time"),
        ({"max_trailing_logs": 0}, "max_trailing_logs"),
        ({"last_contact_threshold": 0}, "last_contact_threshold"),
        ({"update_interval": 0}, "update_interval"),
        (
            {"dead_server_last_contact_threshold": 2.0},
            r"must be above last_contact_threshold \(2\)",  # twice the heartbeat timeout
        ),
        (
            {"dead_server_last_contact_threshold": 5.0, "last_contact_threshold": 5.0},
            r"above last_contact_threshold \(5\)",
        ),
    ],
)
def test_settings_out_of_bounds(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Node("n1", "h:1", fsm=Nothing(), autopilot=AutopilotConfig(**changes))


# -- on real sockets


class Nothing(FSM):
    def apply(self, log: Log) -> int:
        return len(log.data)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: BinaryIO) -> None:
        """Nothing to restore."""


QUICK = AutopilotConfig(
    last_contact_threshold=0.5,
    cleanup_dead_servers=True,
    dead_server_last_contact_threshold=1.0,
    update_interval=0.1,
)


class Members:
    """Nodes of one cluster in one event loop; each may be killed, or frozen."""

    def __init__(self, autopilot: AutopilotConfig) -> None:
        self.autopilot = autopilot
        self.nodes: list[Node] = []
        self._stacks: dict[str, AsyncExitStack] = {}

    async def add(self, *, join: bool | None = None) -> Node:
        listener = loopback_listener()
        node_id = f"n{len(self.nodes) + 1}"
        joins = bool(self.nodes) if join is None else join
        node = Node(
            node_id,
            address_of(listener),
            fsm=Nothing(),
            bootstrap=not self.nodes,
            join=[self.nodes[0].address] if joins else [],
            config=Config(
                ServerID(node_id),
                heartbeat_timeout=0.3,
                election_timeout=0.3,
                leader_lease_timeout=0.3,
            ),
            autopilot=self.autopilot,
        )
        app = Starlette(lifespan=node.lifespan)
        node.mount(app)
        stack = self._stacks[node_id] = AsyncExitStack()
        await stack.enter_async_context(served(app, listener))
        self.nodes.append(node)
        return node

    async def kill(self, node: Node) -> None:
        await self._stacks.pop(node.id).aclose()

    async def close(self) -> None:
        for stack in reversed(self._stacks.values()):
            await stack.aclose()


@asynccontextmanager
async def cluster(size: int, autopilot: AutopilotConfig = QUICK) -> AsyncGenerator[Members]:
    members = Members(autopilot)
    try:
        for _ in range(size):
            await members.add()
        await until(lambda: voters(members.nodes[0]) == size, "all are voters")
        yield members
    finally:
        await members.close()


def voters(node: Node) -> int:
    return len(node.raft.get_configuration().configuration.voters)


def ids(node: Node) -> list[str]:
    return sorted(server.id for server in node.raft.get_configuration().configuration)


def suffrage(node: Node, of: Node) -> Suffrage | None:
    found = node.raft.get_configuration().configuration.get(of.id)
    return None if found is None else found.suffrage


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(40):
            await scenario()

    asyncio.run(main())


def test_a_dead_server_is_removed_once_it_can_be_spared() -> None:
    async def scenario() -> None:
        async with cluster(4) as members:
            n1, _, n3, n4 = members.nodes
            await members.kill(n4)
            await until(lambda: ids(n1) == ["n1", "n2", "n3"], "n4 is removed")
            # Of three none can be spared.
            await members.kill(n3)
            health = n1.health()
            assert health is not None

            def silent() -> float:
                now = n1.health()
                return 0.0 if now is None else now.servers[2].silent_for

            await until(lambda: silent() > 1.5, "n3 is dead for all it knows")
            assert ids(n1) == ["n1", "n2", "n3"]
            now = n1.health()
            assert now is not None
            assert (now.healthy, now.failure_tolerance) == (False, 0)
            assert [server.healthy for server in now.servers] == [True, True, False]
            # A replacement joins, and n3 may go.
            await members.add()
            await until(lambda: ids(n1) == ["n1", "n2", "n5"], "n3 is replaced")
            assert await n1.apply(b"12") == 2

    run(scenario)


def test_nobody_is_removed_unless_asked_for() -> None:
    async def scenario() -> None:
        async with cluster(4, replace(QUICK, cleanup_dead_servers=False)) as members:
            n1, *_, n4 = members.nodes
            await members.kill(n4)

            def silent() -> float:
                now = n1.health()
                return 0.0 if now is None else now.servers[3].silent_for

            await until(lambda: silent() > 1.5, "n4 is silent")
            assert len(ids(n1)) == 4

    run(scenario)


def test_a_nonvoter_added_by_hand_stays_one_and_a_staging_server_does_not() -> None:
    async def scenario() -> None:
        async with cluster(1) as members:
            (n1,) = members.nodes
            by_hand = await members.add(join=False)
            staging = await members.add(join=False)
            await n1.raft.add_nonvoter(by_hand.id, by_hand.address)
            await n1.raft.add_staging(staging.id, staging.address)
            await until(lambda: suffrage(n1, staging) is Suffrage.VOTER, "n3 is promoted")

            def stable() -> float:
                now = n1.health()
                return 0.0 if now is None else now.servers[1].stable_for or 0.0

            await until(lambda: stable() > 0.5, "n2 is well, and seen several times")
            assert suffrage(n1, by_hand) is Suffrage.NONVOTER

    run(scenario)


def test_the_vote_comes_after_the_stabilization_time() -> None:
    async def scenario() -> None:
        async with cluster(1, replace(QUICK, server_stabilization_time=1.0)) as members:
            (n1,) = members.nodes
            loop = asyncio.get_running_loop()
            n2 = await members.add()
            await until(lambda: suffrage(n1, n2) is Suffrage.STAGING, "n2 is added")
            began = loop.time()
            await until(lambda: suffrage(n1, n2) is Suffrage.VOTER, "n2 is promoted")
            assert loop.time() - began > 0.9
            await until(lambda: not n2.joining, "the request to join is answered")

    run(scenario)


def test_a_joiner_whose_leader_died_is_promoted_by_the_next_one() -> None:
    """The mark is in the log: nobody has to ask again."""

    async def scenario() -> None:
        slow = replace(QUICK, server_stabilization_time=1.0)
        async with cluster(1, slow) as members:
            members.autopilot = QUICK
            n1, n2, n3, n4 = (
                *members.nodes,
                await members.add(),
                await members.add(),
                await members.add(join=False),
            )
            await until(lambda: voters(n1) == 3, "three vote")
            # As the join's first half does; the leader, which would wait, dies before the second.
            await n1.raft.add_staging(n4.id, n4.address)
            await members.kill(n1)
            others = (n2, n3, n4)
            await until(lambda: any(n.raft.state is State.LEADER for n in others), "another leads")
            await until(lambda: suffrage(n4, n4) is Suffrage.VOTER, "n4 is promoted")

    run(scenario)


def test_only_the_leader_tells_of_health() -> None:
    async def scenario() -> None:
        async with cluster(2) as members:
            n1, n2 = members.nodes
            assert n2.health() is None

            def well() -> bool:
                now = n1.health()
                return now is not None and all(s.stable_for is not None for s in now.servers)

            await until(well, "all are well")
            now = n1.health()
            assert now is not None
            assert [server.id for server in now.servers] == ["n1", "n2"]
            assert now.failure_tolerance == 0
            assert now.healthy
            assert all((server.last_contact or 0) < 0.5 for server in now.servers)
        assert n1.health() is None

    run(scenario)


# -- before a removal, against a small model of a server


class ModelRaft:
    """A leader of five, n5 of which is silent; `heard_again` makes it speak at the last moment."""

    def __init__(self) -> None:
        self.id = ServerID("n1")
        self.state = State.LEADER
        self.current_term = 3
        self.commit_index = 7
        servers = tuple(Server(ServerID(f"n{n}"), ServerAddress(f"n{n}:1")) for n in range(1, 6))
        self.latest = LatestConfiguration(Configuration(servers), 7)
        self.answer: Exception | str = PeerUnreachableError("nobody there")
        self.leads = True
        self.heard_again = False
        self.dialled = 0
        self.removed: list[tuple[str, int]] = []
        self._silent_since = asyncio.get_running_loop().time()

    def get_configuration(self) -> LatestConfiguration:
        return self.latest

    def peer_progress(self, server_id: ServerID) -> PeerProgress:
        now = asyncio.get_running_loop().time()
        return PeerProgress(7, self._silent_since if server_id == "n5" else now)

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        raise AssertionError("nobody is being joined")

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        if self.heard_again:
            self._silent_since = asyncio.get_running_loop().time()
        if not self.leads:
            raise UnknownLeaderError("it does not")

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        assert address == "n5:1"
        self.dialled += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return ServerID(self.answer)

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: int = 0,
        *,
        timeout: float | None = None,
    ) -> int:
        raise AssertionError("nobody is being joined")

    async def remove_server(
        self, server_id: ServerID, prev_index: int = 0, *, timeout: float | None = None
    ) -> int:
        self.removed.append((server_id, prev_index))
        self.latest = LatestConfiguration(self.latest.configuration.without(server_id), 8)
        self.commit_index = 8
        return 8


@pytest.mark.parametrize(
    ("changes", "is_removed"),
    [
        ({}, True),
        ({"answer": "n9"}, True),  # another server is at its address
        ({"answer": "n5"}, False),
        ({"answer": RemoteError("this server has no state")}, False),
        ({"leads": False}, False),
        ({"heard_again": True}, False),
    ],
)
def test_the_last_look_before_a_removal(changes: dict[str, Any], *, is_removed: bool) -> None:
    async def scenario() -> None:
        raft = ModelRaft()
        for name, value in changes.items():
            setattr(raft, name, value)
        config = replace(QUICK, update_interval=0.02, dead_server_last_contact_threshold=0.6)
        flying = asyncio.create_task(Autopilot(raft, config, 0.1).run())
        try:
            await until(lambda: raft.dialled >= 1 + (not is_removed), "it is dialled")
            if is_removed:
                await until(lambda: raft.removed, "it is removed")
        finally:
            flying.cancel()
            await asyncio.gather(flying, return_exceptions=True)
        assert raft.removed == ([("n5", 7)] if is_removed else [])

    run(scenario)


def test_nothing_is_changed_while_a_change_is_not_committed() -> None:
    async def scenario() -> None:
        raft = ModelRaft()
        raft.latest = LatestConfiguration(raft.latest.configuration, 8)
        config = replace(QUICK, update_interval=0.02, dead_server_last_contact_threshold=0.6)
        autopilot = Autopilot(raft, config, 0.1)
        flying = asyncio.create_task(autopilot.run())

        def silent() -> float:
            now = autopilot.health()
            return 0.0 if now is None else now.servers[4].silent_for

        try:
            await until(lambda: silent() > 0.8, "it is dead for a while")
            assert raft.dialled == 0
            raft.commit_index = 8
            await until(lambda: raft.removed, "it is removed")
        finally:
            flying.cancel()
            await asyncio.gather(flying, return_exceptions=True)

    run(scenario)
