"""`Raft`: the public server. One instance is one member of a cluster."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from rafthttp.raft.config import Config, ReloadableConfig
from rafthttp.raft.errors import (
    ConfigurationChangeError,
    LeadershipTransferError,
    Outcome,
    RaftError,
    ShutdownError,
    TimedOutError,
    TransportError,
)
from rafthttp.raft.fsm import FSM, check_fsm
from rafthttp.raft.reading import RaftReads
from rafthttp.raft.runtime import changes
from rafthttp.raft.runtime.beginning import begin
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.runtime.lifecycle import bootstrap_live, take_part, watch_removal
from rafthttp.raft.runtime.proposals import check_command
from rafthttp.raft.runtime.reads import FollowerReads
from rafthttp.raft.storage.protocols import LogStore, SnapshotMeta, SnapshotStore, StableStore
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    LogPosition,
    LogType,
    ServerAddress,
    ServerID,
    State,
)

_log = logging.getLogger("rafthttp.raft")


@dataclass(frozen=True, slots=True)
class Applied:
    """Where a command stands in the log, and what the state machine answered."""

    index: Index
    response: Any


class Raft(RaftReads):
    """A Raft server (hashicorp/raft's `Raft`). Create it with `start`, end it with `shutdown`.

    Every method that waits takes a `timeout` in seconds; None waits until the server can tell.
    """

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
            snapshot_store: None where no snapshots are kept: the log is never compacted, and no
                leader's snapshot is taken.
            transport: started here.
            forward_read: asks the leader for a read index, within a timeout in seconds (used by
                `read_index` on a follower; without it a follower's read is a NotLeaderError).
            takes_part: False refuses every RPC until `take_part`: for a server without state that
                may have been a voter, whose votes and acknowledgements are forgotten (S62).
            rng: source of election timeouts; the system's where None.
            wall_ns: wall clock that stamps new entries, nanoseconds since the Unix epoch.

        Raises:
            ConfigError: a field is out of bounds.
            StorageError: the disk cannot be read, its content is damaged, or the state machine can
                be restored from none of the snapshots.
        """
        config.validate()
        check_fsm(fsm)
        raft = cls(config, transport)
        raft._stable_store = stable_store
        state = await begin(config, fsm, log_store, stable_store, snapshot_store)
        raft._driver = Driver(
            config,
            fsm,
            log_store,
            stable_store,
            snapshot_store,
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
        if config.shutdown_on_remove:
            watch_removal(raft._driver, raft.id, config.election_timeout, raft._begin_shutdown)
        return raft

    async def take_part(self, votes_from: LogPosition) -> None:
        """Acknowledge from now on: no configuration counts on what this server forgot.

        It votes as if its log ended at `votes_from`, and campaigns once it does: the leader's last
        entry, or one of its own term that is committed, at a time when it had committed a
        configuration without this server (`committed_in_term`). Kept across restarts, before it
        counts.

        Raises:
            StorageError: it could not be kept; this server takes no part.
            ProtocolError: no log reaches there.
            ShutdownError: definite.
        """
        await take_part(self._driver, self._stable_store, votes_from)

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
        check_command(data)
        if timeout is None:
            return (await self._driver.propose(LogType.COMMAND, data, b""))[1]
        deadline = self._deadline(timeout)
        future = self._driver.propose(LogType.COMMAND, data, b"")
        return (await self._within(future, deadline))[1]

    async def apply_log(
        self, data: bytes, extensions: bytes = b"", *, timeout: float | None = None
    ) -> Applied:
        """`apply` with extensions, and with the index in the answer."""
        check_command(data)
        check_command(extensions)
        deadline = self._deadline(timeout)
        future = self._driver.propose(LogType.COMMAND, data, extensions)
        index, response = await self._within(future, deadline)
        return Applied(index, response)

    async def barrier(self, *, timeout: float | None = None) -> Index:
        """Wait until everything before this call is applied here (leader only). As `apply`."""
        deadline = self._deadline(timeout)
        future = self._driver.propose(LogType.BARRIER, b"", b"")
        return (await self._within(future, deadline))[0]

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

    async def add_staging(
        self,
        server_id: ServerID,
        address: ServerAddress,
        prev_index: Index = 0,
        *,
        timeout: float | None = None,
    ) -> Index:
        """Add a member without a vote that is to get one once it has caught up; as `add_voter`.

        To hashicorp/raft it is a nonvoter. `Autopilot` promotes it, or a join that is repeated.
        """
        return await self._change(changes.staging(server_id, address), prev_index, timeout)

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

    async def bootstrap_cluster(self, configuration: Configuration) -> None:
        """Begin a cluster on this running server, which has no state yet; returns once durable.

        hashicorp/raft's `BootstrapCluster` of a live server; `bootstrap_cluster` the function does
        it to stores. Where several servers are to begin together, each gets the same configuration.

        Raises:
            CantBootstrapError: definite; there is state already.
            ConfigError: this server does not vote in the configuration.
        """
        bootstrap_live(self._driver, configuration, self.id)
        core = self._driver.core
        await self._driver.watch(lambda: core.durable_index >= 1)

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

    # -- leadership

    async def leadership_transfer(self, *, timeout: float | None = None) -> Leader:
        """Hand leadership to the voter that has most of the log; returns who leads then.

        That voter is brought up to date first (S65); meanwhile proposals are refused with
        LeadershipTransferError. It ends within the election timeout, whatever happens; what was
        pending before is committed, or ends as unknown.

        Raises:
            LeadershipTransferError: definite; one is under way, there is no such voter, or none
                took over in time: then this server leads on, and proposals are accepted again.
            NotLeaderError: definite; this server does not lead (S68).
            TimedOutError: unknown where the other was told to campaign already.
        """
        return await self._transfer(None, None, timeout)

    async def leadership_transfer_to_server(
        self, server_id: ServerID, address: ServerAddress, *, timeout: float | None = None
    ) -> Leader:
        """`leadership_transfer` to this voter, which must be a member at this address."""
        return await self._transfer(server_id, address, timeout)

    async def hand_over(self, *, timeout: float, wait_heard: bool = False) -> bool:
        """Before a stop: let another voter lead, where this server leads and others could.

        Returns whether this server leads no longer (or never did). Not tried where the others that
        were heard lately are no quorum: then a leader's end costs nothing that they still have.

        Args:
            timeout: seconds for all of it.
            wait_heard: wait for the new leader's first word, so that what is under way here can be
                sent on to it; for who can still be dialled.
        """
        if not self._driver.core.is_dispensable or self._stop is not None:
            return self.state is not State.LEADER
        try:
            if wait_heard:
                await self.leadership_transfer(timeout=timeout)
            else:
                await self._driver.transfers.step_down(None, None, self._deadline(timeout))
        except RaftError as error:
            _log.warning("%s could not hand over leadership: %s", self.id, error)
        return self.state is not State.LEADER

    # -- snapshots

    async def snapshot(self, *, timeout: float | None = None) -> SnapshotMeta:
        """Take a snapshot now, of everything applied by now, and compact the log behind it.

        Also where the call is given up it is finished; calls at one time share one.

        Raises:
            NothingNewToSnapshotError: definite; nothing was applied since the last one.
            SnapshotError: definite; the state machine or the disk failed, or none are kept. The
                server goes on.
        """
        if self._stop is not None:
            raise ShutdownError("raft is shut down")
        taking = self._driver.snapshots.take()
        return await self._before(taking, self._deadline(timeout), "no snapshot in time")

    async def restore(
        self, meta: SnapshotMeta, source: BinaryIO, *, timeout: float | None = None
    ) -> None:
        """Replace the whole state by a snapshot from outside, on every server (leader only).

        For disaster recovery, as hashicorp/raft's `Restore`: of `meta`, `index` and `size` count;
        the configuration stays the cluster's own. The snapshot gets an index above all others, and
        every other server is sent it. Commands pending when it takes effect end as unknown; new
        ones are refused until then. Returns once a quorum has it.

        This server takes it for committed before the others have it: is leadership lost in between,
        they go on without it, and this one has to be wiped.

        Args:
            meta: what `source` holds.
            source: read on a thread; stays open.
            timeout: seconds; over it, a restore that has not taken effect is given up.

        Raises:
            NotLeaderError, ConfigurationChangeError: definite; not now.
            SnapshotError: as `outcome` says; definite where nothing has changed.
            LeadershipLostError, TimedOutError, ShutdownError: see `outcome`.
        """
        deadline = self._deadline(timeout)
        restores = self._driver.restores
        running = restores.begin(meta, source)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(running)
        except TimeoutError:
            given_up = restores.cancel_copying()
            raise TimedOutError(
                f"not restored within {timeout:g} s",
                outcome=Outcome.DEFINITE if given_up else Outcome.UNKNOWN,
                leader=self.leader_with_id(),
            ) from None
        except asyncio.CancelledError:
            if running.cancelled():
                raise ShutdownError(
                    "raft was shut down meanwhile", outcome=Outcome.UNKNOWN
                ) from None
            restores.cancel_copying()
            raise

    # -- settings

    def reloadable_config(self) -> ReloadableConfig:
        """The present settings, as far as `reload_config` changes them."""
        return ReloadableConfig.of(self._config)

    def reload_config(self, changed: ReloadableConfig) -> None:
        """Take over other settings without a restart; they count from now on.

        Raises:
            ConfigError: names the field and the bound; nothing has changed.
        """
        self._config = changed.applied_to(self._config)
        self._driver.reconfigure(self._config)

    # -- the end

    async def shutdown(self, *, hand_over: float | None = None) -> None:
        """Stop taking part; pending calls end. Closes transport, layer and stores. Idempotent.

        Args:
            hand_over: seconds that a leader may take to hand over leadership first (`hand_over`),
                so that nobody has to wait for an election; None: not at all.
        """
        if hand_over is not None:
            await self.hand_over(timeout=hand_over)
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._shutdown())
        await asyncio.shield(self._stop)

    # -- inside

    async def _shutdown(self) -> None:
        if self._forwarded is not None:
            self._forwarded.close(ShutdownError("raft was shut down"))
        await self._driver.close()

    async def _transfer(
        self, server_id: ServerID | None, address: ServerAddress | None, timeout: float | None
    ) -> Leader:
        self._deadline(timeout)  # checks it
        return await self._driver.transfers.run(
            server_id, address, timeout, self._config.election_timeout
        )

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
            if core.transferring:
                raise LeadershipTransferError(
                    "a leadership transfer is under way", leader=self.leader_with_id()
                )
            watch = self._driver.watch(
                lambda: (
                    core.transferring
                    or core.can_change_configuration
                    or core.state is not State.LEADER
                )
            )
            await self._before(watch, deadline, "another change of configuration is still pending")
        if prev_index and prev_index != core.configuration_index:
            raise ConfigurationChangeError(
                f"the configuration changed since {prev_index}; the latest is"
                f" {core.configuration_index}"
            )

        future = self._driver.propose_configuration(changes.checked(change))
        return (await self._within(future, deadline))[0]

    async def _within(
        self, future: asyncio.Future[tuple[Index, Any]], deadline: float | None
    ) -> tuple[Index, Any]:
        """Wait for a proposal; a timeout is unknown if it stands in the log, definite if not."""
        if deadline is None:
            return await future
        # A timer of its own costs a third of an `asyncio.timeout`, which is a tenth of a `PUT`.
        timer = asyncio.get_running_loop().call_at(deadline, self._overdue, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _overdue(self, future: asyncio.Future[tuple[Index, Any]]) -> None:
        """The client's time is over; a proposal that ended in this very turn has its answer."""
        if future.done():
            return
        queued = self._driver.pending.is_queued(future)
        future.set_exception(
            TimedOutError(
                "not applied in time",
                outcome=Outcome.DEFINITE if queued else Outcome.UNKNOWN,
                leader=self.leader_with_id(),
            )
        )
        future.exception()  # whoever waits may be cancelled in this very turn

    def _on_failed(self, error: Exception) -> None:
        self._failure = error
        self._begin_shutdown()

    def _begin_shutdown(self) -> None:
        if self._stop is None:
            self._stop = asyncio.get_running_loop().create_task(self._shutdown())
