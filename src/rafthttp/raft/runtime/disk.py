"""The lane to the disk: durable writes in order, several in one flush, and reads behind them.

Two kinds with one face: `ThreadLane` for stores that wait for a disk, `InlineLane` for memory.
Knows nothing of consensus: numbered writes in, numbers of durable writes out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from rafthttp.raft.errors import StorageError
from rafthttp.raft.runtime import threads
from rafthttp.raft.runtime.thread_room import ThreadRoom
from rafthttp.raft.storage.protocols import LogStore, MaintainedStore, StableStore
from rafthttp.raft.types import LogWrite

_T = TypeVar("_T")
_log = logging.getLogger("rafthttp.raft.disk")

# More than this in one flush only delays the first write of it.
_ITEMS_AT_ONCE_MAX: Final = 256
_BYTES_A_FLUSH_MAX: Final = 8 << 20
_CLOSE_TIMEOUT_S: Final = 5.0


class _Write(NamedTuple):
    seq: int
    write: LogWrite


# A write, a call of a store's method, or the end.
_Item: TypeAlias = _Write | Callable[[], None] | None


class DiskLane(Protocol):
    """What the driver asks of its disk. Writes and reads are done in the order they were given."""

    def submit(self, seq: int, write: LogWrite) -> bool:
        """Make one write durable; True when it already is, else `on_durable` follows."""
        ...

    async def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a store's method behind all writes submitted so far."""
        ...

    async def close(self) -> None:
        """Finish what was submitted, then close the stores. Idempotent."""
        ...


class _Stores:
    """Both stores behind one `write`: one commit where they are one object."""

    def __init__(self, log: LogStore, stable: StableStore) -> None:
        self.log = log
        self.stable = stable
        self._one = cast("object", log) is cast("object", stable)
        self._maintained = log if isinstance(log, MaintainedStore) else None

    def write(self, writes: Sequence[LogWrite]) -> None:
        if self._one:
            self.log.write(writes)
            return
        # The stable pairs go first: a term or a vote may be ahead of the entries, never behind.
        pairs: dict[bytes, bytes | None] = {}
        for write in writes:
            pairs.update(write.stable)
        if pairs:
            self.stable.set(pairs)
        entries = [w._replace(stable={}) for w in writes]
        entries = [w for w in entries if w.batches or w.truncate_from or w.reset_to is not None]
        if entries:
            self.log.write(entries)

    def maintain(self) -> None:
        if self._maintained is not None:
            self._maintained.maintain()

    def close(self) -> None:
        self.log.close()
        close = getattr(self.stable, "close", None)
        if not self._one and close is not None:
            close()


class InlineLane:
    """For stores that never wait: everything happens in the call."""

    def __init__(
        self, log: LogStore, stable: StableStore, on_failed: Callable[[int, Exception], None]
    ) -> None:
        self._stores = _Stores(log, stable)
        self._on_failed = on_failed
        self._closed = False

    def submit(self, seq: int, write: LogWrite) -> bool:
        """Write now. A failure is reported on the next turn of the loop."""
        try:
            self._stores.write((write,))
        except (StorageError, OSError) as error:
            asyncio.get_running_loop().call_soon(self._on_failed, seq, error)
            return False
        return True

    async def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call it now."""
        return function(*args)

    async def close(self) -> None:
        """Close the stores."""
        if not self._closed:
            self._closed = True
            self._stores.close()


class ThreadLane:
    """For stores that wait for a disk: one thread, which groups what came while it waited.

    A hop to the thread costs about 50 µs, so all writes that queued up behind a flush share the
    next one (group commit). The event loop never waits for the disk: when it hangs, the core sees
    the write's age on its next tick (S74).
    """

    def __init__(
        self,
        log: LogStore,
        stable: StableStore,
        on_durable: Callable[[int], None],
        on_failed: Callable[[int, Exception], None],
    ) -> None:
        self._stores = _Stores(log, stable)
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None
        self._room = ThreadRoom()
        # Bounded: pending proposals and the frames of a leader in flight are.
        self._jobs: threads.Jobs[_Item] = threads.Jobs(
            "rafthttp-disk", self._do, _ITEMS_AT_ONCE_MAX
        )

    def submit(self, seq: int, write: LogWrite) -> bool:
        """Queue one write; `on_durable(seq)` or `on_failed(seq, error)` follows on the loop."""
        self._jobs.put(_Write(seq, write))
        self._room.given(seq)
        return False

    async def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Run a store's method on the thread, behind the writes submitted so far."""
        future: asyncio.Future[_T] = self._loop.create_future()

        def run() -> None:
            try:
                result = function(*args)
            except Exception as error:  # noqa: BLE001 - handed to the awaiting caller
                self._tell(_set_exception, future, error)
            else:
                self._tell(_set_result, future, result)

        self._jobs.put(run)
        return await future

    async def close(self) -> None:
        """Finish the queue, close the stores, end the thread.

        A disk that hangs cannot be waited for: after `_CLOSE_TIMEOUT_S` the (daemon) thread is left
        behind, and said so.
        """
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._room.close()
            self._jobs.put(None)
        try:
            await asyncio.wait_for(asyncio.shield(self._closed), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            _log.error("the disk does not answer; its thread is left behind")

    def _do(self, items: list[_Item]) -> bool:
        """Some of the queue, on the thread; False behind the end."""
        writes: list[_Write] = []
        size = 0
        for item in items:
            if isinstance(item, _Write):
                writes.append(item)
                size += sum(sum(map(len, batch.records)) for batch in item.write.batches)
                if size < _BYTES_A_FLUSH_MAX:
                    continue
            self._flush(writes)
            writes, size = [], 0
            if item is None:
                self._end()
                return False
            if not isinstance(item, _Write):
                item()
        self._flush(writes)
        if self._jobs.is_empty():
            self._maintain()
        return True

    def _flush(self, writes: list[_Write]) -> None:
        if not writes:
            return
        try:
            self._stores.write([item.write for item in writes])
        except Exception as error:  # noqa: BLE001 - any failure poisons: the core must hear of it
            self._tell(self._on_failed, writes[0].seq, error)
        else:
            self._tell(self._flushed, writes[-1].seq)

    def _flushed(self, seq: int) -> None:
        self._room.done(seq)
        self._on_durable(seq)

    def _maintain(self) -> None:
        try:
            self._stores.maintain()
        except StorageError:
            # The store is poisoned: the core hears of it with the next write.
            _log.exception("maintaining the store failed")

    def _end(self) -> None:
        try:
            self._stores.close()
        except StorageError:
            _log.exception("closing the store failed")
        if self._closed is not None:
            self._tell(_set_result, self._closed, None)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            _log.debug("the loop was closed before the disk answered")


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
