"""The log as the core sees it: terms in runs, sizes of the newest entries. No entries.

A log of a million entries under a dozen leaders is a dozen runs; memory grows with elections, not
with the log.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from rafthttp.raft.types import Index, Term

# Sizes kept: 8 MB at 8 bytes each, up to twice that between two trims. A peer further behind than
# a million entries is fed by count instead.
SIZES_KEPT: Final = 1 << 20


class TermRuns:
    """Terms of `base_index..last_index`; the base is the entry before the first one held.

    Invariants: `_firsts` and `_terms` are never empty and strictly ascending; the first run starts
    at the base (Raft §5.3: terms never fall along a log).
    """

    __slots__ = ("_firsts", "_terms", "base_index", "last_index", "last_term")

    def __init__(self, base_index: Index, base_term: Term) -> None:
        self.base_index = base_index
        self.last_index = base_index
        self.last_term = base_term
        self._firsts: list[Index] = [base_index]
        self._terms: list[Term] = [base_term]

    def term_at(self, index: Index) -> Term | None:
        """Term of one entry, or None outside `base_index..last_index`."""
        if index > self.last_index:
            return None
        if index >= self._firsts[-1]:
            return self.last_term
        if index < self.base_index:
            return None
        return self._terms[bisect_right(self._firsts, index) - 1]

    def append(self, term: Term, count: int) -> None:
        """Add `count` entries of one term."""
        if term != self.last_term:
            assert term > self.last_term, "terms never fall along a log"
            self._firsts.append(self.last_index + 1)
            self._terms.append(term)
            self.last_term = term
        self.last_index += count

    def extend(self, terms: Sequence[Term]) -> None:
        """Add entries; `terms` never falls and does not begin below the last term."""
        if terms[0] == terms[-1]:
            self.append(terms[0], len(terms))
            return
        at = 0
        while at < len(terms):
            end = bisect_right(terms, terms[at], at)
            self.append(terms[at], end - at)
            at = end

    def truncate_from(self, index: Index) -> None:
        """Forget that entry and all after it."""
        assert self.base_index < index <= self.last_index, "only entries held can be truncated"
        self.last_index = index - 1
        while self._firsts[-1] >= index:
            self._firsts.pop()
            self._terms.pop()
        self.last_term = self._terms[-1]

    def compact(self, base_index: Index) -> None:
        """Forget what lies before `base_index`, which becomes the base."""
        assert self.base_index <= base_index <= self.last_index, "the base only moves up the log"
        drop = bisect_right(self._firsts, base_index) - 1
        del self._firsts[:drop]
        del self._terms[:drop]
        self._firsts[0] = self.base_index = base_index

    def run_first(self, index: Index) -> Index:
        """First index of the run of equal terms around `index`; not below the base."""
        return self._firsts[bisect_right(self._firsts, index) - 1]

    def last_at_most(self, index: Index, term: Term) -> Index:
        """Highest entry up to `index` whose term is not above `term`; the base if there is none."""
        after = bisect_right(self._terms, term)
        if after == len(self._terms):
            return min(index, self.last_index)
        return min(index, max(self.base_index, self._firsts[after] - 1))

    def runs(self) -> list[tuple[Index, Term]]:
        """First index and term of each run, the base's first. For tests and status."""
        return list(zip(self._firsts, self._terms, strict=True))

    def count_terms(self, first: Index) -> int:
        """Number of different terms from `first` to the end. For tests."""
        return len(self._terms) - max(bisect_right(self._firsts, first) - 1, 0)


class SizeWindow:
    """Sizes of the newest entries as running sums, so that a frame is clipped by bisection.

    Invariant: `_sums[k]` is the bytes of entries `_start + 1 .. _start + k`, plus a constant.
    """

    __slots__ = ("_start", "_sums")

    def __init__(self, last_index: Index) -> None:
        self._start = last_index
        self._sums = array("Q", [0])

    def extend(self, sizes: Sequence[int]) -> None:
        """Note the sizes of entries behind the last one."""
        sums = accumulate(sizes, initial=self._sums[-1])
        next(sums)
        self._sums.extend(sums)
        if len(self._sums) > 2 * SIZES_KEPT:
            drop = len(self._sums) - SIZES_KEPT
            del self._sums[:drop]
            self._start += drop

    def truncate_from(self, index: Index) -> None:
        """Forget that entry and all after it."""
        if index <= self._start:
            self.reset(index - 1)
        else:
            del self._sums[index - self._start :]

    def reset(self, last_index: Index) -> None:
        """Forget everything; the log now ends at `last_index`."""
        self._start = last_index
        self._sums = array("Q", [0])

    def clip(
        self, first: Index, last: Index, bytes_max: int, entries_max: int, unsized_max: int
    ) -> Index:
        """Last entry of a frame that begins at `first`: within the bounds, but at least one."""
        start = self._start
        if first <= start:
            return min(last, first + min(unsized_max, entries_max) - 1)
        last = min(last, first + entries_max - 1)
        sums = self._sums
        limit = sums[first - 1 - start] + bytes_max
        if sums[last - start] <= limit:
            return last
        return max(first, start + bisect_left(sums, limit + 1, first - start, last - start + 1) - 1)
