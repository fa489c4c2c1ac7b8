"""The newest records of the log, in memory.

Holds every record that is not yet durable or not yet applied, and, up to a bound, those behind
them for peers that lag a little. Beside each record that is not applied stands its `Log`: an entry
is decoded once, where it comes from. Knows indexes and records; no disk, no core.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.types import Index, Log

# Enough for a follower that lags a second at full speed; an idle node stays below 60 MiB.
RETAINED_BYTES_MAX: Final = 16 << 20


class LogCache:
    """Contiguous records `first..last`; empty when `last == first - 1`.

    Invariant: `_logs` are the entries `last - len(_logs) + 1 .. last`, all that were not taken.

    Args:
        last_index: last index of the log on disk; the cache begins behind it.
        retained_bytes_max: bytes kept once durable and applied.
    """

    def __init__(self, last_index: Index, retained_bytes_max: int = RETAINED_BYTES_MAX) -> None:
        self.first: Index = last_index + 1
        self._records: list[bytes] = []
        self._logs: list[Log] = []
        self._bytes = 0
        self._retained_bytes_max = retained_bytes_max

    @property
    def last(self) -> Index:
        """Index of the newest record."""
        return self.first + len(self._records) - 1

    def holds(self, first: Index) -> bool:
        """Whether records from `first` on are here (an empty range at the end is)."""
        return first >= self.first

    def get(self, first: Index, last: Index) -> list[bytes]:
        """Records `first..last`; the caller checked `holds(first)` and that `last` exists."""
        return self._records[first - self.first : last - self.first + 1]

    def take_logs(self, first: Index, last: Index) -> list[Log]:
        """Entries `first..last`, to be applied now; these and all before them are not kept.

        The caller checked `holds(first)`, and asks for no entry a second time.
        """
        logs = self._logs
        skip = first - (self.last - len(logs) + 1)
        assert skip >= 0, "no entry is applied twice"
        count = skip + last - first + 1
        taken = logs[skip:count] if skip or count < len(logs) else logs
        if taken is logs:
            self._logs = []
        else:
            del logs[:count]
        return taken

    def append(self, records: list[bytes], logs: list[Log]) -> None:
        """Add records behind `last`, with what they are to the state machine."""
        self._records += records
        self._logs += logs
        self._bytes += sum(map(len, records))

    def replace_from(self, index: Index, records: list[bytes], logs: list[Log]) -> None:
        """Make `records` the log from `index` on; what stood there before is dropped."""
        if index < self.first:
            self.reset(index - 1)
        elif index <= self.last:
            count = self.last - index + 1
            self._bytes -= sum(map(len, self._records[-count:]))
            del self._records[-count:], self._logs[max(len(self._logs) - count, 0) :]
        self.append(records, logs)

    def reset(self, last_index: Index) -> None:
        """Forget everything; the next record is `last_index + 1`."""
        self._records.clear()
        self._logs.clear()
        self._bytes = 0
        self.first = last_index + 1

    def trim(self, to: Index) -> None:
        """Drop the oldest records up to `to` (durable and applied) while over the bound."""
        if self._bytes <= self._retained_bytes_max or to < self.first:
            return
        count_max = to - self.first + 1
        # A quarter more than needed: a trim moves the rest of the list, so it should be rare.
        goal = self._retained_bytes_max * 3 // 4
        count, size = 0, self._bytes
        while count < count_max and size > goal:
            size -= len(self._records[count])
            count += 1
        del self._records[:count]
        self.first += count
        self._bytes = size
