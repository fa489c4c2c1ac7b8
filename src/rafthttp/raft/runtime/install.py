"""A leader's snapshot, taken in: streamed to the store, then the log, then the state machine.

One at a time. Heartbeats, votes and entries go on meanwhile; the core says when not (its
`snapshots` module has the three steps). At most a few chunks of the stream are held here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import RpcId
from rafthttp.raft.errors import ProtocolError, TransportError
from rafthttp.raft.runtime.restoring import Restores
from rafthttp.raft.runtime.snapshot_bytes import Progress, Target
from rafthttp.raft.runtime.snapshots import Snapshots
from rafthttp.raft.runtime.worker import Worker, forget
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.transport.protocols import InboundRpc, SnapshotReader
from rafthttp.raft.types import Configuration
from rafthttp.raft.wire.configuration import decode_configuration
from rafthttp.raft.wire.records import InstallSnapshotRequest, Response

_log = logging.getLogger("rafthttp.raft.snapshots")

# Chunks given to the thread and not written. Fewer, and it waits for the event loop between two;
# one is a read of the socket, up to 256 KiB.
_UNWRITTEN_MAX: Final = 8


class InstallOwner(Protocol):
    """What is asked of the driver."""

    @property
    def core(self) -> Consensus:
        """The core."""
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


class HeldRpc:
    """An `InboundRpc` whose answer waits until the state machine has the snapshot."""

    def __init__(self, rpc: InboundRpc) -> None:
        self._rpc = rpc
        self._response: Response | None = None
        self._released = False

    def respond(self, response: Response) -> None:
        """Answer, once released (`InboundRpc`)."""
        if self._released:
            self._rpc.respond(response)
        else:
            self._response = response

    def fail(self, text: str) -> None:
        """Fail at once (`InboundRpc`)."""
        self._rpc.fail(text)

    def release(self) -> None:
        """Let the answer go, now or when it comes. Idempotent."""
        self._released = True
        if self._response is not None:
            response, self._response = self._response, None
            self._rpc.respond(response)


class _Job:
    """One install."""

    def __init__(
        self,
        number: RpcId,
        request: InstallSnapshotRequest,
        configuration: Configuration,
        body: SnapshotReader,
        rpc: HeldRpc,
        target: Target,
    ) -> None:
        self.number = number
        self.request = request
        self.configuration = configuration
        self.body = body
        self.rpc = rpc
        self.target = target
        self.progress = Progress(request.last_log_index, request.size)
        self.streaming = True
        """Whether nothing has changed yet, and it may be dropped for another."""
        self.refused = False
        self.task: asyncio.Task[None] | None = None


def check_snapshot_request(request: InstallSnapshotRequest) -> Configuration | str:
    """The configuration in a request, or why it is refused.

    Raises:
        ProtocolError: no correct leader sends this.
    """
    if request.snapshot_version != 1:
        return f"unsupported snapshot version {request.snapshot_version}"
    if request.configuration_index > request.last_log_index:
        raise ProtocolError(
            f"a snapshot at {request.last_log_index} with a configuration of"
            f" {request.configuration_index}"
        )
    configuration = decode_configuration(request.configuration)
    if not configuration.voters or not request.last_log_index:
        raise ProtocolError("a snapshot of a cluster that cannot be: nobody votes in it")
    return configuration


class Installer:
    """Takes in what leaders send."""

    def __init__(self, snapshots: Snapshots, restores: Restores, owner: InstallOwner) -> None:
        self._store = snapshots.store
        self._workers = snapshots.workers
        self._restores = restores
        self._owner = owner
        self._job: _Job | None = None

    @property
    def works(self) -> bool:
        """Whether snapshots are kept here."""
        return self._store is not None

    @property
    def progress(self) -> Progress | None:
        """The snapshot coming in, from its first byte until the state machine has it."""
        return None if self._job is None else self._job.progress

    def begin(
        self,
        number: RpcId,
        request: InstallSnapshotRequest,
        configuration: Configuration,
        body: SnapshotReader,
        rpc: HeldRpc,
    ) -> None:
        """Stream one in; the core has said it wants it.

        A leader sends one at a time: a second one means that the first is dead, or its leader
        deposed. Only one that counts already keeps the second out; its leader tries again.
        """
        assert self._store is not None, "the caller checks `works`"
        target = Target(
            self._store,
            request.last_log_index,
            request.last_log_term,
            configuration,
            request.configuration_index,
        )
        before = self._job
        if before is not None and not before.streaming:
            rpc.release()
            self._owner.core.on_snapshot_failed(number, self._owner.now_ns())
            return
        job = self._job = _Job(number, request, configuration, body, rpc, target)
        previous = None
        if before is not None:
            assert before.task is not None
            before.task.cancel()
            # Said here: a task that has not begun yet will not say it.
            self._refuse(before)
            previous = before.task
        job.task = asyncio.get_running_loop().create_task(self._run(job, previous))
        job.task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Give up; nothing of it stays, unless it counts already."""
        job = self._job
        if job is not None and job.task is not None:
            job.progress.give_up()
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._owner.fail(error)

    async def _run(self, job: _Job, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        worker = self._workers.start("rafthttp-install")
        try:
            meta = await self._receive(job, worker)
            if meta is not None:
                await self._install(job, worker, meta)
        finally:
            worker.finish()
            if self._job is job:
                self._job = None

    async def _receive(self, job: _Job, worker: Worker) -> SnapshotMeta | None:
        """Write it and make it visible; None where it is given up, and answered."""
        request, target, owner = job.request, job.target, self._owner
        _log.info(
            "snapshot at index %d comes from %s: %d bytes",
            request.last_log_index,
            request.header.id or request.leader,
            request.size,
        )
        try:
            await worker.call(target.open)
            await self._write(job, worker)
            if not owner.core.on_snapshot_arrived(
                job.number,
                request.term,
                request.last_log_index,
                request.last_log_term,
                owner.now_ns(),
            ):
                worker.post(target.cancel)
                job.rpc.release()
                owner.wake()
                return None
            job.streaming = False
            return await worker.call(target.close)
        except (Exception, asyncio.CancelledError) as error:
            # Where it was cancelled while it became visible, the server is shutting down; the next
            # start finds it, and nothing was acknowledged meanwhile.
            worker.post(target.cancel)
            self._refuse(job)
            if isinstance(error, asyncio.CancelledError):
                raise
            level = logging.WARNING if isinstance(error, TransportError) else logging.ERROR
            _log.log(level, "snapshot at index %d: %s", request.last_log_index, error)
            return None

    @staticmethod
    async def _write(job: _Job, worker: Worker) -> None:
        """Write all of it; more comes while some is being written."""
        unwritten: deque[asyncio.Future[None]] = deque()
        try:
            async for chunk in job.body:
                if len(unwritten) >= _UNWRITTEN_MAX:
                    await unwritten.popleft()
                unwritten.append(worker.begin(job.target.write, chunk))
                job.progress.passed(len(chunk))
            while unwritten:
                await unwritten.popleft()
        finally:
            for write in unwritten:
                forget(write)

    def _refuse(self, job: _Job) -> None:
        """It did not arrive whole, and its leader is told so. Idempotent."""
        owner = self._owner
        if not job.refused and not owner.closed:
            job.refused = True
            owner.core.on_snapshot_failed(job.number, owner.now_ns())
            job.rpc.release()
            owner.wake()

    async def _install(self, job: _Job, worker: Worker, meta: SnapshotMeta) -> None:
        """Begin the log behind it, and let the state machine have it; then it is answered."""
        request, owner = job.request, self._owner
        index, term = request.last_log_index, request.last_log_term
        wanted = owner.core.on_snapshot_installed(
            job.number,
            index,
            term,
            job.configuration,
            request.configuration_index,
            owner.now_ns(),
        )
        if not wanted or await self._restores.replace_state(worker, index, term, meta.id):
            job.rpc.release()
        owner.wake()
