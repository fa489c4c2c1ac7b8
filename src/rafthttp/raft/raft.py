"""`Raft`: the public server. One instance is one member of a cluster."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rafthttp.raft.config import Config
from rafthttp.raft.errors import (
    ConfigError,
    ConfigurationChangeError,
    Outcome,
    ShutdownError,
    TimedOutError,
    TransportError,
)
from rafthttp.raft.fsm import FSM, check_fsm
from rafthttp.raft.observer import Observer
from rafthttp.raft.runtime import changes, restart
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.runtime.reads import FollowerReads
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    LogType,
    ServerAddress,
    ServerID,
    State,
    Term,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Applied:
    """Where a command stands in the log, and what the state machine answered."""

    index: Index
    response: Any


@dataclass(frozen=True, slots=True)
class LatestConfiguration:
    """The latest configuration, committed or not, and its index."""

    configuration: Configuration
    index: Index


class Raft:
    """A Raft server (hashicorp/raft's `Raft`). Create it with `start`, end it with `shutdown`.

    Every method that waits takes a `timeout` in seconds; None waits until the server can tell.
    """

    def __init__(self, config: Config, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._driver: Driver
        self._forwarded: FollowerReads | None = None
        self._stop: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    @classmethod
    async def start(
        cls,
        config: Config,
        fsm: FSM,
        log_store: LogStore,
        stable_store: StableStore,
        snapshot_store: SnapshotStore | None,
        transport: Transport,
        *,
        forward_read: Callable[[Leader, float], Awaitable[Index]] | None = None,
        takes_part: bool = True,
        rng: random.Random | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> Raft:
        """Start a server on its stores; it takes part as soon as this returns.

        The stores and the transport belong to the server from here on: `shutdown` closes them.

        Args:
            config: checked here.
            fsm: the application's state machine.
            log_store: the log; may be the same object as `stable_store`, for one commit a turn.
            stable_store: term, vote, configurations.
            snapshot_store: None where no snapshots are kept.
            transport: started here.
            forward_read: asks the leader for a read index, within a timeout in seconds (used by
                `read_index` on a follower; without it a follower's read is a NotLeaderError).
            takes_part: False refuses every RPC until `take_part`: for a server without state that
                may have been a voter, whose votes and acknowledgements are forgotten (S62).
            rng: source of election timeouts; the system's where None.
            wall_ns: wall clock that stamps new entries, nanoseconds since the Unix epoch.

        Raises:
            ConfigError: a field is out of bounds.
            StorageError: the disk cannot be read, or its content is damaged.
        """
        config.validate()
        check_fsm(fsm)
        raft = cls(config, transport)
        state = restart.load(log_store, stable_store, snapshot_store)
        raft._driver = Driver(
            config,
            fsm,
            log_store,
            stable_store,
            transport,
            state,
            on_failed=raft._on_failed,
            rng=rng,
            wall_ns=wall_ns,
        )
        if forward_read is not None:
            raft._forwarded = FollowerReads(forward_read)
        raft._driver.inbound.has_no_part = not takes_part
        raft._driver.start()
        return raft

    def take_part(self) -> None:
        """Vote and acknowledge from now on: no configuration counts on what this server forgot."""
        self._driver.inbound.has_no_part = False

    # -- commands

    async def apply(self, data: bytes, *, timeout: float | None = None) -> Any:
        """Replicate one command; returns what the state machine answered once it is applied here.

        An exception the state machine raised is raised here.

        Raises:
            NotLeaderError, OverloadedError, EntryTooLargeError, LeadershipTransferError: definite,
                the command is not in the log.
            LeadershipLostError: unknown, it may yet be committed.
            TimedOutError, ShutdownError, StorageFailedError: see `outcome`.
        """
        future = self._driver.propose(LogType.COMMAND, data, b"")
        if timeout is None:
            return (await future)[1]
        return (await self._within(future, timeout))[1]

    async def apply_log(
        self, data: bytes, extensions: bytes = b"", *, timeout: float | None = None
    ) -> Applied:
        """`apply` with extensions, and with the index in the answer."""
        future = self._driver.propose(LogType.COMMAND, data, extensions)
        index, response = await self._within(future, timeout)
        return Applied(index, response)

    async def barrier(self, *, timeout: float | None = None) -> Index:
        """Wait until everything before this call is applied here (leader only). As `apply`."""
        future = self._driver.propose(LogType.BARRIER, b"", b"")
        return (await self._within(future, timeout))[0]

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        """Check with a quorum that this server leads (S71).

        Raises:
            NotLeaderError: it does not, or leadership was lost before a quorum answered.
        """
        await self.confirm_read_index(timeout=timeout)

    async def read_index(self, *, timeout: float | None = None) -> Index:
        """Wait until a local read is linearizable (Raft thesis §6.4); returns its index.

        A quorum round on the leader, shared by all readers of a turn; on a follower one forward for
        the index, then the wait until it is applied here.

        Raises:
            NotLeaderError: definite; no leader, or no way to ask it.
        """
        deadline = self._deadline(timeout)
        if self.state is State.LEADER or self._forwarded is None:
            index = await self.confirm_read_index(timeout=timeout)
        else:
            waiting = self._forwarded.get(self._other_leader, self._config.election_timeout)
            index = await self._before(waiting, deadline, "no read index from the leader in time")
        if self.applied_index < index:
            wait = self._driver.applier.wait(index)
            await self._before(wait, deadline, f"index {index} was not applied here in time")
        return index

    async def confirm_read_index(self, *, timeout: float | None = None) -> Index:
        """A quorum-confirmed index, not waited for: the leader's half of a follower's `read_index`.

        Raises:
            NotLeaderError: definite.
        """
        deadline = self._deadline(timeout)
        future = self._driver.confirm_read()
        return await self._before(future, deadline, "no quorum answered in time")

    def flush_commit(self) -> None:
        """Tell idle followers the commit index now; a reader over there is waiting for it."""
        self._driver.flush_commit()

    # -- membership

    async def add_voter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a voter, promote a nonvoter, or change a member's address.

        With `prev_index` the change is refused unless the latest configuration stands there.
        Returns when the change is committed, with its index.

        Raises:
            ConfigurationChangeError: definite; the cluster refuses it. And as `apply`.
        """
        return await self._change(changes.voter(server_id, address), prev_index, timeout)

    async def add_nonvoter(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a member that gets the log and does not vote; a voter stays one. As `add_voter`."""
        return await self._change(changes.nonvoter(server_id, address), prev_index, timeout)

    async def demote_voter(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Make a voter a nonvoter; an unknown id changes nothing. As `add_voter`."""
        return await self._change(changes.demoted(server_id), prev_index, timeout)

    async def remove_server(
        self, server_id: ServerID, prev_index: Index = 0, *, timeout: float | None = None
    ) -> Index:
        """Remove a member; a leader that removes itself steps down once that is committed.

        An unknown id changes nothing. As `add_voter`.
        """
        return await self._change(changes.removed(server_id), prev_index, timeout)

    async def wait_caught_up(self, server_id: ServerID, *, timeout: float) -> None:
        """Leader only: wait until that member's log holds everything committed by now.

        Raises:
            TimedOutError, NotLeaderError: definite, nothing was changed.
        """
        core = self._driver.core
        goal, term = core.commit_index, core.term
        if core.state is not State.LEADER:
            raise self._driver.not_leader()

        def done() -> bool:
            return core.term != term or core.match_index(server_id) >= goal

        watch = self._driver.watch(done)
        await self._before(watch, self._deadline(timeout), f"{server_id} did not catch up in time")
        if core.term != term or core.state is not State.LEADER:
            raise self._driver.not_leader()

    async def identify(self, address: ServerAddress, *, timeout: float) -> ServerID:
        """Dial `address` and ask who is there, changing no state.

        Raises:
            TransportError: nobody answers, or not as a raft server.
        """
        header = await self._transport.identify(address, timeout)
        if not header.id:
            raise TransportError(f"{address} does not say who it is")
        return header.id

    def get_configuration(self) -> LatestConfiguration:
        """The latest configuration in this server's log."""
        core = self._driver.core
        return LatestConfiguration(core.configuration, core.configuration_index)

    # -- state

    @property
    def id(self) -> ServerID:
        """This server's id."""
        return self._config.local_id

    @property
    def address(self) -> ServerAddress:
        """This server's own address."""
        return self._transport.local_address

    @property
    def state(self) -> State:
        """Role now."""
        return State.SHUTDOWN if self._stop is not None else self._driver.core.state

    @property
    def current_term(self) -> Term:
        """Term now."""
        return self._driver.core.term

    @property
    def last_index(self) -> Index:
        """Last index in the log, durable or not."""
        return self._driver.core.last_index

    @property
    def commit_index(self) -> Index:
        """Highest index known to be committed."""
        return self._driver.core.commit_index

    @property
    def applied_index(self) -> Index:
        """Highest index applied to the state machine."""
        return self._driver.applier.applied

    @property
    def last_contact(self) -> float | None:
        """Seconds since the leader was heard; 0 on the leader, None if never heard."""
        core = self._driver.core
        if core.state is State.LEADER:
            return 0.0
        heard = core.last_contact_ns
        return None if heard is None else max(0, self._driver.now_ns() - heard) / 1e9

    @property
    def failure(self) -> Exception | None:
        """Why this server takes no part any more, or None."""
        return self._failure or self._driver.failure

    def leader_with_id(self) -> Leader | None:
        """Who leads, as far as this server knows."""
        return None if self._stop is not None else self._driver.leader

    def leader_changes(self) -> AsyncIterator[Leader | None]:
        """The leader now, then each change, until shutdown. A slow reader sees the newest only."""
        return self._driver.notices.leaders()

    def register_observer(self, observer: Observer) -> None:
        """Tell `observer` of what happens from now on, until `deregister_observer` or shutdown."""
        self._driver.notices.register(observer)

    def deregister_observer(self, observer: Observer) -> None:
        """Tell it no more; its iterator ends. Idempotent."""
        self._driver.notices.deregister(observer)

    def stats(self) -> dict[str, str | int | float | None]:
        """Figures for people and monitoring; the keys are hashicorp/raft's where it has them."""
        core = self._driver.core
        return {
            "state": self.state.value,
            "term": core.term,
            "last_log_index": core.last_index,
            "last_log_term": core.last_term,
            "commit_index": core.commit_index,
            "applied_index": self.applied_index,
            "fsm_pending": core.commit_index - self.applied_index,
            "pending_applies": len(self._driver.pending),
            "last_contact": self.last_contact,
            "num_peers": len([s for s in core.configuration.voters if s.id != self.id]),
            "latest_configuration_index": core.configuration_index,
            "protocol_version": 3,
            "failure": None if self.failure is None else str(self.failure),
        }

    async def shutdown(self) -> None:
        """Stop taking part; pending calls end. Closes transport, layer and stores. Idempotent."""
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._shutdown())
        await asyncio.shield(self._stop)

    # -- inside

    async def _shutdown(self) -> None:
        if self._forwarded is not None:
            self._forwarded.close(ShutdownError("raft was shut down"))
        await self._driver.close()

    async def _change(
        self,
        change: changes.Change,
        prev_index: Index,
        timeout: float | None,
    ) -> Index:
        deadline = self._deadline(timeout)
        core = self._driver.core
        while not core.can_change_configuration:
            if core.state is not State.LEADER or self._stop is not None:
                raise self._driver.not_leader()
            watch = self._driver.watch(
                lambda: core.can_change_configuration or core.state is not State.LEADER
            )
            await self._before(watch, deadline, "another change of configuration is still pending")
        if prev_index and prev_index != core.configuration_index:
            raise ConfigurationChangeError(
                f"the configuration changed since {prev_index}; the latest is"
                f" {core.configuration_index}"
            )

        future = self._driver.propose_configuration(changes.checked(change))
        return (await self._within(future, None if deadline is None else deadline - self._now()))[0]

    def _other_leader(self) -> Leader:
        if self._stop is not None:
            raise ShutdownError("raft is shut down")
        leader = self._driver.leader
        if leader is None or leader.id == self.id:
            raise self._driver.not_leader()
        return leader

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _deadline(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        if timeout <= 0:
            raise ConfigError(f"timeout is {timeout}; it must be above 0")
        return self._now() + timeout

    async def _before(self, waiting: Awaitable[_T], deadline: float | None, text: str) -> _T:
        """Wait for what changes nothing; a timeout is definite."""
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting
        except TimeoutError:
            raise TimedOutError(
                text, outcome=Outcome.DEFINITE, leader=self.leader_with_id()
            ) from None

    async def _within(
        self, future: asyncio.Future[tuple[Index, Any]], timeout: float | None
    ) -> tuple[Index, Any]:
        """Wait for a proposal; a timeout is unknown if it stands in the log, definite if not."""
        deadline = self._deadline(timeout)
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            queued = self._driver.pending.is_queued(future)
            raise TimedOutError(
                f"not applied within {timeout:g} s",
                outcome=Outcome.DEFINITE if queued else Outcome.UNKNOWN,
                leader=self.leader_with_id(),
            ) from None

    def _on_failed(self, error: Exception) -> None:
        self._failure = error
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._shutdown())


async def bootstrap_cluster(
    config: Config,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
    configuration: Configuration,
) -> None:
    """Write the first configuration of a new cluster (index 1, term 1), before `Raft.start`.

    Raises:
        CantBootstrapError: there is state already, or nobody votes.
        ConfigError: this server is not in the configuration.
    """
    config.validate()
    if configuration.get(config.local_id) is None:
        raise ConfigError(f"local_id {config.local_id!r} is not in the configuration")
    restart.bootstrap(log_store, stable_store, snapshot_store, configuration, time.time_ns())


has_existing_state = restart.has_existing_state
