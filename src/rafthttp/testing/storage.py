"""A disk with faults: `FaultyStore` around any store that is log and stable store at once.

Writes fail or hang on demand, as a real store's do: by raising and by not returning.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from rafthttp.raft.errors import StorageError, StoragePoisonedError
from rafthttp.raft.storage.protocols import LogStore, StableStore
from rafthttp.raft.types import Index, LogWrite, Term


class DurableStore(LogStore, StableStore, Protocol):
    """One object that is both stores."""


class FaultyStore:
    """LogStore and StableStore that passes every call on to `inner`, and can be told to fail.

    `write`, `set` and `delete_prefix` all count as writes. After a failed one the store is
    poisoned, as the durable store is. To restart a server after a fault, wrap the same `inner`
    afresh.

    Attributes:
        flushes: writes that reached `inner`.
    """

    def __init__(self, inner: DurableStore, *, blocking: bool = True) -> None:
        """`blocking` is what the server is told; only a blocking store may hang."""
        self.inner = inner
        self.flushes = 0
        self._blocking = blocking
        self._failure: tuple[int, Exception, bool] | None = None
        self._poison: Exception | None = None
        self._crashed = False
        self._released = threading.Event()
        self._released.set()
        self._hung = threading.Event()

    # -- faults

    def fail_write(
        self, nth: int = 1, error: Exception | None = None, *, reaches_disk: bool = False
    ) -> None:
        """Let the `nth` write from now raise `error`; on the disk it is, if it `reaches_disk`."""
        self._failure = (nth, error or StorageError("injected: input/output error"), reaches_disk)

    def hang_writes(self) -> None:
        """Let every write from now on wait for `release_writes`, before it reaches the disk."""
        self._released.clear()

    def release_writes(self) -> None:
        """Let writes go on; the one that hangs is done."""
        self._hung.clear()
        self._released.set()

    def wait_hung(self, timeout: float) -> bool:
        """Wait until a write hangs; False when none does within `timeout` seconds."""
        return self._hung.wait(timeout)

    def crash(self) -> None:
        """As if the process died: no call does anything any more, a hung write never happened."""
        self._crashed = True
        self.release_writes()

    # -- stable store

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        self._check_alive()
        return self.inner.get(key)

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Write all pairs or none."""
        error = self._before_write()
        self.inner.set(values)
        self._after_write(error)

    # -- log store

    @property
    def blocking(self) -> bool:
        """What the constructor was told."""
        return self._blocking

    def first_index(self) -> Index:
        """Index of the first record held, or where the next would go."""
        return self.inner.first_index()

    def last_index(self) -> Index:
        """Index of the last record held."""
        return self.inner.last_index()

    def term_at(self, index: Index) -> Term:
        """Term of one record."""
        self._check_alive()
        return self.inner.term_at(index)

    def term_runs(self, first: Index, last: Index) -> list[tuple[Index, Term]]:
        """First index and term of each run of equal terms."""
        self._check_alive()
        return self.inner.term_runs(first, last)

    def get_records(self, first: Index, last: Index, size_bytes_max: int) -> list[bytes]:
        """Records from `first` on."""
        self._check_alive()
        return self.inner.get_records(first, last, size_bytes_max)

    def write(self, writes: Sequence[LogWrite]) -> None:
        """Do all writes in order, all or nothing."""
        error = self._before_write()
        self.inner.write(writes)
        self._after_write(error)

    def delete_prefix(self, last: Index) -> None:
        """Delete records up to `last`."""
        error = self._before_write()
        self.inner.delete_prefix(last)
        self._after_write(error)

    def close(self) -> None:
        """Let a hung write go on, and close `inner`."""
        self.release_writes()
        self.inner.close()

    # -- inside

    def _check_alive(self) -> None:
        if self._crashed:
            raise StorageError("injected: the process has crashed")

    def _before_write(self) -> Exception | None:
        """Hang or fail if told so; the error to raise once the write is on the disk, if any."""
        self._check_alive()
        if self._poison is not None:
            raise StoragePoisonedError(f"an earlier write failed: {self._poison}")
        if not self._released.is_set():
            self._hung.set()
            self._released.wait()
            self._check_alive()
        if self._failure is None:
            return None
        nth, error, reaches_disk = self._failure
        if nth > 1:
            self._failure = (nth - 1, error, reaches_disk)
            return None
        self._poison, self._failure = error, None
        if not reaches_disk:
            raise error
        return error

    def _after_write(self, error: Exception | None) -> None:
        self.flushes += 1
        if error is not None:
            raise error
