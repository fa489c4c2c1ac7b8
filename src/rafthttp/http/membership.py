"""Join and leave: what is asked, by whom it is answered, and the flow between.

Knows configurations and errors; of a `Raft` only the few methods of `MembershipRaft`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Final, Protocol

from rafthttp.http.handshake import printable
from rafthttp.http.messages import Request
from rafthttp.raft.errors import (
    ConfigError,
    ConfigurationChangeError,
    DifferentLeaderError,
    NotLeaderError,
    Outcome,
    RaftError,
    RaftHttpError,
    RemoteError,
    RequestRefusedError,
    TimedOutError,
    TransportError,
    UnknownLeaderError,
)
from rafthttp.raft.transport.protocols import NO_STATE
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    LogPosition,
    ServerAddress,
    ServerID,
    Suffrage,
)

log: Final = logging.getLogger("rafthttp.http")

CHANGES_MAX: Final = 16
"""Changes under way at a time. The log takes one configuration after the other anyway; what runs
side by side is dialling back and catching up, so that one stuck server does not hold up the
rest."""


class ChangeKind(StrEnum):
    """What a change request is for."""

    JOIN = "join"
    LEAVE = "leave"
    RELEASE = "release"
    """A server without state is about to join: it may not be counted as the voter it was (S62)."""


class ChangeRequest:
    """One request to change the membership; answered once, by `respond` or `fail`.

    Attributes:
        kind: join, leave or release.
        id: the server.
        address: its address; None when it leaves.
        deadline: on the event loop's clock; later answers reach nobody.
    """

    def __init__(
        self,
        kind: ChangeKind,
        server_id: ServerID,
        address: ServerAddress | None = None,
        *,
        deadline: float,
    ) -> None:
        self.kind = kind
        self.id = server_id
        self.address = address
        self.deadline = deadline
        self._answer: asyncio.Future[LogPosition | None] = (
            asyncio.get_running_loop().create_future()
        )

    def __str__(self) -> str:
        return f"{self.kind.value} server {self.id}"

    @property
    def done(self) -> bool:
        """Whether it is answered, or nobody waits any more."""
        return self._answer.done()

    def respond(self, released: LogPosition | None = None) -> None:
        """The change is made. Without effect once done.

        For a release, `released` is a committed position of the leader's own term, read after a
        configuration without the server was committed (`Raft.committed_in_term`).
        """
        if not self._answer.done():
            self._answer.set_result(released)

    def fail(self, error: RaftHttpError) -> None:
        """The change is not made, or nobody knows. Without effect once done."""
        if not self._answer.done():
            self._answer.set_exception(error)

    async def wait(self) -> LogPosition | None:
        """Wait for the answer, that of `respond`; raises what `fail` was given."""
        return await asyncio.shield(self._answer)

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call back, soon, once it is done."""
        self._answer.add_done_callback(lambda _: callback())

    def abandon(self) -> None:
        """Nobody waits any more."""
        if not self._answer.cancel() and not self._answer.cancelled():
            self._answer.exception()  # seen: no "exception was never retrieved"


def refusal_of(
    error: RaftHttpError, change: ChangeRequest, request: Request
) -> RequestRefusedError:
    """What to answer when a change failed, by wire.md's table."""
    if isinstance(error, RequestRefusedError):
        return error
    text = f"failed to {change}: {error}"
    if isinstance(error, NotLeaderError) and error.leader is not None:
        location = f"{request.scheme}://{error.leader.address}{request.target}"
        return RequestRefusedError(308, text, headers=(("Location", location),))
    if isinstance(error, ConfigurationChangeError):
        return RequestRefusedError(403, text)
    if isinstance(error, (RaftError, TransportError)):
        return RequestRefusedError(503, text, headers=(("Retry-After", "1"),))
    return RequestRefusedError(500, text)


# -- the member's side


class LatestConfiguration(Protocol):
    """A configuration and where it stands in the log."""

    @property
    def configuration(self) -> Configuration:
        """The members."""
        ...

    @property
    def index(self) -> Index:
        """The index of its entry."""
        ...


class MembershipRaft(Protocol):
    """What changing the membership needs of a `Raft`; see there."""

    @property
    def id(self) -> ServerID:
        """This server's id."""
        ...

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        ...

    def leader_with_id(self) -> Leader | None:
        """Who leads, as far as this server knows."""
        ...

    def get_configuration(self) -> LatestConfiguration:
        """The latest configuration, committed or not."""
        ...

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add, promote, or change the address of a voter."""
        ...

    async def add_staging(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a server without a vote that is to get one."""
        ...

    async def remove_server(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Remove a member."""
        ...

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        """Wait until that member has everything committed by now."""
        ...

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        """Check with a quorum that this server leads."""
        ...

    def committed_in_term(self) -> LogPosition:
        """The last committed entry, of the leader's own term."""
        ...

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        """Ask who is at an address."""
        ...


class WaitStable(Protocol):
    """Waits until a member has been healthy for long enough to vote."""

    async def __call__(self, server_id: ServerID, *, timeout: float) -> None:
        """Raises `RaftError` where it was not within `timeout` seconds."""
        ...


async def handle_change_requests(
    raft: MembershipRaft,
    requests: AsyncIterator[ChangeRequest],
    *,
    timeout: float = 10.0,
    changes_max: int = CHANGES_MAX,
    wait_stable: WaitStable | None = None,
) -> None:
    """Answer change requests until there are no more (Go's `HandleChangeRequests`).

    Run it as a task: it ends by itself when the handler is closed, which shutting the server down
    does. Each request is bounded by its own deadline and by `timeout` seconds; `changes_max` run
    side by side. `wait_stable` (`Autopilot.wait_stable`) holds up a promotion until the server,
    which has caught up, has been healthy for long enough.

    Raises:
        ConfigError: the timeout is not positive.
    """
    if not timeout > 0:
        raise ConfigError(f"timeout is {timeout}; it must be more than 0")
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(changes_max)
    tasks: set[asyncio.Task[None]] = set()

    async def answer(request: ChangeRequest) -> None:
        try:
            deadline = min(request.deadline, loop.time() + timeout)
            await _answer(raft, request, deadline, wait_stable)
        finally:
            slots.release()

    try:
        while True:
            await slots.acquire()
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            task = loop.create_task(answer(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            # Answered elsewhere (the handler was closed) or given up: the slot is free again, even
            # if the server does not keep its own timeouts.
            request.add_done_callback(task.cancel)
    finally:
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _answer(
    raft: MembershipRaft,
    request: ChangeRequest,
    deadline: float,
    wait_stable: WaitStable | None,
) -> None:
    released: LogPosition | None = None
    try:
        if request.kind is ChangeKind.JOIN:
            await _Join(raft, request, deadline, wait_stable).run()
        elif request.kind is ChangeKind.RELEASE:
            released = await _release(raft, request, deadline)
        else:
            await _leave(raft, request, deadline)
    except RaftHttpError as error:
        log.info("could not %s: %s", request, error)
        request.fail(error)
    except Exception:
        log.exception("could not %s", request)
        request.fail(RaftHttpError("internal error"))
    else:
        request.respond(released)


class _Join:
    """One join. Each step reads the configuration anew, because each wait may change it.

    1. A voter at this address: done. 2. An address of another id: refused. 3. Dial back: is it
    there, and is it who it says? 4. Unknown, or a nonvoter: make it a staging server, which cannot
    endanger the quorum, and which every leader knows to be joining. 5. Wait until it has caught up,
    and is stable. 6. Promote it. A voter at a new address goes from 3 to 6. A leader that dies
    after 4 strands nobody: the next one promotes it, by itself or as the joiner asks again.
    """

    def __init__(
        self,
        raft: MembershipRaft,
        request: ChangeRequest,
        deadline: float,
        wait_stable: WaitStable | None,
    ) -> None:
        assert request.address is not None, "a join has an address"
        self._raft = raft
        self._id = request.id
        self._address = request.address
        self._deadline = deadline
        self._wait_stable = wait_stable
        self._is_verified = False
        self._is_caught_up = False

    async def run(self) -> None:
        """Go through the steps.

        Raises:
            RaftHttpError: what the joiner is to be told.
        """
        while not await self._step():
            pass

    async def _step(self) -> bool:
        raft = self._raft
        _require_leader(raft)
        latest = raft.get_configuration()
        server = latest.configuration.get(self._id)
        is_voter = server is not None and server.suffrage is Suffrage.VOTER
        is_here = server is not None and server.address == self._address
        if is_voter and is_here:
            _require_committed(raft, latest)
            return True
        owner = latest.configuration.by_address(self._address)
        if owner is not None and owner.id != self._id:
            raise ConfigurationChangeError(
                f"address {self._address} belongs to server {owner.id} already"
            )
        if not self._is_verified:
            await self._dial_back()
        elif is_voter:
            await self._change(latest, is_voter=True)
        elif server is None or not is_here or server.suffrage is Suffrage.NONVOTER:
            await self._change(latest, is_voter=False)
            self._is_caught_up = False
        elif not self._is_caught_up:
            await raft.wait_caught_up(self._id, timeout=_remaining(self._deadline))
            if self._wait_stable is not None:
                await self._wait_stable(self._id, timeout=_remaining(self._deadline))
            self._is_caught_up = True
        else:
            await self._change(latest, is_voter=True)
        return False

    async def _dial_back(self) -> None:
        # Half of what is left: an address that swallows packets must be answered 403, not time out.
        timeout = _remaining(self._deadline) / 2
        try:
            found = await self._raft.identify(self._address, timeout=timeout)
        except TransportError as error:
            raise ConfigurationChangeError(
                f"{self._address} cannot be reached from server {self._raft.id}: {error}"
            ) from error
        if found != self._id:
            raise ConfigurationChangeError(
                f"at {self._address} is server {printable(found)}, not {self._id}"
            )
        self._is_verified = True

    async def _change(self, latest: LatestConfiguration, *, is_voter: bool) -> None:
        change = self._raft.add_voter if is_voter else self._raft.add_staging
        timeout = _remaining(self._deadline)
        try:
            await change(self._id, self._address, latest.index, timeout=timeout)
        except ConfigurationChangeError:
            if self._raft.get_configuration().index == latest.index:
                raise
            # Somebody else's change came first: look again.


async def _leave(raft: MembershipRaft, request: ChangeRequest, deadline: float) -> None:
    _require_leader(raft)
    latest = raft.get_configuration()
    if latest.configuration.get(request.id) is None:
        _require_committed(raft, latest)
        return
    await raft.remove_server(request.id, timeout=_remaining(deadline))


async def _release(raft: MembershipRaft, request: ChangeRequest, deadline: float) -> LogPosition:
    """Make sure that no configuration has this server, which remembers nothing (S62).

    It forgot what it acknowledged and whom it voted for: counted as the voter it was, it could
    elect a leader that lacks a committed entry. Its removal is committed by a majority of the
    others, which meets every majority it was part of; then it is a server like any new one, once
    its log has what is committed here by now, and so its removal: until then somebody who was
    removed before, and does not know it, may count on its vote.
    """
    _require_leader(raft)
    # The configuration of a leader that was deposed may be older than the server.
    await raft.verify_leader(timeout=_remaining(deadline))
    latest = raft.get_configuration()
    server = latest.configuration.get(request.id)
    if server is None:
        _require_committed(raft, latest)
        return raft.committed_in_term()
    if server.address != request.address:
        raise ConfigurationChangeError(
            f"server {request.id} is a member at {server.address}: the new server needs another id,"
            " or the old one is to leave first"
        )
    await _check_lost(raft, server.address, _remaining(deadline) / 2)
    log.warning("server %s has lost its state: it is removed, and may join anew", request.id)
    await raft.remove_server(request.id, latest.index, timeout=_remaining(deadline))
    return raft.committed_in_term()


async def _check_lost(raft: MembershipRaft, address: ServerAddress, timeout: float) -> None:
    """Nobody but the server itself, at its address, can say that its state is lost."""
    try:
        await raft.identify(address, timeout=timeout)
    except RemoteError as error:
        if str(error) == NO_STATE:
            return
        raise ConfigurationChangeError(f"{address} answered: {error}") from error
    except TransportError as error:
        raise ConfigurationChangeError(
            f"{address} cannot be reached from server {raft.id}: {error}"
        ) from error
    raise ConfigurationChangeError(f"the server at {address} has its state")


def _require_leader(raft: MembershipRaft) -> None:
    leader = raft.leader_with_id()
    if leader is None:
        raise UnknownLeaderError("no leader is known")
    if leader.id != raft.id:
        raise DifferentLeaderError(f"server {leader.id} leads", leader=leader)


def _require_committed(raft: MembershipRaft, latest: LatestConfiguration) -> None:
    # What was appended may be lost with its leader; "done" is said of what cannot be.
    if raft.commit_index < latest.index:
        raise TimedOutError("the change is not committed yet", outcome=Outcome.UNKNOWN, leader=None)


def _remaining(deadline: float) -> float:
    remaining = deadline - asyncio.get_running_loop().time()
    if remaining <= 0:
        raise TimedOutError("not done in time", outcome=Outcome.UNKNOWN)
    return remaining
