"""Join and leave: the flow, against a small model of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from rafthttp.http.handler import Handler
from rafthttp.http.membership import (
    ChangeKind,
    ChangeRequest,
    handle_change_requests,
)
from rafthttp.raft.errors import (
    ConfigError,
    ConfigurationChangeError,
    DifferentLeaderError,
    Outcome,
    PeerUnreachableError,
    RaftHttpError,
    RemoteError,
    ShutdownError,
    TimedOutError,
    UnknownLeaderError,
)
from rafthttp.raft.transport.protocols import NO_STATE
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    LogPosition,
    Server,
    ServerAddress,
    ServerID,
    Suffrage,
)
from rafthttp.testing.http import until

N1 = Server(ServerID("n1"), ServerAddress("127.0.0.1:1"))
N2 = Server(ServerID("n2"), ServerAddress("127.0.0.1:2"))
N3 = Server(ServerID("n3"), ServerAddress("127.0.0.1:3"))


@dataclass
class Latest:
    configuration: Configuration
    index: Index


class ModelRaft:
    """A leader whose changes commit at once; `hooks` run inside each call."""

    def __init__(self, *servers: Server) -> None:
        self.id = N1.id
        self.commit_index = 7
        self.latest = Latest(Configuration(servers or (N1,)), 7)
        self.leader: Leader | None = Leader(N1.id, N1.address)
        self.reachable: dict[str, str] = {}
        self.calls: list[tuple[object, ...]] = []
        self.hooks: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}

    async def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.hooks:
            await self.hooks[name]()

    def change(self, configuration: Configuration) -> Index:
        self.latest = Latest(configuration, self.latest.index + 1)
        self.commit_index = self.latest.index
        return self.latest.index

    def leader_with_id(self) -> Leader | None:
        return self.leader

    def get_configuration(self) -> Latest:
        return self.latest

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        await self._called("add_voter", server_id, address)
        return self._add(Server(server_id, address), prev_index, timeout)

    async def add_staging(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        await self._called("add_staging", server_id, address)
        return self._add(Server(server_id, address, Suffrage.STAGING), prev_index, timeout)

    def _add(self, server: Server, prev_index: Index, timeout: float | None) -> Index:
        assert timeout is not None
        assert timeout > 0
        if prev_index != self.latest.index:
            raise ConfigurationChangeError("the configuration changed since")
        return self.change(self.latest.configuration.with_server(server))

    async def remove_server(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        await self._called("remove_server", server_id)
        return self.change(self.latest.configuration.without(server_id))

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        assert timeout > 0
        await self._called("wait_caught_up", server_id)

    def committed_in_term(self) -> LogPosition:
        self.calls.append(("committed_in_term",))
        return LogPosition(3, self.commit_index)

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        assert timeout is None or timeout > 0
        await self._called("verify_leader")

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        assert timeout > 0
        await self._called("identify", address)
        if address not in self.reachable:
            raise PeerUnreachableError(f"nobody at {address}")
        return ServerID(self.reachable[address])


JOINED = ["identify", "add_staging", "wait_caught_up", "add_voter"]


def names(raft: ModelRaft) -> list[object]:
    return [call[0] for call in raft.calls]


async def answered(raft: ModelRaft, *requests: ChangeRequest, **options: Any) -> None:
    """Have the requests answered, and the iterator end."""

    async def iterate() -> AsyncIterator[ChangeRequest]:
        for request in requests:
            yield request
        await until(lambda: all(request.done for request in requests))

    await handle_change_requests(raft, iterate(), **options)


def request(kind: ChangeKind, server: Server, seconds: float = 5.0) -> ChangeRequest:
    address = server.address if kind is ChangeKind.JOIN else None
    deadline = asyncio.get_running_loop().time() + seconds
    return ChangeRequest(kind, server.id, address, deadline=deadline)


async def join(raft: ModelRaft, server: Server, seconds: float = 5.0) -> None:
    change = request(ChangeKind.JOIN, server, seconds)
    await answered(raft, change)
    await change.wait()


async def leave(raft: ModelRaft, server: Server) -> None:
    change = request(ChangeKind.LEAVE, server)
    await answered(raft, change)
    await change.wait()


# -- the flow


def test_a_newcomer_is_dialled_back_added_caught_up_and_promoted() -> None:
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}
    asyncio.run(join(raft, N2))
    assert raft.calls == [
        ("identify", N2.address),
        ("add_staging", N2.id, N2.address),
        ("wait_caught_up", N2.id),
        ("add_voter", N2.id, N2.address),
    ]
    assert raft.latest.configuration == Configuration((N1, N2))


def test_a_voter_at_its_address_is_done_without_an_entry() -> None:
    raft = ModelRaft(N1, N2)
    asyncio.run(join(raft, N2))
    assert raft.calls == []


def test_a_voter_whose_entry_is_not_committed_is_not_done() -> None:
    raft = ModelRaft(N1, N2)
    raft.commit_index = raft.latest.index - 1
    with pytest.raises(TimedOutError, match="not committed"):
        asyncio.run(join(raft, N2))


def test_a_staging_server_is_resumed_where_a_dead_leader_left_it() -> None:
    raft = ModelRaft(N1, N2._replace(suffrage=Suffrage.STAGING))
    raft.reachable = {N2.address: N2.id}
    asyncio.run(join(raft, N2))
    assert names(raft) == ["identify", "wait_caught_up", "add_voter"]
    assert raft.latest.configuration.has_vote(N2.id)


def test_a_nonvoter_that_asks_for_a_vote_is_marked_as_joining_first() -> None:
    raft = ModelRaft(N1, N2._replace(suffrage=Suffrage.NONVOTER))
    raft.reachable = {N2.address: N2.id}
    asyncio.run(join(raft, N2))
    assert names(raft) == JOINED
    assert raft.latest.configuration.has_vote(N2.id)


def test_a_server_that_is_not_stable_stays_without_a_vote() -> None:
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}
    asked: list[ServerID] = []

    async def wait_stable(server_id: ServerID, *, timeout: float) -> None:
        assert 0 < timeout <= 5
        asked.append(server_id)
        if len(asked) == 1:
            raise TimedOutError("healthy for 1 of 10 s", outcome=Outcome.DEFINITE)

    async def main() -> None:
        for error in (TimedOutError, None):
            change = request(ChangeKind.JOIN, N2)
            await answered(raft, change, wait_stable=wait_stable)
            if error is None:
                await change.wait()
            else:
                with pytest.raises(error, match="healthy for 1"):
                    await change.wait()
                assert raft.latest.configuration.get(N2.id) == (*N2[:2], Suffrage.STAGING)

    asyncio.run(main())
    assert asked == [N2.id] * 2
    assert raft.latest.configuration.has_vote(N2.id)


def test_a_voter_at_a_new_address_is_dialled_back_then_moved() -> None:
    raft = ModelRaft(N1, N2)
    moved = N2._replace(address=N3.address)
    raft.reachable = {moved.address: moved.id}
    asyncio.run(join(raft, moved))
    assert names(raft) == ["identify", "add_voter"]
    assert raft.latest.configuration == Configuration((N1, moved))


def test_a_nonvoter_at_a_new_address_is_moved_without_a_vote_then_promoted() -> None:
    raft = ModelRaft(N1, N2._replace(suffrage=Suffrage.NONVOTER))
    moved = N2._replace(address=N3.address)
    raft.reachable = {moved.address: moved.id}
    asyncio.run(join(raft, moved))
    assert names(raft) == JOINED
    assert raft.latest.configuration == Configuration((N1, moved))


@pytest.mark.parametrize("found", [None, "n9"])
@pytest.mark.parametrize("members", [(N1,), (N1, N2._replace(address=N3.address))])
def test_nobody_or_an_impostor_changes_nothing(
    found: str | None, members: tuple[Server, ...]
) -> None:
    raft = ModelRaft(*members)
    before = raft.latest
    if found is not None:
        raft.reachable = {N2.address: found}
    with pytest.raises(ConfigurationChangeError, match="n9" if found else "cannot be reached"):
        asyncio.run(join(raft, N2))
    assert names(raft) == ["identify"]
    assert raft.latest is before


def test_an_address_of_another_id_is_refused_without_dialling() -> None:
    raft = ModelRaft(N1, N3)
    with pytest.raises(ConfigurationChangeError, match=r"127.0.0.1:3 belongs to server n3"):
        asyncio.run(join(raft, N2._replace(address=N3.address)))
    assert raft.calls == []


def test_a_blackholed_address_is_refused_before_the_deadline() -> None:
    raft = ModelRaft()
    seconds: list[float] = []

    async def identify(address: ServerAddress, *, timeout: float) -> ServerID:
        seconds.append(timeout)
        raise PeerUnreachableError("timed out")

    raft.identify = identify  # type: ignore[method-assign] # the timeout is what is tested
    with pytest.raises(ConfigurationChangeError):
        asyncio.run(join(raft, N2, 5.0))
    assert 0 < seconds[0] <= 2.5


def test_not_caught_up_leaves_it_without_a_vote_and_says_so() -> None:
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}

    async def hang() -> None:
        raise TimedOutError("did not catch up", outcome=Outcome.DEFINITE)

    raft.hooks["wait_caught_up"] = hang
    with pytest.raises(TimedOutError, match="did not catch up"):
        asyncio.run(join(raft, N2))
    assert names(raft) == JOINED[:3]
    assert not raft.latest.configuration.has_vote(N2.id)


@pytest.mark.parametrize("step", JOINED[:3])
def test_leadership_lost_between_two_steps(step: str) -> None:
    """The joiner asks on; nothing more is done under a leadership that is over."""
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}

    async def depose() -> None:
        raft.leader = Leader(N3.id, N3.address)

    raft.hooks[step] = depose
    with pytest.raises(DifferentLeaderError) as caught:
        asyncio.run(join(raft, N2))
    assert caught.value.leader == Leader(N3.id, N3.address)
    assert names(raft) == JOINED[: JOINED.index(step) + 1]


@pytest.mark.parametrize("step", ["add_staging", "add_voter"])
def test_another_change_in_between_is_no_refusal(step: str) -> None:
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}
    interrupted: list[bool] = []

    async def interfere() -> None:
        if not interrupted:
            interrupted.append(True)
            raft.change(raft.latest.configuration.with_server(N3))

    raft.hooks[step] = interfere
    asyncio.run(join(raft, N2))
    assert names(raft).count(step) == 2
    assert raft.latest.configuration.has_vote(N2.id)
    assert raft.latest.configuration.has_vote(N3.id)


def test_removed_while_joining_it_starts_over_without_a_vote() -> None:
    """A leave that overtakes the promotion must not be undone by adding a voter outright."""
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}
    removed: list[bool] = []

    async def remove() -> None:
        if not removed:
            removed.append(True)
            raft.change(raft.latest.configuration.without(N2.id))

    raft.hooks["wait_caught_up"] = remove
    asyncio.run(join(raft, N2))
    assert names(raft) == [*JOINED[:3], "add_staging", "wait_caught_up", "add_voter"]


def test_a_refusal_of_the_cluster_stays_one() -> None:
    raft = ModelRaft()
    raft.reachable = {N2.address: N2.id}

    async def refuse() -> None:
        raise ConfigurationChangeError("no")

    raft.hooks["add_staging"] = refuse
    with pytest.raises(ConfigurationChangeError, match="no"):
        asyncio.run(join(raft, N2))
    assert names(raft) == JOINED[:2]


def test_two_joins_of_one_id_at_once_end_in_one_member() -> None:
    async def main() -> None:
        raft = ModelRaft()
        raft.reachable = {N2.address: N2.id}
        requests = [request(ChangeKind.JOIN, N2) for _ in range(3)]
        await answered(raft, *requests)
        for change in requests:
            await change.wait()
        assert raft.latest.configuration == Configuration((N1, N2))

    asyncio.run(main())


def test_leaving() -> None:
    raft = ModelRaft(N1, N2)
    asyncio.run(leave(raft, N2))
    assert raft.calls == [("remove_server", N2.id)]
    asyncio.run(leave(raft, N2))
    assert raft.calls == [("remove_server", N2.id)]  # the second was done already
    raft.commit_index -= 1
    with pytest.raises(TimedOutError):
        asyncio.run(leave(raft, N2))


@pytest.mark.parametrize("kind", ChangeKind)
def test_only_the_leader_acts(kind: ChangeKind) -> None:
    async def main() -> None:
        raft = ModelRaft(N1, N2)
        for leader, error in (
            (None, UnknownLeaderError),
            (Leader(N2.id, N2.address), DifferentLeaderError),
        ):
            raft.leader = leader
            change = request(kind, N2)
            await answered(raft, change)
            with pytest.raises(error):
                await change.wait()
        assert raft.calls == []

    asyncio.run(main())


# -- handling


def test_a_stuck_change_does_not_hold_up_the_rest() -> None:
    async def main() -> None:
        raft = ModelRaft()
        raft.reachable = {N2.address: N2.id, N3.address: N3.id}
        release = asyncio.Event()

        async def stick() -> None:
            if raft.calls[-1] == ("wait_caught_up", N2.id):
                await release.wait()

        raft.hooks["wait_caught_up"] = stick
        stuck, other = request(ChangeKind.JOIN, N2), request(ChangeKind.JOIN, N3)
        handling = asyncio.create_task(answered(raft, stuck, other))
        await other.wait()
        assert not stuck.done
        release.set()
        await stuck.wait()
        await handling

    asyncio.run(main())


def test_one_at_a_time_if_so_asked() -> None:
    async def main() -> None:
        raft = ModelRaft()
        raft.reachable = {N2.address: N2.id, N3.address: N3.id}
        await answered(
            raft,
            request(ChangeKind.JOIN, N2),
            request(ChangeKind.JOIN, N3),
            changes_max=1,
        )
        assert names(raft) == JOINED * 2

    asyncio.run(main())


@pytest.mark.parametrize("changes_max", [1, 16])
def test_it_ends_though_a_change_ignores_its_deadline(changes_max: int) -> None:
    async def main() -> None:
        handler = Handler()
        raft = ModelRaft()
        raft.reachable = {N2.address: N2.id}

        async def hang() -> None:
            await asyncio.Event().wait()

        raft.hooks["identify"] = hang
        handling = asyncio.create_task(
            handle_change_requests(raft, handler.requests(), changes_max=changes_max)
        )
        change = request(ChangeKind.JOIN, N2)
        handler._unanswered.add(change)
        assert handler._requests.put(change)
        await until(lambda: raft.calls)
        await handler.close()
        async with asyncio.timeout(5):
            await handling
        with pytest.raises(ShutdownError):
            await change.wait()

    asyncio.run(main())


def test_a_defect_in_a_change_is_answered_and_does_not_end_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        raft = ModelRaft()
        raft.reachable = {N2.address: N2.id}

        async def fail() -> None:
            raise ZeroDivisionError

        raft.hooks["identify"] = fail
        broken, fine = request(ChangeKind.JOIN, N2), request(ChangeKind.LEAVE, N3)
        await answered(raft, broken, fine)
        with pytest.raises(RaftHttpError, match="internal error"):
            await broken.wait()
        await fine.wait()

    asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_an_error(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        asyncio.run(answered(ModelRaft(), timeout=timeout))


def test_the_timeout_bounds_a_change_before_its_own_deadline() -> None:
    async def main() -> None:
        raft = ModelRaft()
        change = request(ChangeKind.JOIN, N2, seconds=1000)
        seconds: list[float] = []

        async def identify(address: ServerAddress, *, timeout: float) -> ServerID:
            seconds.append(timeout)
            return N2.id

        raft.identify = identify  # type: ignore[method-assign] # the timeout is what is tested
        await answered(raft, change, timeout=4.0)
        assert seconds[0] <= 2.0

    asyncio.run(main())


# -- a release: see also tests/test_released.py


async def release(raft: ModelRaft, server: Server) -> LogPosition | None:
    deadline = asyncio.get_running_loop().time() + 5
    change = ChangeRequest(ChangeKind.RELEASE, server.id, server.address, deadline=deadline)
    await answered(raft, change)
    return await change.wait()


def test_a_stranger_is_released_with_what_a_quorum_confirms() -> None:
    raft = ModelRaft()

    async def main() -> None:
        assert await release(raft, N3) == LogPosition(3, raft.commit_index)
        assert names(raft) == ["verify_leader", "committed_in_term"]

    asyncio.run(main())


def test_a_member_without_state_is_removed_and_released_with_that() -> None:
    """S62."""
    raft = ModelRaft(N1, N2)

    async def lost() -> None:
        raise RemoteError(NO_STATE)

    async def main() -> None:
        raft.hooks["identify"] = lost
        index = raft.latest.index
        assert await release(raft, N2) == LogPosition(3, index + 1)
        assert names(raft) == ["verify_leader", "identify", "remove_server", "committed_in_term"]
        assert raft.latest.configuration.get(N2.id) is None

    asyncio.run(main())
