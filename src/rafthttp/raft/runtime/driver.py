"""The driver: feeds the core, and carries out each `Ready`.

Everything runs on one event loop. Inputs come from callbacks and schedule one turn; a turn takes
the queued proposals, then each `Ready`, and hands it to the lanes (disk, peers, state machine).
There is no `await` between reading the core's state and acting on it.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

from rafthttp.raft.config import Config
from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    InitialState,
    Persist,
    Ready,
)
from rafthttp.raft.errors import (
    AbortedByRestoreError,
    LeadershipLostError,
    LeadershipTransferError,
    NotLeaderError,
    Outcome,
    RaftError,
    ShutdownError,
    StorageFailedError,
    UnknownLeaderError,
)
from rafthttp.raft.fsm import FSM
from rafthttp.raft.runtime.applier import Applier
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.runtime.clock import LeaseClock
from rafthttp.raft.runtime.disk import DiskLane, InlineLane, ThreadLane
from rafthttp.raft.runtime.inbound import Inbound
from rafthttp.raft.runtime.install import Installer
from rafthttp.raft.runtime.notices import Notices
from rafthttp.raft.runtime.outbound import Outbound
from rafthttp.raft.runtime.proposals import Pending, Proposal, not_leader_error
from rafthttp.raft.runtime.reads import LeaderReads
from rafthttp.raft.runtime.restart import (
    CONFIGURATIONS,
    HARD_STATE,
    encode_configurations,
    encode_hard_state,
)
from rafthttp.raft.runtime.restoring import Restores
from rafthttp.raft.runtime.send_snapshot import SnapshotSender
from rafthttp.raft.runtime.settings import core_config
from rafthttp.raft.runtime.snapshots import Snapshots
from rafthttp.raft.runtime.transfer import Transfers
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import (
    Configuration,
    Index,
    Leader,
    Log,
    LogBatch,
    LogType,
    LogWrite,
    ServerAddress,
    State,
    Term,
)
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import decode_log, encode_log, encode_logs
from rafthttp.raft.wire.records import RPCHeader

_log = logging.getLogger("rafthttp.raft")

# A turn that does not come to rest gives the loop its turn in between; each pass has its own work,
# so a handful covers every real chain (proposal, inline write, commit, apply).
_READY_A_TURN_MAX: Final = 16
# One turn's entries are one write: large enough for full speed, small enough that a disk shows
# progress well within an election timeout.
_PROPOSED_A_TURN_BYTES: Final = 4 << 20


class Driver:
    """Owns the core and its lanes. `Raft` is its public face.

    Args:
        on_failed: told once when the server cannot go on.
        wall_ns: wall clock for `Log.appended_at_ns`, nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        config: Config,
        fsm: FSM,
        log_store: LogStore,
        stable_store: StableStore,
        snapshot_store: SnapshotStore | None,
        transport: Transport,
        state: InitialState,
        *,
        on_failed: Callable[[Exception], None],
        rng: random.Random | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._wall_ns = wall_ns
        self._on_failed = on_failed
        self.core = Consensus(
            core_config(config), state, rng or random.SystemRandom(), self.now_ns()
        )
        self.notices = Notices(self.core.configuration)
        self.pending = Pending(
            config.pending_applies_max, config.pending_bytes_max, config.entry_size_bytes_max
        )
        self.cache = LogCache(state.last_index)
        self._log_store = log_store
        self.disk: DiskLane = (
            ThreadLane(log_store, stable_store, self._on_durable, self.on_write_failed)
            if log_store.blocking
            else InlineLane(log_store, stable_store, self.on_write_failed)
        )
        self._durable_index: Index = state.last_index
        self.applier = Applier(
            fsm, self.cache, self.pending, state.snapshot_index, self.read, self.fail
        )
        self._header = RPCHeader(id=config.local_id, address=ServerAddress(transport.local_address))
        self.lease_clock = LeaseClock(self.now_ns)
        heard_ns = self.lease_clock.fresh_ns if config.lease_reads else self.now_ns
        self.inbound = Inbound(self.core, self.cache, self._header, heard_ns, self.wake)
        self.snapshots = Snapshots(
            config, fsm, log_store, snapshot_store, state.snapshot_index, state.snapshot_term, self
        )
        self.restores = Restores(fsm, self)
        self.sender = SnapshotSender(self.core, transport, self._header, self.snapshots, self)
        self.inbound.installer = Installer(self.snapshots, self.restores, self)
        self._outbound = Outbound(
            self.core, transport, self._header, config.election_timeout, self.sender, self
        )
        self._turn_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._reads = LeaderReads(lambda read: self.core.on_read(read, self.now_ns()))
        self.transfers = Transfers(self)
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.failure: Exception | None = None
        self.closed = False

    def start(self) -> None:
        """Take part from now on."""
        self._transport.start(self._header, self.inbound)
        self.snapshots.start()
        self.wake()

    def now_ns(self) -> int:
        """The event loop's monotonic clock."""
        return int(self._loop.time() * 1e9)

    def wake(self) -> None:
        """Schedule a turn; many inputs of one pass of the loop share it."""
        if self._turn_handle is None and not self.closed:
            self._turn_handle = self._loop.call_soon(self._turn)

    # -- clients

    def propose(
        self, kind: LogType, data: bytes, extensions: bytes
    ) -> asyncio.Future[tuple[Index, Any]]:
        """Queue an entry for this turn; the future gets (index, response) once it is applied.

        Raises:
            RaftError: definite; nothing was queued.
        """
        if self.closed or not self.core.accepts_proposals:
            self._refuse()
        future: asyncio.Future[tuple[Index, Any]] = self._loop.create_future()
        self.pending.add(Proposal(kind, data, extensions, future))
        self.wake()
        return future

    def propose_configuration(
        self, change: Callable[[Configuration], Configuration]
    ) -> asyncio.Future[tuple[Index, Any]]:
        """Append the changed configuration now; the caller saw `can_change_configuration`.

        Raises:
            RaftError: definite; nothing was proposed.
        """
        if self.closed or not self.core.accepts_proposals:
            self._refuse()
        now = self.now_ns()
        configuration = change(self.core.configuration)
        future: asyncio.Future[tuple[Index, Any]] = self._loop.create_future()
        if configuration == self.core.configuration:
            future.set_result((self.core.configuration_index, None))
            return future
        data = encode_configuration(configuration)
        index = self.core.last_index + 1
        record = encode_log(
            index, self.core.term, LogType.CONFIGURATION, data, b"", self._wall_ns()
        )
        self.core.propose_configuration(configuration, len(record), now)
        self.cache.append([record], [decode_log(record)])
        self.pending.proposed(index, [Proposal(LogType.CONFIGURATION, b"", b"", future)])
        self.wake()
        return future

    def confirm_read(self) -> asyncio.Future[Index]:
        """A read index confirmed by a quorum round, shared by all readers of a turn."""
        self.check_leads()
        self.wake()
        return self._reads.add()

    def flush_commit(self) -> None:
        """Tell idle followers the commit index now: a reader over there waits for it."""
        self.core.notify_commit(self.now_ns())
        self.wake()

    def watch(self, condition: Callable[[], bool]) -> asyncio.Future[None]:
        """A future that is done after a turn in which `condition` holds; cancel it to forget it."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._watchers.append((condition, future))
        self.wake()
        return future

    def not_leader(self) -> NotLeaderError:
        """The error that says who leads instead."""
        return not_leader_error(self.leader)

    @property
    def leader(self) -> Leader | None:
        """Who leads, with the address it speaks of itself where it has spoken."""
        leader = self.core.leader
        if leader is None:
            return None
        if leader == self._config.local_id:
            return Leader(leader, self._header.address)
        spoken = self.inbound.leader
        if spoken is not None and spoken.id == leader and spoken.address:
            return spoken
        server = self.core.configuration.get(leader)
        return None if server is None else Leader(leader, server.address)

    def check_leads(self) -> None:
        """Raise a definite RaftError unless this server leads."""
        if self.closed:
            raise ShutdownError("raft is shut down")
        if self.failure is not None:
            raise StorageFailedError(f"this server's disk failed: {self.failure}")
        if self.core.state is not State.LEADER:
            raise self.not_leader()

    def _refuse(self) -> None:
        """Raise why no proposal is accepted now."""
        self.check_leads()
        if self.core.transferring:
            raise LeadershipTransferError("a leadership transfer is under way", leader=self.leader)
        if self.core.restoring:
            raise AbortedByRestoreError("a restore is under way", leader=self.leader)
        raise UnknownLeaderError("this server is only just becoming the leader")

    def reconfigure(self, config: Config) -> None:
        """Take over what may change of the settings (`ReloadableConfig`)."""
        self.core.reconfigure(core_config(config), self.now_ns())
        self.snapshots.reconfigure(config)
        self._outbound.vote_timeout = config.election_timeout
        self.wake()

    # -- a turn

    def _turn(self) -> None:
        self._turn_handle = None
        if self.closed:
            return
        try:
            self._reads.begin_turn()
            now = self.now_ns()
            if now >= self.core.deadline_ns:
                self.core.tick(now)
            if self.pending.queued:
                self._propose_queued(now)
            for _ in range(_READY_A_TURN_MAX):
                ready = self.core.ready()
                if ready is None or not self._execute(ready, now):
                    break
            else:
                self.wake()
            if self._watchers:
                self._check_watchers()
            self.cache.trim(min(self.applier.applied, self._durable_index))
            self._arm()
        except Exception as error:  # noqa: BLE001 - a broken driver must stop, loudly, not go on
            self.fail(error)

    def _propose_queued(self, now: int) -> None:
        proposals = self.pending.take(_PROPOSED_A_TURN_BYTES)
        if self.pending.queued:
            self.wake()
        if not proposals:
            return
        if not self.core.accepts_proposals:
            try:
                self._refuse()
            except RaftError as error:
                self.pending.refuse(proposals, error)
            return
        first = self.core.last_index + 1
        wall = self._wall_ns()
        term = self.core.term
        logs = [
            Log(index, term, p.type, p.data, p.extensions, wall)
            for index, p in enumerate(proposals, first)
        ]
        if [p for p in proposals if not p.is_plain]:
            records = [
                encode_log(first + at, term, p.type, p.data, p.extensions, wall)
                for at, p in enumerate(proposals)
            ]
        else:
            records = encode_logs(first, term, [p.data for p in proposals], wall)
        index = self.core.propose(list(map(len, records)), now)
        assert index == first, "proposals stand behind the log"
        self.cache.append(records, logs)
        self.pending.proposed(first, proposals)

    def _execute(self, ready: Ready, now: int) -> bool:
        """Carry out one `Ready`, in the order its docstring asks for.

        Returns whether the core was told something meanwhile, and so may have more to do.
        """
        again = ready.soft_state is not None or ready.configuration_changed
        if ready.noop is not None:
            record = encode_log(ready.noop, self.core.term, LogType.NOOP, b"", b"", self._wall_ns())
            self.cache.append([record], [decode_log(record)])
            self.pending.proposed(ready.noop, [None])
        if ready.persist is not None and self._persist(ready.persist, now):
            again = True
        if ready.soft_state is not None or ready.configuration_changed:
            self._outbound.sync_lanes()
        self._outbound.execute(ready)
        for reply in ready.replies:
            self.inbound.reply(reply)
        if ready.aborted_from is not None:
            self._abort(ready.aborted_from)
        if ready.soft_state is not None:
            _log.info(
                "%s is %s in term %d, leader %s",
                self._config.local_id,
                ready.soft_state.state.value,
                ready.soft_state.term,
                ready.soft_state.leader or "unknown",
            )
            self.notices.soft_state(ready.soft_state, self.leader)
        if ready.configuration_changed:
            self.notices.configuration(self.core.configuration)
        if ready.transfer_ended is not None:
            self.transfers.ended()
        if ready.apply is not None:
            self.applier.advance(ready.apply[1])
        for read in ready.reads:
            self._reads.confirmed(read.read, read.read_index)
        for aborted in ready.reads_aborted:
            self._reads.aborted(aborted, self.not_leader())
        return again

    def _persist(self, persist: Persist, now: int) -> bool:
        """Hand a write to the disk. Whether it is durable already and that makes new work."""
        stable: dict[bytes, bytes | None] = {}
        if persist.hard_state is not None:
            stable[HARD_STATE] = encode_hard_state(persist.hard_state)
        if persist.configurations is not None:
            stable[CONFIGURATIONS] = encode_configurations(tuple(persist.configurations))
        batches = self._batches(persist.first, persist.last)
        write = LogWrite(stable, persist.truncate_from, batches, persist.reset_to)
        if persist.truncate_from is not None:
            self._durable_index = min(self._durable_index, persist.truncate_from - 1)
        if persist.reset_to is not None:
            self._durable_index = persist.reset_to
        if not self.disk.submit(persist.seq, write):
            return False
        self._durable_index = self.core.last_index
        more = self.core.on_persisted(persist.seq, now)
        self.inbound.on_durable(persist.seq)
        return more

    def _batches(self, first: Index, last: Index) -> tuple[LogBatch, ...]:
        """Entries `first..last` of the cache, one batch a term (terms only ever grow)."""
        if first > last:
            return ()
        term = self._term_at(first)
        if term == self._term_at(last):
            return (LogBatch(first, term, self.cache.get(first, last)),)
        batches: list[LogBatch] = []
        while first <= last:
            term = self._term_at(first)
            end = last
            if self._term_at(last) != term:
                end = (
                    bisect.bisect_right(range(first, last + 1), term, key=self._term_at) + first - 1
                )
            batches.append(LogBatch(first, term, self.cache.get(first, end)))
            first = end + 1
        return tuple(batches)

    def _term_at(self, index: Index) -> Term:
        term = self.core.term_at(index)
        assert term is not None, "the core knows the term of every entry of its log"
        return term

    def _abort(self, index: Index) -> None:
        error: RaftError
        if self.failure is not None:
            error = StorageFailedError(
                f"this server's disk failed: {self.failure}", outcome=Outcome.UNKNOWN
            )
        else:
            error = LeadershipLostError(
                "leadership was lost while the command was pending", leader=self.leader
            )
        if self.applier.waits:
            # What is committed is applied next, and answered, but not while that may hang: its
            # clients are told what is known by now, which is nothing (S74).
            index = min(index, self.applier.applied + 1)
        self.pending.abort(index, error)

    def _arm(self) -> None:
        deadline = self.core.deadline_ns
        if self._timer is not None:
            if self._timer_ns <= deadline:
                return
            self._timer.cancel()
        self._timer_ns = deadline
        self._timer = self._loop.call_at(deadline / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._turn_handle is None:
            self._turn()

    def _check_watchers(self) -> None:
        waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        for condition, future in self._watchers:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                waiting.append((condition, future))
        self._watchers = waiting

    # -- disk

    def _on_durable(self, seq: int) -> None:
        if self.closed:
            return
        more = self.core.on_persisted(seq, self.now_ns())
        self.inbound.on_durable(seq)
        self._durable_index = self.core.durable_index
        if more or self._watchers:
            self._turn()

    def on_write_failed(self, seq: int, error: Exception) -> None:
        """Nothing is known of the disk any more."""
        if self.closed:
            return
        if self.failure is None:
            _log.error(
                "%s takes no part any more: the disk failed: %s", self._config.local_id, error
            )
            self.failure = error
        self.core.on_persist_failed(seq, self.now_ns())
        self.wake()

    async def read(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records `first..last` from disk; fewer where they are larger, at least one."""
        return await self.disk.call(self._log_store.get_records, first, last, size_bytes_max)

    # -- the end

    def fail(self, error: Exception) -> None:
        """Something that must not happen did: stop taking part, and say so."""
        if self.closed:
            return
        _log.critical("%s stops: %s", self._config.local_id, error, exc_info=error)
        self._on_failed(error)

    async def close(self) -> None:
        """Stop taking part. Pending calls end; transport and stores are closed. Once only."""
        self.closed = True
        self.notices.end(self.core.term)
        for handle in (self._turn_handle, self._timer):
            if handle is not None:
                handle.cancel()
        stopped = ShutdownError("raft was shut down")
        self.pending.refuse_queued(stopped)
        self.pending.abort(
            0, ShutdownError("raft was shut down meanwhile", outcome=Outcome.UNKNOWN)
        )
        self._reads.close(stopped)
        self.transfers.close(stopped)
        for _, watcher in self._watchers:
            if not watcher.done():
                watcher.set_exception(stopped)
                watcher.exception()
        self.applier.close(stopped)
        self.inbound.close()
        await self.restores.close()  # first: an install may wait for a restore
        await self.inbound.installer.close()
        await self._outbound.close()
        await self.snapshots.close()
        await self._transport.close()
        await self.disk.close()
