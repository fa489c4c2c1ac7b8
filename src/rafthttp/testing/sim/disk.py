"""A server's disk: one queue of writes, a model of what a crash leaves of them.

Knows what the core asks to be written, and time; not why. A write is done when its fsync is over:
until then a crash may keep any prefix of the queue, the one under way torn behind any of its
entries, for what stands in front of them (term, vote, truncation) is written first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from rafthttp.raft.core.ready import HardState, Persist, Seq
from rafthttp.raft.types import Index
from rafthttp.testing.coremember import Disk, Entry, Snapshot
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.world import Chance, World


class Write(NamedTuple):
    """One durable step: the core's; or the log dropped before `first`, for that `snapshot`."""

    persist: Persist | None
    entries: tuple[Entry, ...]
    first: Index = 0
    snapshot: Snapshot | None = None


class SimDisk:
    """The queue in front of a `Disk`.

    Args:
        on_done: called with the writes that became durable, in order.
        on_failed: called with the number of a write that failed; nothing is done after it.
        on_hard_state: called with term and vote before and after each write of them.
        on_changed: called when another log is found by the next start than before.
    """

    def __init__(
        self,
        world: World,
        faults: Faults,
        on_done: Callable[[list[Write]], None],
        on_failed: Callable[[Seq], None],
        on_hard_state: Callable[[HardState, HardState], None],
        on_changed: Callable[[], None],
    ) -> None:
        self.durable = Disk()
        self.hung_until_ns = 0
        self.fails_next: str | None = None
        self.flipped = ""
        self._world = world
        self._faults = faults
        self._on_done = on_done
        self._on_failed = on_failed
        self._on_hard_state = on_hard_state
        self._on_changed = on_changed
        self._queue: deque[Write] = deque()
        self._busy = False
        self._failed = False
        self._life = 0

    def heal(self, faults: Faults) -> None:
        """From now on the disk works as `faults` says."""
        self._faults = faults
        self.hung_until_ns = 0
        self.fails_next = None

    def submit(self, write: Write) -> None:
        """Queue a write."""
        if self._failed:
            return
        self._queue.append(write)
        if not self._busy:
            self._begin()

    def crash(self) -> None:
        """The process dies: what is under way is kept up to some point, the rest is lost."""
        rng = self._world.rng
        queue = self._queue
        if queue and not self._failed:
            kept = self._world.below(len(queue) + 1)
            for _ in range(kept):
                self._do(queue.popleft())
            if queue and rng.random() < self._faults.torn_write_chance:
                self._tear(queue[0])
        self._forget()
        self._on_changed()

    def wipe(self) -> None:
        """Everything is lost."""
        self._forget()
        self.durable = Disk()
        self.flipped = ""

    def flip(self, chance: Chance) -> str:
        """Flip a bit of something it holds, and say of what; the next start finds that."""
        disk = self.durable
        held = [f"entry {disk.base + 1 + at}" for at in range(len(disk.entries))]
        held += [f"configuration at {index}" for index, _ in disk.configurations]
        if disk.snapshot is not None:
            held.append(f"snapshot at {disk.snapshot.last_index}")
        if disk.hard_state.term > 0:
            held.append("term and vote")
        self.flipped = held[chance.below(len(held))] if held else ""
        return self.flipped

    def _forget(self) -> None:
        self._queue.clear()
        self._busy = self._failed = False
        self.fails_next = None
        self._life += 1

    def _begin(self) -> None:
        """One fsync, for the oldest write or for all that wait."""
        self._busy = True
        world, faults = self._world, self._faults
        many = len(self._queue) if world.rng.random() < 0.5 else 1
        takes = 1 + world.below(faults.fsync_ns_max)
        if faults.slow_fsync_chance and world.rng.random() < faults.slow_fsync_chance:
            world.seen["slow_fsync"] += 1
            takes *= 1 + world.below(30)
        world.at(max(world.now_ns, self.hung_until_ns) + takes, self._end, self._life, many)

    def _end(self, life: int, many: int) -> None:
        if life != self._life:
            return
        if self.hung_until_ns > self._world.now_ns:
            self._world.at(self.hung_until_ns, self._end, life, many)
            return
        if self.fails_next is not None:
            self._fail(self._queue[0])
            return
        done = [self._queue.popleft() for _ in range(many)]
        for write in done:
            self._do(write)
        self._busy = False
        if self._queue:
            self._begin()
        self._on_done(done)

    def _fail(self, write: Write) -> None:
        if self.fails_next == "enospc":
            self._tear(write)
        self._queue.clear()
        self._failed = True
        self._on_failed(0 if write.persist is None else write.persist.seq)

    def _do(self, write: Write) -> None:
        disk, persist = self.durable, write.persist
        if persist is None:
            if write.first - 1 > disk.base:
                del disk.entries[: write.first - 1 - disk.base]
                disk.base = write.first - 1
                self._on_changed()
            return
        before = disk.hard_state
        disk.write(persist, write.entries)
        if persist.hard_state is not None:
            self._on_hard_state(before, persist.hard_state)
        self._on_changed()

    def _tear(self, write: Write) -> None:
        if write.persist is not None:
            self._world.seen["torn_write"] += 1
            kept = self._world.below(len(write.entries) + 1)
            self._do(write._replace(entries=write.entries[:kept]))
