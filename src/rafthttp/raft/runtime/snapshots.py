"""The server's own snapshots: when to take one, how, and what of the log goes once one is durable.

The state machine is asked on the event loop, between two entries; its state is written on a thread.
Nothing here is waited for by a turn: a persist that hangs costs the snapshot, not the server.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from rafthttp.raft.config import Config
from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.errors import (
    NothingNewToSnapshotError,
    RaftError,
    ShutdownError,
    SnapshotError,
    StorageError,
)
from rafthttp.raft.fsm import FSM
from rafthttp.raft.runtime import snapshot_bytes
from rafthttp.raft.runtime.applier import Applier
from rafthttp.raft.runtime.snapshot_bytes import Progress, Target
from rafthttp.raft.runtime.worker import Workers
from rafthttp.raft.storage.protocols import LogStore, SnapshotMeta, SnapshotStore
from rafthttp.raft.types import Index, Term

_log = logging.getLogger("rafthttp.raft.snapshots")

# One deletion holds the disk's lane, and with it every write: as many entries as take about this.
_PIECE_SECONDS: Final = 0.005
_PIECE_ENTRIES: Final = 512
_PIECE_ENTRIES_MAX: Final = 1 << 16


class DiskCalls(Protocol):
    """The disk lane, as far as it is needed here."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a store's method behind all writes submitted so far."""
        ...


class SnapshotOwner(Protocol):
    """What is asked of the driver."""

    @property
    def core(self) -> Consensus:
        """The core."""
        ...

    @property
    def applier(self) -> Applier:
        """The lane to the state machine."""
        ...

    @property
    def disk(self) -> DiskCalls:
        """The lane to the disk."""
        ...

    def on_write_failed(self, seq: int, error: Exception) -> None:
        """Nothing is known of the disk any more."""
        ...

    def fail(self, error: Exception) -> None:
        """Something that must not happen did."""
        ...


class Snapshots:
    """Takes snapshots and compacts the log.

    Args:
        store: None where none are kept: then none is taken.
        last_index: of the snapshot the server began from; 0 where there was none.
        last_term: its term.

    Attributes:
        config: the present settings.
        last_index: of the newest snapshot, own or installed.
        last_term: its term.
        error: why the last try failed, until one succeeds.
        persisting: the one under way.
    """

    def __init__(
        self,
        config: Config,
        fsm: FSM,
        log_store: LogStore,
        store: SnapshotStore | None,
        last_index: Index,
        last_term: Term,
        owner: SnapshotOwner,
    ) -> None:
        self.config = config
        self.last_index, self.last_term = last_index, last_term
        self.error: str | None = None
        self.persisting: Progress | None = None
        self.store = store
        self.workers = Workers()
        self._fsm = fsm
        self._log_store = log_store
        self._owner = owner
        self._taking: asyncio.Task[SnapshotMeta] | None = None
        self._is_lost = False
        self._schedule: asyncio.Task[None] | None = None
        self._interval_changed = asyncio.Event()
        self._closed = False

    def start(self) -> None:
        """Take them when due, from now on."""
        if self.store is not None:
            self._schedule = asyncio.get_running_loop().create_task(self._run())
            self._schedule.add_done_callback(self._schedule_ended)

    def reconfigure(self, config: Config) -> None:
        """Other settings from now on; a wait for the next look begins anew."""
        if config.snapshot_interval != self.config.snapshot_interval:
            self._interval_changed.set()
        self.config = config

    async def take(self) -> SnapshotMeta:
        """A snapshot that covers everything applied by now; calls at one time share one.

        Raises:
            NothingNewToSnapshotError: definite; there is one already, or nothing to cover.
            SnapshotError: definite; the state machine or the disk failed, or none are kept.
            ShutdownError: definite; the server was shut down first.
        """
        goal = self._owner.applier.applied
        while self._taking is not None:
            running = self._taking
            await asyncio.wait({running})
            if not running.cancelled() and running.exception() is None:
                meta = running.result()
                if meta.index >= goal:
                    return meta
            if self._taking is running:
                break
        if self._closed:
            raise ShutdownError("raft was shut down before the snapshot was begun")
        task = self._begin()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise ShutdownError("raft was shut down before the snapshot was whole") from None

    def replaced(self, index: Index, term: Term) -> None:
        """A snapshot from elsewhere is the newest now."""
        self.last_index, self.last_term = index, term

    def renew(self) -> None:
        """No snapshot is there for the beginning of the log, though there was: take another."""
        if self._taking is None and not self._closed and self.store is not None:
            _log.error("the snapshot at index %d cannot be used any more", self.last_index)
            self._is_lost = True
            self._begin()

    async def compact(self, index: Index) -> None:
        """Drop the log behind a durable snapshot that ends at `index`, but `trailing_logs`."""
        owner = self._owner
        core = owner.core
        last = index - self.config.trailing_logs
        # The core first: from here on nobody is sent what is about to go. A lane that reads it at
        # this moment finds it gone, and the core looks again where that peer stands.
        core.on_compacted(index, core.term_at(index) or 0, max(last + 1, core.first_index))
        try:
            await self._delete(last)
        except StorageError as error:
            _log.exception("compacting the log failed")
            owner.on_write_failed(0, error)

    async def close(self) -> None:
        """Give up what is under way; nothing of it stays."""
        self._closed = True
        if self.persisting is not None:
            self.persisting.give_up()
        for task in (self._schedule, self._taking):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self.workers.close()

    async def _run(self) -> None:
        """Look from time to time whether one is due, each server at another time than its peers."""
        while True:
            self._interval_changed.clear()
            pause = self.config.snapshot_interval * (1 + random.random())  # noqa: S311 - no secret
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._interval_changed.wait()
                    continue
            if self._owner.applier.applied - self.last_index >= self.config.snapshot_threshold:
                try:
                    await self.take()
                except NothingNewToSnapshotError:
                    pass
                except RaftError as error:
                    if self._closed:
                        return
                    _log.error("%s", error, exc_info=error.__cause__)

    def _schedule_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._owner.fail(error)

    def _begin(self) -> asyncio.Task[SnapshotMeta]:
        task = self._taking = asyncio.get_running_loop().create_task(self._take())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[SnapshotMeta]) -> None:
        if self._taking is task:
            self._taking = None
        if not task.cancelled():
            task.exception()  # seen: whoever asked may be gone

    async def _take(self) -> SnapshotMeta:
        store = self.store
        if store is None:
            raise SnapshotError("this server keeps no snapshots")
        core, applier = self._owner.core, self._owner.applier
        # A snapshot holds the configuration that counts at its own index (S46), and the core knows
        # only the newest committed one: wait until that is covered. And never look at a state that
        # is being replaced.
        while applier.applied < (
            goal := max(core.committed_configuration_index, core.snapshot_index)
        ):
            await applier.wait(goal)
        index = applier.applied
        if index <= self.last_index and not (self._is_lost and index):
            raise NothingNewToSnapshotError(
                f"nothing was applied since the snapshot at {self.last_index}"
                if self.last_index
                else "nothing was applied yet"
            )
        term = core.term_at(index)
        assert term is not None, "what is applied and in no snapshot is in the log"
        target = Target(
            store, index, term, core.committed_configuration, core.committed_configuration_index
        )
        worker = self.workers.start("rafthttp-persist")
        progress = self.persisting = Progress(index)
        try:
            snapshot = self._fsm.snapshot()
            meta = await worker.call(snapshot_bytes.persist, target, snapshot, progress)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise SnapshotError(f"no snapshot at index {index}: {error}") from error
        finally:
            worker.finish()
            self.persisting = None
        self.error = None
        self._is_lost = False
        _log.info("snapshot %s up to index %d: %d bytes", meta.id, index, meta.size)
        if index >= self.last_index:
            self.last_index, self.last_term = index, term
            await self.compact(index)
        return meta

    async def _delete(self, last: Index) -> None:
        call: Callable[..., Awaitable[Any]] = self._owner.disk.call
        first: Index = await call(self._log_store.first_index)
        piece = _PIECE_ENTRIES
        while first <= last and not self._closed:
            upto = min(first + piece - 1, last)
            began = time.perf_counter()
            await call(self._log_store.delete_prefix, upto)
            took = time.perf_counter() - began
            if took < _PIECE_SECONDS / 2:
                piece = min(2 * piece, _PIECE_ENTRIES_MAX)
            elif took > _PIECE_SECONDS:
                piece = max(piece // 2, 1)
            first = upto + 1
            # What waits for the disk goes first.
            await asyncio.sleep(0)
