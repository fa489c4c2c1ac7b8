"""How far one peer's log is known to agree, and where to look next when it does not.

The leader cannot tell who answers. A follower in Go rejects with its real last index, whatever the
probe; ours rejects with a hint: an index below the probe, under which its conflicting terms lie.
A follower in Go also rejects a probe below its first retained entry, or at one it has only as a
snapshot's end: a rejection proves nothing about what lies below.

The search (decision 6), for both at once:

1. The first probe is at the leader's last entry. A rejection with `last_log < prev` names a place
   to count from, the *anchor*: a real last index or a hint. Otherwise the anchor is the probe.
2. Next comes anchor - 1. A follower that only lags accepts it (one entry is sent again), and so
   does one with a single divergent entry: two probes in all.
3. Each further rejection doubles the distance from the anchor, or goes just below the hint, where
   that is lower. One that names no hint is first asked for the anchor itself, once: a follower in
   Go that holds nothing but a snapshot accepts only there.
4. Any success ends the search; entries that the follower has already are skipped there. The
   distance at success is below twice the divergence, so at most as much again is sent.
5. Every step but the one to the anchor is strictly lower; at the base of the leader's log the
   search ends in a snapshot.

With d divergent entries: 1 + 1 + 1 + log2(d), rounded up, is within 2 * log2(d) + 2 for d > 1, and
d = 1 takes two. Ours never takes step 3's extra probe, and each of its rejections rules out a whole
divergent term: at most 1 + terms + 1.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.core.ready import ProgressState
from rafthttp.raft.types import Index, ServerID

# Redial after a second failure in a row: 10 ms as hashicorp/raft's failureWait, doubled each time.
_BACKOFF_NS: Final = 10_000_000
_BACKOFF_NS_MAX: Final = 500_000_000
_SNAPSHOT_BACKOFF_NS_MAX: Final = 5_000_000_000
# About two seconds of tries.
_UNWILLING_MAX: Final = 9


class Search:
    """Where to probe next (see the module's docstring). Bounded: every step but one goes down."""

    __slots__ = ("_anchor", "_distance", "_lowest", "_spare")

    def __init__(self) -> None:
        self._anchor: Index | None = None
        self._distance = 0
        self._lowest: Index | None = None
        self._spare: Index | None = None

    def refused(self, prev: Index, last_log: Index, base: Index) -> Index | None:
        """The next `prev` to probe after this one was refused; None: only a snapshot helps."""
        lowest = self._lowest = prev if self._lowest is None else min(self._lowest, prev)
        if self._anchor is None:
            self._anchor = min(prev, last_log)
            if last_log < prev:
                self._spare = last_log
        elif last_log < prev:
            self._spare = None
        elif self._spare is not None:
            spare, self._spare = self._spare, None
            if spare >= base:
                self._distance = self._anchor - prev
                return spare
        self._distance = max(self._distance, self._anchor - prev)
        target = self._anchor - max(2 * self._distance, 1)
        if last_log < prev:
            target = min(target, last_log - 1)
        target = max(target, base)
        return target if target < lowest else None


class Progress:
    """What the leader knows of one peer. etcd's tracker has the same three states.

    Invariants: `match < next`; entries up to `match` are durable over there; in PROBE at most one
    frame is in flight, in SNAPSHOT none; `epoch` changes whenever frames in flight stop counting,
    so an answer to an older life is never taken for one to this (S34).
    """

    __slots__ = (
        "commit_shown",
        "contact_ns",
        "epoch",
        "failures",
        "inflight",
        "match",
        "next",
        "peer",
        "retry_ns",
        "search",
        "snapshot_due",
        "snapshot_failures",
        "state",
        "unreachable",
    )

    def __init__(self, peer: ServerID, next_index: Index, epoch: int, now_ns: int) -> None:
        self.peer = peer
        self.state = ProgressState.PROBE
        self.match: Index = 0
        self.next = next_index
        self.epoch = epoch
        self.inflight = 0
        self.commit_shown: Index = 0
        self.contact_ns = now_ns
        self.failures = 0
        self.retry_ns = now_ns
        self.search: Search | None = None
        self.snapshot_due = False
        self.snapshot_failures = 0
        self.unreachable = False

    def accepted(self, last: Index) -> None:
        """A frame that ended at `last` was accepted: success means exactly that much."""
        self.inflight -= 1
        self.failures = 0
        if last > self.match:
            self.match = last
        if self.state is not ProgressState.REPLICATE:
            self.state = ProgressState.REPLICATE
            self.search = None
            self.next = self.match + 1

    def refused(self, prev: Index, last_log: Index, base: Index, epoch: int) -> None:
        """A frame behind `prev` was refused: look further down."""
        if prev <= self.match:
            # It acknowledged this place before: its disk lost entries, or it cut them away. It
            # counts for nothing until it has accepted them again (S62).
            self.match = 0
        self._restart(epoch)
        self.state = ProgressState.PROBE
        if self.search is None:
            self.search = Search()
        target = self.search.refused(prev, last_log, base)
        if target is None:
            self.need_snapshot(epoch)
        else:
            self.next = target + 1

    def unwilling(self, epoch: int, now_ns: int) -> bool:
        """A refusal for other reasons than the log's place, as when a disk is full.

        True: it was put down to that, and the same place is tried again later. After a few in a
        row it may be the place all the same: a follower in Go refuses so what it has compacted.
        """
        if self.failures >= _UNWILLING_MAX:
            return False
        self.failed(epoch, now_ns)
        self.unreachable = False
        if self.failures == 1:
            self.back_off(now_ns, at_once=False)
        return True

    def need_snapshot(self, epoch: int) -> None:
        """What the peer needs is compacted away."""
        self._restart(epoch)
        self.state = ProgressState.SNAPSHOT
        self.search = None
        self.snapshot_due = True

    def failed(self, epoch: int, now_ns: int) -> None:
        """The stream closed: what was in flight is lost. Try again, at once the first time."""
        self._restart(epoch)
        if self.state is ProgressState.REPLICATE:
            self.state = ProgressState.PROBE
        if self.match:
            self.search = None
            self.next = self.match + 1
        self.unreachable = True
        self.back_off(now_ns, at_once=True)

    def snapshot_sent(self, last_index: Index, epoch: int) -> None:
        """The peer has the snapshot; the log goes on behind it (S56: this moves match too)."""
        self._restart(epoch)
        self.failures = self.snapshot_failures = 0
        self.state = ProgressState.PROBE
        self.match = max(self.match, last_index)
        self.next = self.match + 1

    def snapshot_failed(self, next_index: Index, epoch: int, now_ns: int) -> None:
        """The snapshot did not arrive: look afresh, for things may have changed meanwhile.

        Longer and longer between two tries, counted apart from the probes between them: each try
        may have read and sent a file of any size in vain.
        """
        self._restart(epoch)
        self.state = ProgressState.PROBE
        self.next = next_index
        wait = _BACKOFF_NS << min(self.snapshot_failures, 10)
        self.retry_ns = now_ns + min(wait, _SNAPSHOT_BACKOFF_NS_MAX)
        self.snapshot_failures += 1

    def back_off(self, now_ns: int, *, at_once: bool) -> None:
        """Wait before the next try, longer and longer; the first may follow at once."""
        if self.failures or not at_once:
            wait = _BACKOFF_NS << min(self.failures, 10)
            self.retry_ns = now_ns + min(wait, _BACKOFF_NS_MAX)
        self.failures += 1

    def _restart(self, epoch: int) -> None:
        self.epoch = epoch
        self.inflight = 0
        self.snapshot_due = False
        self.unreachable = False
