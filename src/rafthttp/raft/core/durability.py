"""What is on disk, and what is on its way there.

Disk and network work in parallel (Raft thesis §10.2.1): entries leave before they are durable, so
this module answers two questions: up to where is the log *as it is now* durable, and after which
write may a reply go out.

A truncation meets a write in flight (decision 5):

1. Entries 5..8 of term 2 arrive; they leave as write 7, which the disk has not finished.
2. A new leader of term 3 overwrites: entries from 6 up are truncated, 6..7 of term 3 appended.
   They leave as write 8, which first truncates, then appends.
3. Write 7 completes. It did make an entry 6, 7 and 8 durable, but none of those is in the log any
   more: were the durable index now 8, entry 7 of term 3 would be acknowledged and could be lost.
4. So step 2 clips write 7 to end at 5, and step 3 moves the durable index to 5.
5. Write 8 completes: the durable index is 7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rafthttp.raft.core.ready import HardState, Persist, Seq
from rafthttp.raft.types import Configuration, Index, ServerID, Term


class _Write:
    """One write in flight. `last` is the last entry of the present log it covers, once clipped."""

    __slots__ = ("at_ns", "last", "seq", "term")

    def __init__(self, seq: Seq, last: Index, term: Term | None, at_ns: int) -> None:
        self.seq = seq
        self.last = last
        self.term = term
        self.at_ns = at_ns


class Durability:
    """Numbers the writes and keeps their fate.

    Invariants: `durable_index <= submitted_index <= last index of the log`; `_writes` ascends in
    `seq`; a reply that was promised for `next_seq` finds something to write, because whatever made
    it wait also made this dirty.
    """

    __slots__ = (
        "_hard_dirty",
        "_hard_seq",
        "_reset_to",
        "_truncate_from",
        "_writes",
        "durable_index",
        "durable_seq",
        "durable_term",
        "failed",
        "next_seq",
        "submitted_index",
    )

    def __init__(self, last_index: Index, term: Term) -> None:
        self.durable_index = last_index
        self.submitted_index = last_index
        self.durable_term = term
        self.durable_seq: Seq = 0
        self.next_seq: Seq = 1
        self.failed = False
        self._hard_dirty = False
        self._hard_seq: Seq = 0
        self._truncate_from: Index | None = None
        self._reset_to: Index | None = None
        self._writes: deque[_Write] = deque()

    def hard_state_changed(self) -> None:
        """Term or vote changed: the next write carries both (S2)."""
        self._hard_dirty = True

    def truncate_from(self, index: Index) -> None:
        """The log lost `index` and all after it: clip what is in flight (decision 5)."""
        if index <= self.submitted_index:
            self.submitted_index = index - 1
            if self._truncate_from is None or index < self._truncate_from:
                self._truncate_from = index
            for write in self._writes:
                write.last = min(write.last, index - 1)
            self.durable_index = min(self.durable_index, index - 1)

    def reset_to(self, index: Index) -> None:
        """A durable snapshot that ends at `index` replaces the whole log."""
        self._reset_to = index
        self._truncate_from = None
        for write in self._writes:
            write.last = 0
        self.durable_index = self.submitted_index = index

    def seq_of_hard_state(self) -> Seq:
        """The write after which the present term and vote are durable; 0 if they are."""
        if self._hard_dirty:
            return self.next_seq
        return self._hard_seq if self._hard_seq > self.durable_seq else 0

    def seq_of(self, index: Index) -> Seq:
        """The write after which the term, the vote and the log up to `index` are durable (S4)."""
        hard = self.seq_of_hard_state()
        if self._reset_to is not None:
            return self.next_seq
        if index <= self.durable_index:
            return hard
        if index > self.submitted_index:
            return self.next_seq
        for write in self._writes:
            if write.last >= index:
                return max(hard, write.seq)
        raise AssertionError("what was submitted and is not durable is in flight")

    def take(
        self,
        term: Term,
        voted_for: ServerID | None,
        last_index: Index,
        configurations: Sequence[tuple[Index, Configuration]] | None,
        now_ns: int,
    ) -> Persist | None:
        """The next write, or None where nothing changed (or the disk has failed: S6)."""
        first = self.submitted_index + 1
        idle = (
            first > last_index
            and not self._hard_dirty
            and configurations is None
            and self._truncate_from is None
            and self._reset_to is None
        )
        if idle or self.failed:
            return None
        seq = self.next_seq
        self.next_seq = seq + 1
        write = _Write(seq, last_index, None, now_ns)
        hard = None
        if self._hard_dirty:
            hard = HardState(term, voted_for)
            write.term = term
            self._hard_dirty = False
            self._hard_seq = seq
        self._writes.append(write)
        self.submitted_index = last_index
        persist = Persist(
            seq, hard, self._reset_to, self._truncate_from, first, last_index, configurations
        )
        self._reset_to = self._truncate_from = None
        return persist

    def completed(self, seq: Seq, now_ns: int) -> None:
        """All writes up to `seq` are durable. The durable index only rises here (S36).

        The next write's age counts from now: a disk that is busy with a long queue makes progress,
        one that hangs does not (S74).
        """
        writes = self._writes
        while writes and writes[0].seq <= seq:
            write = writes.popleft()
            self.durable_seq = write.seq
            if write.last > self.durable_index:
                self.durable_index = write.last
            if write.term is not None:
                self.durable_term = write.term
        if writes and writes[0].at_ns < now_ns:
            writes[0].at_ns = now_ns

    @property
    def oldest_ns(self) -> int | None:
        """Since when the oldest write in flight has had the disk for itself."""
        return self._writes[0].at_ns if self._writes else None
