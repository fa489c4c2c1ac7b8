"""What invariants see of real servers: every turn of a driver, every commit, every disk write.

Knows which of those concerns which property. What breaks is kept, not raised: it is found inside of
a server, which would take it for an error of its own.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.runtime.send_snapshot import SnapshotSender
from rafthttp.raft.types import Configuration, Index, Log, LogType, ServerID, State, Suffrage
from rafthttp.raft.wire.configuration import decode_configuration
from rafthttp.raft.wire.entries import decode_log
from rafthttp.testing.coremember import Entry
from rafthttp.testing.driversim.disk import Disk
from rafthttp.testing.driversim.loop import LIFE
from rafthttp.testing.driversim.machine import Registers
from rafthttp.testing.driversim.member import Member
from rafthttp.testing.invariants import InvariantError
from rafthttp.testing.invariants.bounded import Bounded
from rafthttp.testing.invariants.configurations import check_pending, check_proposed
from rafthttp.testing.invariants.durable_commit import DurableCommit, check_durable
from rafthttp.testing.invariants.election_safety import ElectionSafety
from rafthttp.testing.invariants.leader_append_only import LeaderAppendOnly
from rafthttp.testing.invariants.monotonic import Monotonic
from rafthttp.testing.invariants.order import check_order
from rafthttp.testing.invariants.state_machine_safety import StateMachineSafety

_READ_BYTES = 1 << 30


class _Seen(NamedTuple):
    """A server in one of its lives."""

    id: ServerID
    life: int
    live: Consensus


class Watch:
    """All invariants of one history of real servers.

    Attributes:
        failure: the first that broke.
        commit_index: the highest that any server has called committed.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.failure: Exception | None = None
        self.commit_index: Index = 0
        self.states = StateMachineSafety()
        self.bounded = Bounded()
        self._members = members
        self._disks: Mapping[ServerID, Disk] = {m.id: m.disk for m in members}
        self._monotonic = Monotonic()
        self._elections = ElectionSafety()
        self._append_only = LeaderAppendOnly()
        self._durable = DurableCommit()
        self._seen: dict[Driver, _Seen] = {}
        self._committed: dict[Driver, Index] = {}
        self._applied: dict[int, tuple[Index, Entry]] = {}
        # Ascending: entries that leaders held for committed, and the configuration they counted by.
        self._commits: list[tuple[Index, Configuration]] = []
        for member in members:
            member.disk.on_changed = self._on_disk_of(member)
            member.on_broken = self.on_broken

    def _on_disk_of(self, member: Member) -> Callable[[], None]:
        return lambda: self._ask(self._on_disk, member.id, member.disk)

    def _ask(self, check: Callable[..., None], *args: Any) -> None:
        try:
            check(*args)
        except InvariantError as error:
            self.on_broken(error)

    def on_broken(self, error: InvariantError) -> None:
        """A property does not hold."""
        self.failure = self.failure or error

    # -- what happens

    def on_applied(self, server: ServerID, machine: Registers, log: Log, value: int) -> None:
        """A state machine took in the command that writes `value`."""
        entry = Entry(log.term, log.data)
        self._applied.setdefault(value, (log.index, entry))
        self._ask(self._check_applied, server, machine, log.index, entry)

    def _check_applied(
        self, server: ServerID, machine: Registers, index: Index, entry: Entry
    ) -> None:
        self.states.on_commit(server, index, entry)
        self.states.on_state(server, index, machine.digest)
        if machine.twice:
            raise InvariantError(f"applied once: {server} applied {machine.twice} again")

    def check_acknowledged(self, value: int) -> None:
        """A client was told: most of those whom the leader counted must hold it (Raft Figure 2).

        Or of those who vote since; what was removed may be gone.

        Raises:
            InvariantError: they do not.
        """
        if value not in self._applied:
            raise InvariantError(f"acknowledged: {value}, which nobody has applied")
        index, entry = self._applied[value]
        newest = self._commits[-1]
        at = bisect.bisect_left(self._commits, index, key=lambda commit: commit[0])
        counted = self._commits[at] if at < len(self._commits) else newest
        with contextlib.suppress(InvariantError):
            check_durable(index, entry, self._voters(counted[1]))
            return
        check_durable(index, entry, self._voters(newest[1]))

    def _voters(self, configuration: Configuration) -> list[Disk]:
        return [self._disks[s.id] for s in configuration if s.suffrage is Suffrage.VOTER]

    def _on_disk(self, server: ServerID, disk: Disk) -> None:
        self._durable.on_disk(disk)
        store = disk.store
        first, last = max(self.commit_index + 1, store.first_index()), store.last_index()
        if first >= last:
            return
        logs = [decode_log(record) for record in store.get_records(first, last, _READ_BYTES)]
        held = [
            Entry(
                log.term,
                decode_configuration(log.data) if log.type is LogType.CONFIGURATION else log.data,
            )
            for log in logs
        ]
        check_pending(server, first - 1, held, self.commit_index)

    # -- drivers

    def _on_start(self, driver: Driver) -> None:
        life = LIFE.get()
        member = next(m for m in self._members if m.life is life)
        self._seen[driver] = _Seen(member.id, member.lives, driver.core)

    def _on_turn(self, driver: Driver) -> None:
        seen = self._seen[driver]
        core, server = seen.live, seen.id
        term, commit, last = core.term, core.commit_index, core.last_index
        applied = driver.applier.applied
        if driver.applier.waits:
            # The state machine may be reading the snapshot that the log begins with already.
            applied = max(applied, core.snapshot_index)
        self._monotonic.on_step(server, seen.life, term, commit, applied)
        check_order(server, core.first_index - 1, core.snapshot_index, applied, commit, last)
        self.bounded.on_term(term)
        if core.state is State.LEADER:
            self._elections.on_leader(server, term)
            self._append_only.on_step(seen, term, last)
            if commit > self._committed.get(driver, 0):
                self._on_commit(core, commit)
        self._committed[driver] = commit
        self.commit_index = max(self.commit_index, commit)

    def _on_commit(self, core: Consensus, index: Index) -> None:
        if not self._commits or index > self._commits[-1][0]:
            self._commits.append((index, core.configuration))
        entry = Entry(core.term_at(index) or 0, None)
        self._durable.on_commit(index, entry, core.configuration, self._disks)

    def _on_proposed(
        self, driver: Driver, change: Callable[[Configuration], Configuration]
    ) -> None:
        core = driver.core
        if core.accepts_proposals and change(core.configuration) != core.configuration:
            check_proposed(self._seen[driver].id, core)

    @contextlib.contextmanager
    def at_work(self) -> Generator[None]:
        """Look at every driver, inside the block."""
        start, send = Driver.start, SnapshotSender.send
        propose = Driver.propose_configuration

        def started(driver: Driver) -> None:
            self._on_start(driver)
            start(driver)

        def watched(run: Callable[..., None]) -> Callable[..., None]:
            def watched_run(driver: Driver, *args: int) -> None:
                run(driver, *args)
                if not driver.closed:
                    self._ask(self._on_turn, driver)

            return watched_run

        def proposed(driver: Driver, change: Callable[[Configuration], Configuration]) -> Any:
            self._ask(self._on_proposed, driver, change)
            return propose(driver, change)

        def sent(sender: SnapshotSender, *args: Any) -> None:
            self.bounded.snapshots += 1
            send(sender, *args)

        with (
            mock.patch.object(Driver, "start", started),
            # All that runs a turn: where they are compiled, one does not look the other up.
            mock.patch.object(Driver, "_turn", watched(Driver._turn)),
            mock.patch.object(Driver, "_on_timer", watched(Driver._on_timer)),
            mock.patch.object(Driver, "_on_durable", watched(Driver._on_durable)),
            mock.patch.object(Driver, "propose_configuration", proposed),
            mock.patch.object(SnapshotSender, "send", sent),
        ):
            yield
