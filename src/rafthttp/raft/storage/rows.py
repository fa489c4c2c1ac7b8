"""How the log becomes rows: several writes folded into one, batches packed, checked, cut.

Knows records only as bytes, and no database: everything here is a pure function. Two checksums a
row: one over its head, so that a term can be trusted without reading the records, one over all.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple
from zlib import crc32

from rafthttp.raft.errors import CorruptLogError
from rafthttp.raft.types import Index, LogBatch, LogWrite, Term

# Reading one record reads and checks its whole row, and truncation rewrites one row: 256 KiB take
# about 0.3 ms. Larger rows would save nothing, as a row costs microseconds beyond its bytes.
ROW_SIZE_BYTES_MAX: Final = 256 << 10
# Bounds the table of sizes for tiny records: 4096 sizes are 16 KiB.
ROW_ENTRIES_MAX: Final = 4096
# sqlite's integers are signed: 2**63 - 1 is the greatest, for keys and for terms.
NUMBER_MAX: Final = (1 << 63) - 1

_HEAD: Final = struct.Struct("<QQQ")


class Head(NamedTuple):
    """What a row says of itself without its records; all entries of a row have one term."""

    first: Index
    term: Term
    entries: int
    head_crc: int

    @property
    def last(self) -> Index:
        """Index of the row's last entry."""
        return self.first + self.entries - 1


class Row(NamedTuple):
    """A run of entries of one term, as stored. `sizes` is empty for a single record."""

    first: Index
    term: Term
    entries: int
    head_crc: int
    data_crc: int
    sizes: bytes
    data: bytes

    @property
    def last(self) -> Index:
        """Index of the row's last entry."""
        return self.first + self.entries - 1


def pack(first: Index, term: Term, records: Sequence[bytes]) -> Row:
    """One row of these records."""
    count = len(records)
    if count == 1:
        sizes, data = b"", records[0]
    else:
        sizes, data = struct.pack(f"<{count}I", *map(len, records)), b"".join(records)
    head_crc = crc32(_HEAD.pack(first, term, count))
    return Row(first, term, count, head_crc, crc32(data, crc32(sizes, head_crc)), sizes, data)


def pack_batch(batch: LogBatch) -> list[Row]:
    """The rows of a batch: one where it is within the bounds, else as few as fill them in order."""
    first, term, records = batch
    if len(records) == 1 or (
        len(records) <= ROW_ENTRIES_MAX and sum(map(len, records)) <= ROW_SIZE_BYTES_MAX
    ):
        return [pack(first, term, records)]
    rows: list[Row] = []
    start = size_bytes = 0
    for position, record in enumerate(records):
        full = position - start == ROW_ENTRIES_MAX or size_bytes + len(record) > ROW_SIZE_BYTES_MAX
        if full and position > start:
            rows.append(pack(first + start, term, records[start:position]))
            start, size_bytes = position, 0
        size_bytes += len(record)
    rows.append(pack(first + start, term, records[start:]))
    return rows


def check_head(first: Index, term: Term, entries: int, head_crc: int) -> Head:
    """The head of a stored row, trusted from here on.

    Raises:
        CorruptLogError: the checksum is wrong, or a value has lost its type.
    """
    try:
        good = crc32(_HEAD.pack(first, term, entries)) == head_crc and entries > 0
    except struct.error:
        good = False
    if not good:
        raise CorruptLogError(f"the log row at index {first!r} has a wrong head checksum")
    return Head(first, term, entries, head_crc)


def unpack(row: Row) -> list[bytes]:
    """All records of a stored row.

    Raises:
        CorruptLogError: a checksum is wrong, or a value has lost its type.
    """
    check_head(row.first, row.term, row.entries, row.head_crc)
    data, entries = row.data, row.entries
    try:
        if crc32(data, crc32(row.sizes, row.head_crc)) != row.data_crc:
            raise CorruptLogError(f"the log row at index {row.first} has a wrong checksum")
        if entries == 1 and not row.sizes:
            return [data]
        ends = list(accumulate(struct.unpack(f"<{entries}I", row.sizes), initial=0))
        if entries == 1 or ends[-1] != len(data):
            raise TypeError
    except (TypeError, struct.error):
        raise CorruptLogError(f"the log row at index {row.first} has lost its shape") from None
    return [data[start:end] for start, end in pairwise(ends)]


def take(records: Iterable[bytes], size_bytes_max: int) -> list[bytes]:
    """The longest prefix within `size_bytes_max`, but at least one record."""
    taken: list[bytes] = []
    size_bytes = 0
    for record in records:
        size_bytes += len(record)
        if size_bytes > size_bytes_max and taken:
            break
        taken.append(record)
    return taken


def check_range(first: Index, last: Index, first_held: Index, last_held: Index) -> None:
    """Raise IndexError unless `first..last` is a non-empty part of what is held."""
    if not first_held <= first <= last <= last_held:
        raise IndexError(f"entries {first}..{last} are not in the log ({first_held}..{last_held})")


def term_runs(
    head_at: Callable[[Index], Head], first: Index, last: Index
) -> Iterator[tuple[Index, Term]]:
    """First index and term of each run of equal terms in `first..last`, ascending.

    A binary search for each end of a run: terms never fall (Raft's log matching), and a row has one
    term, so a run begins where a row begins.

    Raises:
        CorruptLogError: the terms on the way fall.
    """
    low, end = head_at(first), head_at(last)
    yield first, low.term
    while low.term != end.term:
        term, high = low.term, end
        while low.last + 1 < high.first:
            middle = head_at((low.last + high.first) // 2)
            if not low.term <= middle.term <= high.term:
                break
            if middle.term == term:
                low = middle
            else:
                high = middle
        if not low.last + 1 == high.first or not term < high.term <= end.term:
            raise CorruptLogError(f"the terms of the log fall between {low.first} and {high.last}")
        low = high
        yield low.first, low.term


def pack_pairs(pairs: Mapping[bytes, bytes]) -> bytes:
    """All pairs as one value."""
    parts: list[bytes] = []
    for pair in pairs.items():
        for part in pair:
            parts += (struct.pack("<I", len(part)), part)
    return b"".join(parts)


def unpack_pairs(packed: bytes) -> dict[bytes, bytes]:
    """What `pack_pairs` packed; the checksum has been verified.

    Raises:
        CorruptLogError: it is something else all the same.
    """
    parts: list[bytes] = []
    start = 0
    try:
        while start < len(packed):
            (length,) = struct.unpack_from("<I", packed, start)
            start += 4
            parts.append(packed[start : start + length])
            start += length
        if start > len(packed):
            raise ValueError
        return dict(zip(parts[::2], parts[1::2], strict=True))
    except (struct.error, ValueError):
        raise CorruptLogError("a row of pairs has lost its shape") from None


def fold(
    writes: Sequence[LogWrite],
    first: Index,
    last: Index,
    term_at: Callable[[Index], Term],
) -> LogWrite:
    """The net effect of `writes` on a log `first..last`, as one write.

    All of them are one transaction, so what a later one truncates is never written, and
    neighbouring batches of one term become one row.

    Raises:
        ValueError: a batch does not follow the log, a term falls, a truncation reaches below the
            log, or a number is out of range. The caller's mistake; nothing has been written.
    """
    if len(writes) == 1:
        write = writes[0]
        if len(write.batches) == 1 and write.truncate_from is None and write.reset_to is None:
            # By far the most frequent one, and its own net effect.
            batch = write.batches[0]
            if batch.records:
                _check_follows(batch, last, term_at(last) if last >= first else 0)
                return write
    folded = _Fold(first, last, term_at)
    for write in writes:
        folded.add(write)
    return folded.result()


def _check_follows(batch: LogBatch, last: Index, last_term: Term) -> None:
    """Raise ValueError unless the batch may stand behind `last`."""
    if batch.first != last + 1:
        raise ValueError(f"entries from {batch.first} do not follow the log's last, {last}")
    if not 0 <= batch.term <= NUMBER_MAX or batch.last > NUMBER_MAX:
        raise ValueError(f"term {batch.term} or index {batch.last} is out of range")
    if batch.term < last_term:
        raise ValueError(f"term {batch.term} of entry {batch.first} is below the last, {last_term}")


class _Fold:
    """State of `fold`: the kept part of the stored log ends at `kept`, then come `batches`."""

    def __init__(self, first: Index, last: Index, term_at: Callable[[Index], Term]) -> None:
        self.stable: dict[bytes, bytes | None] = {}
        self.reset_to: Index | None = None
        self.first, self.last, self.kept = first, last, last
        self.term_at = term_at
        self.batches: list[LogBatch] = []
        self.last_is_own = False  # the records of the last batch are a list of ours, not a caller's

    def add(self, write: LogWrite) -> None:
        self.stable.update(write.stable)
        if write.reset_to is not None:
            if not 0 <= write.reset_to < NUMBER_MAX:
                raise ValueError(f"reset to index {write.reset_to} is out of range")
            self.reset_to = self.kept = write.reset_to
            self.first = write.reset_to + 1
            self.batches = []
        if write.truncate_from is not None:
            self.truncate(write.truncate_from)
        for batch in write.batches:
            if batch.records:
                self.append(batch)

    def truncate(self, index: Index) -> None:
        if index < self.first:
            raise ValueError(f"truncation from {index} reaches below the log's first, {self.first}")
        if index <= self.kept:
            self.kept, self.batches = index - 1, []
            return
        self.last_is_own = False
        while self.batches and self.batches[-1].last >= index:
            first, term, records = self.batches.pop()
            if first < index:
                self.batches.append(LogBatch(first, term, records[: index - first]))

    def append(self, batch: LogBatch) -> None:
        after = self.batches[-1].last if self.batches else self.kept
        if self.batches:
            before = self.batches[-1].term
        else:
            held = self.reset_to is None and self.kept >= self.first
            before = self.term_at(self.kept) if held else 0
        _check_follows(batch, after, before)
        if not self.batches or batch.term != before:
            self.batches.append(batch)
            self.last_is_own = False
            return
        if not self.last_is_own:
            self.batches[-1] = self.batches[-1]._replace(records=[*self.batches[-1].records])
            self.last_is_own = True
        self.batches[-1].records.extend(batch.records)

    def result(self) -> LogWrite:
        truncates = self.reset_to is None and self.kept < self.last
        return LogWrite(
            stable=self.stable,
            truncate_from=self.kept + 1 if truncates else None,
            batches=tuple(self.batches),
            reset_to=self.reset_to,
        )


def runs_of_terms(terms: Sequence[Term], start: int, stop: int) -> Iterator[tuple[int, Term]]:
    """Position and term of each run in `terms[start:stop]`, which never fall."""
    while start < stop:
        yield start, terms[start]
        start = bisect_right(terms, terms[start], start, stop)
