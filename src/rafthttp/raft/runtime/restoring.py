"""Replacing the whole state: by a snapshot that was installed, or by one a user brings.

Knows the order: the core has begun its log anew already; clients hear of it, the cache forgets,
and the state machine reads the snapshot on a thread while nothing is applied.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, BinaryIO, Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.errors import (
    AbortedByRestoreError,
    LeadershipLostError,
    LeadershipTransferError,
    Outcome,
    RaftError,
    SnapshotError,
)
from rafthttp.raft.fsm import FSM
from rafthttp.raft.runtime import snapshot_bytes
from rafthttp.raft.runtime.applier import Applier
from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.runtime.proposals import Pending
from rafthttp.raft.runtime.snapshot_bytes import Progress, Target
from rafthttp.raft.runtime.snapshots import Snapshots
from rafthttp.raft.runtime.worker import Worker
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.types import Index, Leader, LogType, Term

_log = logging.getLogger("rafthttp.raft.snapshots")


class RestoreOwner(Protocol):
    """What is asked of the driver."""

    @property
    def core(self) -> Consensus:
        """The core."""
        ...

    @property
    def cache(self) -> LogCache:
        """The newest records."""
        ...

    @property
    def pending(self) -> Pending:
        """What clients wait for."""
        ...

    @property
    def applier(self) -> Applier:
        """The lane to the state machine."""
        ...

    @property
    def snapshots(self) -> Snapshots:
        """The server's own."""
        ...

    @property
    def leader(self) -> Leader | None:
        """Who leads."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the server is shut down."""
        ...

    def now_ns(self) -> int:
        """The clock of every input."""
        ...

    def wake(self) -> None:
        """Schedule a turn."""
        ...

    def fail(self, error: Exception) -> None:
        """Something that must not happen did."""
        ...

    def check_leads(self) -> None:
        """Raise a definite RaftError unless this server leads."""
        ...

    def propose(
        self, kind: LogType, data: bytes, extensions: bytes
    ) -> asyncio.Future[tuple[Index, Any]]:
        """Queue an entry for this turn."""
        ...


class Restores:
    """Gives the state machine another state."""

    def __init__(self, fsm: FSM, owner: RestoreOwner) -> None:
        self.progress: Progress | None = None
        """What the state machine has read of the snapshot it is restored from."""
        self._fsm = fsm
        self._owner = owner
        self._copying: Progress | None = None
        self._task: asyncio.Task[None] | None = None

    async def replace_state(
        self,
        worker: Worker,
        index: Index,
        term: Term,
        snapshot_id: str,
        aborted: RaftError | None = None,
    ) -> bool:
        """Let the state machine have a snapshot with which the core's log begins now.

        The first half happens before anything is awaited. False: it could not be restored, and the
        server stops: it has no state any more that its log could follow.
        """
        owner = self._owner
        if owner.core.first_index == index + 1:
            owner.cache.reset(index)
        owner.pending.abort(
            0,
            aborted
            or LeadershipLostError(
                "the command's result was lost: a snapshot came in its place", leader=owner.leader
            ),
        )
        owner.applier.pause()
        owner.snapshots.replaced(index, term)
        owner.wake()
        store = owner.snapshots.store
        assert store is not None, "it came from there"
        try:
            await worker.call(
                snapshot_bytes.restore, self._fsm.restore, store, snapshot_id, self._opened
            )
        except Exception as error:  # noqa: BLE001 - reported: the server cannot go on
            owner.fail(error)
            return False
        finally:
            self.progress = None
        if owner.closed:
            return False
        owner.applier.resume(index)
        if owner.core.first_index <= index:
            await owner.snapshots.compact(index)
        return True

    def begin(self, meta: SnapshotMeta, source: BinaryIO) -> asyncio.Task[None]:
        """A user's snapshot, in place of the whole state (hashicorp/raft's `Restore`).

        Raises:
            RaftError: definite; not now.
        """
        owner = self._owner
        owner.check_leads()
        if owner.snapshots.store is None:
            raise SnapshotError("this server keeps no snapshots")
        if self._task is not None:
            raise SnapshotError("another restore is under way")
        if owner.core.transferring:
            raise LeadershipTransferError("a leadership transfer is under way")
        index = owner.core.begin_restore(meta.index, owner.now_ns())
        self._copying = Progress(index, meta.size)
        self._task = asyncio.get_running_loop().create_task(
            self._run(index, owner.core.term, source, self._copying)
        )
        self._task.add_done_callback(self._ended)
        return self._task

    def cancel_copying(self) -> bool:
        """Give it up; False where it is too late for that: it counts, or may."""
        if self._copying is None or self._task is None:
            return False
        self._copying.give_up()
        self._task.cancel()
        self._owner.core.on_restore_failed(self._owner.now_ns())
        return True

    async def close(self) -> None:
        """Give up what is under way."""
        for progress in (self._copying, self.progress):
            if progress is not None:
                progress.give_up()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _opened(self, progress: Progress) -> None:
        """Called on the thread."""
        self.progress = progress
        if self._owner.closed:
            progress.give_up()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = self._copying = None
        if not task.cancelled():
            task.exception()  # seen: whoever asked may be gone

    async def _run(self, index: Index, term: Term, source: BinaryIO, progress: Progress) -> None:
        owner = self._owner
        core, store = owner.core, owner.snapshots.store
        assert store is not None, "checked"
        configuration, configuration_index = core.configuration, core.configuration_index
        target = Target(store, index, term, configuration, configuration_index)
        worker = owner.snapshots.workers.start("rafthttp-restore")
        try:
            try:
                await worker.call(snapshot_bytes.copy, source, target, progress)
                self._copying = None
                if not core.on_restore_arrived(index, term, owner.now_ns()):
                    raise LeadershipLostError(
                        "leadership was lost before the snapshot was restored",
                        outcome=Outcome.DEFINITE,
                        leader=owner.leader,
                    )
                made = await worker.call(target.close)
            except (Exception, asyncio.CancelledError) as error:
                worker.post(target.cancel)
                if not owner.closed:
                    core.on_restore_failed(owner.now_ns())
                    owner.wake()
                if isinstance(error, RaftError | asyncio.CancelledError):
                    raise
                raise SnapshotError(f"the snapshot could not be copied: {error}") from error
            core.on_restored(index, term, configuration, configuration_index, owner.now_ns())
            _log.warning("the state was replaced by a user's snapshot, at index %d", index)
            aborted = AbortedByRestoreError(
                "a restore replaced the state meanwhile", outcome=Outcome.UNKNOWN
            )
            if not await self.replace_state(worker, index, term, made.id, aborted):
                raise SnapshotError(
                    "the state machine could not be restored, and this server stops",
                    outcome=Outcome.UNKNOWN,
                )
        finally:
            worker.finish()
        # Committed only where a quorum has the snapshot, too.
        try:
            await owner.propose(LogType.NOOP, b"", b"")
        except RaftError as error:
            raise SnapshotError(
                f"restored here; whether a quorum follows is not known: {error}",
                outcome=Outcome.UNKNOWN,
                leader=error.leader,
            ) from error
