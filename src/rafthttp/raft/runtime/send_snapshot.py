"""A snapshot on its way to a peer that needs entries which are compacted away.

Reads the file off the loop, a chunk at a time; one transfer a peer, each on a stream of its own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import BinaryIO, Final, NamedTuple, Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import SendSnapshot
from rafthttp.raft.errors import RaftHttpError, StorageError, TransportError
from rafthttp.raft.runtime.plausible import is_plausible_term
from rafthttp.raft.runtime.snapshot_bytes import Progress
from rafthttp.raft.runtime.snapshots import Snapshots
from rafthttp.raft.runtime.worker import Worker, forget
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.storage.snapshots import open_checking
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import Server, ServerID
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.records import InstallSnapshotRequest, InstallSnapshotResponse, RPCHeader

_log = logging.getLogger("rafthttp.raft.snapshots")

# hashicorp/raft's deadline: its transport's timeout, usually this, for each 256 KiB.
_TIMEOUT_S: Final = 10.0
_TIMEOUT_SIZE_BYTES: Final = 256 << 10
# A peer that takes nothing for so long while there is more to send is gone. The deadline above is
# for one that still writes or restores a large state, of which nothing is heard until it is done.
_STALLED_S: Final = 30.0


class SendOwner(Protocol):
    """What is asked of the driver."""

    def now_ns(self) -> int:
        """The clock of every input."""
        ...

    def wake(self) -> None:
        """Schedule a turn."""
        ...


class _Source:
    """Implements `SnapshotSource`: a file, read on the transfer's own thread, one piece ahead."""

    def __init__(self, file: BinaryIO, worker: Worker, progress: Progress, size: int) -> None:
        self._file = file
        self._worker = worker
        self._progress = progress
        self._left = size  # to be read of the file
        self._rest = b""
        self._ahead: asyncio.Future[bytes] | None = None

    async def read(self, size: int, /) -> bytes:
        """Up to `size` bytes (`SnapshotSource`)."""
        data = self._rest
        if not data:
            self._ahead = self._ahead or self._begin(size)
            data = await self._ahead
            self._ahead = None
            self._left -= len(data)
            if data and self._left:
                self._ahead = self._begin(size)
        self._rest = data[size:]
        data = data[:size]
        self._progress.passed(len(data))
        return data

    def close(self) -> None:
        """Close the file, behind a read that was given up and still goes on."""
        if self._ahead is not None:
            forget(self._ahead)
        self._worker.post(self._file.close)

    def _begin(self, size: int) -> asyncio.Future[bytes]:
        return self._worker.begin(self._file.read, min(size, self._left))


class _Sending(NamedTuple):
    server: Server
    epoch: int
    task: asyncio.Task[None]


class SnapshotSender:
    """Sends the newest snapshot to whoever needs it.

    Args:
        snapshots: the server's own.
    """

    def __init__(
        self,
        core: Consensus,
        transport: Transport,
        header: RPCHeader,
        snapshots: Snapshots,
        owner: SendOwner,
    ) -> None:
        self.progress: dict[ServerID, Progress] = {}
        """What is under way."""
        self._core = core
        self._transport = transport
        self._header = header
        self._snapshots = snapshots
        self._workers = snapshots.workers
        self._owner = owner
        self._tasks: dict[ServerID, _Sending] = {}
        self._old: set[asyncio.Task[None]] = set()

    def send(self, server: Server, ask: SendSnapshot) -> None:
        """Begin; the core hears of the end, whatever it is."""
        self._cancel(server.id)
        task = asyncio.get_running_loop().create_task(self._run(server, ask))
        self._tasks[server.id] = _Sending(server, ask.epoch, task)

    def keep(self, wanted: dict[ServerID, Server]) -> None:
        """Give up what goes to others than these, or to where they are no longer."""
        for peer, sending in list(self._tasks.items()):
            now = wanted.get(peer)
            if now is None or now.address != sending.server.address:
                self._cancel(peer)
                # Said here: a task that has not begun yet will not say it.
                self._core.on_snapshot_send_failed(peer, sending.epoch, self._owner.now_ns())

    async def close(self) -> None:
        """Give up everything."""
        for peer in list(self._tasks):
            self._cancel(peer)
        await asyncio.gather(*self._old, return_exceptions=True)

    def _cancel(self, peer: ServerID) -> None:
        sending = self._tasks.pop(peer, None)
        if sending is not None:
            self._old.add(sending.task)
            sending.task.add_done_callback(self._old.discard)
            sending.task.cancel()

    async def _run(self, server: Server, ask: SendSnapshot) -> None:
        peer = server.id
        worker = self._workers.start("rafthttp-send")
        response: InstallSnapshotResponse | None = None
        meta = None
        try:
            meta, response = await self._transfer(server, ask, worker)
        except (RaftHttpError, OSError) as error:
            _log.warning("no snapshot for %s: %s", peer, error)
        except Exception:  # noqa: BLE001 - a task's top; an application's store may raise anything
            _log.exception("no snapshot for %s", peer)
        finally:
            worker.finish()
            sending = self._tasks.get(peer)
            if sending is not None and sending.task is asyncio.current_task():
                del self._tasks[peer]
            if response is None or meta is None:
                self._core.on_snapshot_send_failed(peer, ask.epoch, self._owner.now_ns())
            elif is_plausible_term(self._core, response.term):
                if not response.success and response.term <= ask.term:
                    _log.warning("%s takes no snapshot at index %d now", peer, meta.index)
                self._core.on_snapshot_sent(
                    peer,
                    ask.epoch,
                    meta.index,
                    response.term,
                    response.success,
                    self._owner.now_ns(),
                )
            else:
                _log.warning("%s answers with an implausible term, %d", peer, response.term)
                self._core.on_snapshot_send_failed(peer, ask.epoch, self._owner.now_ns())
            self._owner.wake()

    async def _transfer(
        self, server: Server, ask: SendSnapshot, worker: Worker
    ) -> tuple[SnapshotMeta, InstallSnapshotResponse]:
        meta = await self._newest(worker)
        store = self._snapshots.store
        assert store is not None, "it is from there"
        # A store may read it all for its checksum now. One that does not holds back the end of what
        # is broken: the peer is left with a stream that was cut, and installs nothing.
        meta, file = await worker.call(open_checking, store, meta.id)
        progress = Progress(meta.index, meta.size)
        source = _Source(file, worker, progress, meta.size)
        self.progress[server.id] = progress
        _log.info("snapshot at index %d goes to %s: %d bytes", meta.index, server.id, meta.size)
        request = InstallSnapshotRequest(
            header=self._header,
            snapshot_version=meta.version,
            term=ask.term,
            leader=self._header.address,
            last_log_index=meta.index,
            last_log_term=meta.term,
            peers=None,
            configuration=encode_configuration(meta.configuration),
            configuration_index=meta.configuration_index,
            size=meta.size,
        )
        timeout = _TIMEOUT_S * max(1, meta.size // _TIMEOUT_SIZE_BYTES)
        try:
            sending = asyncio.get_running_loop().create_task(
                self._transport.install_snapshot(server, request, source, timeout)
            )
            try:
                return meta, await _while_moving(sending, progress)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            if self.progress.get(server.id) is progress:
                del self.progress[server.id]
            source.close()

    async def _newest(self, worker: Worker) -> SnapshotMeta:
        """The newest that counts, and that the log goes on from.

        One of a restore that is not decided yet does not count. One that ends before the log begins
        would be sent again and again: a broken one is left out of the list, and an older one may be
        there.
        """
        store, core = self._snapshots.store, self._core
        if store is None:
            raise StorageError("it needs entries that are compacted away; no snapshots are kept")
        for meta in await worker.call(store.list):
            if meta.index <= core.commit_index:
                if meta.index >= core.first_index - 1:
                    return meta
                break
        self._snapshots.renew()
        raise StorageError("it needs entries that are compacted away, and no snapshot has them")


async def _while_moving(
    sending: asyncio.Task[InstallSnapshotResponse], progress: Progress
) -> InstallSnapshotResponse:
    seen = -1
    while True:
        done, _ = await asyncio.wait({sending}, timeout=_STALLED_S)
        if done:
            return await sending
        if progress.done == seen and progress.size is not None and seen < progress.size:
            raise TransportError(f"nothing was taken for {_STALLED_S:g} s")
        seen = progress.done
