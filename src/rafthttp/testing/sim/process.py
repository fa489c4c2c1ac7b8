"""One simulated server: a core, and a driver that carries out what it asks for.

Knows the order of a turn (`Ready`), the server's own clock, and its state machine; the network and
the disk do the waiting. After every input the core's turn is carried out and the invariants asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    CoreConfig,
    HardState,
    Ready,
    Reply,
    RpcId,
    Send,
    SendSnapshot,
    Seq,
)
from rafthttp.raft.types import Configuration, Index, LogPosition, ServerID, State, Term
from rafthttp.testing.coremember import (
    ENTRY_BYTES,
    Disk,
    Entry,
    Frame,
    Link,
    Message,
    Probe,
    Request,
    Snapshot,
    SnapshotFrame,
    TimeoutNow,
)
from rafthttp.testing.sim.disk import SimDisk, Write
from rafthttp.testing.sim.machine import Machine

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster

_TURNS_MAX = 100
# A snapshot takes up to this to arrive, and up to this to become visible and be told of.
_INSTALL_NS_MAX = 20_000_000
_RENAME_NS_MAX = 5_000_000


class Process:
    """A server of the simulation; `core` is None while it is down.

    Invariant: `log[i]` is entry `base + 1 + i`, as far as the core's last index.
    """

    def __init__(self, cluster: Cluster, number: int, config: CoreConfig, skew_ppm: int) -> None:
        self.cluster = cluster
        self.number = number
        self.id: ServerID = config.local_id
        self.config = config
        self.skew_ppm = skew_ppm
        self.life = 0
        self.core: Consensus | None = None
        self.device = SimDisk(
            cluster.world,
            cluster.faults,
            self._on_written,
            self._on_failed,
            self._on_hard_state,
            self._on_disk,
        )
        self.machine: Machine = cluster.new_machine()
        self.base: Index = 0
        self.log: list[Entry] = []
        self.links: dict[ServerID, Link] = {}
        self.rpcs: dict[RpcId, Message] = {}
        self.held: list[Reply] = []
        self.durable_seq: Seq = 0
        self.paused_until_ns = 0
        self.wiped: Disk | None = None
        """What the disk held when it was wiped, until no configuration counts on it."""
        self._timer_ns = 0
        # The RPC of the snapshot being taken in, and whether it may be visible already.
        self._installing: tuple[RpcId, bool] | None = None

    # -- what invariants see

    @property
    def live(self) -> Consensus:
        """The core, which must be running."""
        assert self.core is not None, f"{self.id} is down"
        return self.core

    @property
    def disk(self) -> Disk:
        """What is durable."""
        return self.device.durable

    @property
    def applied(self) -> Index:
        """Last entry given to the state machine."""
        return self.machine.applied

    @property
    def is_leader(self) -> bool:
        """Whether it is up and says that it leads."""
        return self.core is not None and self.core.state is State.LEADER

    def holds(self, index: Index, entry: Entry) -> bool:
        """Whether its disk has that entry, or a snapshot that covers it.

        A wiped one counts with what it had: until it is removed it takes no part, as one that is
        down (S62).
        """
        disk = self.disk if self.wiped is None else self.wiped
        held = disk.get(index)
        if held is not None:
            return held.term == entry.term
        return disk.snapshot is not None and disk.snapshot.last_index >= index

    def local_ns(self) -> int:
        """The time on its own clock."""
        now = self.cluster.world.now_ns
        return now + now * self.skew_ppm // 1_000_000

    def _world_ns(self, local_ns: int) -> int:
        return -(-local_ns * 1_000_000 // (1_000_000 + self.skew_ppm))

    # -- life

    def start(self) -> None:
        """Start on what the disk holds; where a checksum is wrong, it is refused, and replaced."""
        assert self.core is None, f"{self.id} is up"
        if self.device.flipped:
            self.lose_disk()
            return
        disk = self.disk
        initial = disk.initial_state()
        self.life += 1
        assert initial.log_base is not None, "the disk says where it begins"
        # The core's log begins behind an entry that is held, or behind the snapshot.
        self.base = initial.log_base[0]
        if self.base < initial.snapshot_index:
            self.base -= 1
        disk.entries = disk.entries[max(self.base - disk.base, 0) :]
        disk.entries = disk.entries[: initial.last_index - self.base]
        disk.base = self.base
        self._on_disk()
        self.log = list(disk.entries)
        snapshot = disk.snapshot
        self.machine = self.cluster.new_machine() if snapshot is None else self._state_of(snapshot)
        self.durable_seq = 0
        self._timer_ns = 0
        self._installing = None
        self.core = Consensus(
            self.config,
            initial,
            random.Random(self.cluster.world.rng.random()),  # noqa: S311 - histories must repeat
            self.local_ns(),
        )
        self.turn()

    def lose_disk(self) -> None:
        """All that was on its disk is gone; it begins anew once nobody counts on that (S62)."""
        self.wiped = self.disk
        self.device.wipe()
        self.cluster.release_wiped()

    def take_part(self, votes_from: LogPosition) -> None:
        """It was wiped, and nobody counts on what it held; that is noted first."""
        self.disk.votes_from = votes_from
        self.live.take_part(votes_from, self.local_ns())
        self.turn()

    @staticmethod
    def _state_of(snapshot: Snapshot) -> Machine:
        assert isinstance(snapshot.state, Machine)
        return snapshot.state.copy()

    def crash(self) -> None:
        """Die at once."""
        self.core = None
        self.paused_until_ns = 0
        self.device.crash()
        self.rpcs.clear()
        self.held.clear()
        self.cluster.clients.on_crash(self)
        self.cluster.network.on_crash(self.id)

    # -- time

    def _set_timer(self, core: Consensus) -> None:
        due = self._world_ns(core.deadline_ns)
        if self._timer_ns == 0 or due < self._timer_ns:
            self._timer_ns = due
            self.cluster.world.at(due, self._on_timer, self.life, due)

    def _on_timer(self, life: int, due_ns: int) -> None:
        core = self.core
        if core is None or life != self.life or due_ns != self._timer_ns:
            return
        if self.defer(self._on_timer, life, due_ns):
            return
        self._timer_ns = 0
        local = self.local_ns()
        if core.deadline_ns <= local:
            core.tick(local)
            self.turn()
        else:
            self._set_timer(core)

    def defer(self, action: object, *args: object) -> bool:
        """Whether the process is paused; then `action` follows when it goes on."""
        world = self.cluster.world
        if self.paused_until_ns <= world.now_ns:
            return False
        world.at(self.paused_until_ns, action, *args)  # type: ignore[arg-type] # what was called
        return True

    # -- a turn

    def turn(self) -> None:
        """Take and carry out what there is to do, until there is nothing; ask the invariants."""
        core = self.core
        if core is None:
            return
        for _ in range(_TURNS_MAX):
            ready = core.ready()
            if ready is None:
                break
            self._execute(core, ready)
        else:
            raise AssertionError(f"{self.id} does not come to rest")
        self.cluster.checks.on_step(self)
        self.cluster.world.note(
            self.number, core.term, core.commit_index, core.last_index, core.durable_index
        )
        self._set_timer(core)

    def _execute(self, core: Consensus, ready: Ready) -> None:
        cluster = self.cluster
        if ready.noop is not None:
            self.append((Entry(core.term, f"noop{core.term}"),))
        if ready.persist is not None:
            persist = ready.persist
            entries = tuple(self.log[persist.first - self.base - 1 : persist.last - self.base])
            assert len(entries) == max(persist.last - persist.first + 1, 0), "the cache has them"
            self.device.submit(Write(persist, entries))
        self._ask_others(core, ready)
        if ready.replies:
            self.held.extend(ready.replies)
            self._release()
        if ready.aborted_from is not None:
            cluster.clients.on_aborted(self, ready.aborted_from)
        if ready.soft_state is not None and ready.soft_state.state is State.LEADER:
            cluster.checks.on_leader(self)
        if ready.apply is not None:
            self._apply(core, *ready.apply)
        for read in ready.reads:
            cluster.checks.reads.on_confirmed(self.id, read.read, read.read_index)
            cluster.clients.on_read(self, read.read)
        for refused in ready.reads_aborted:
            cluster.clients.on_read_refused(refused)

    def _ask_others(self, core: Consensus, ready: Ready) -> None:
        if core.state is not State.LEADER and self.links:
            self.cluster.network.close_links(self)
        for send in ready.sends:
            self._send(send)
        for beat in ready.heartbeats:
            self._ask(beat.peer, Frame(beat, ()))
        for vote in ready.votes:
            self._ask(vote.peer, vote)
        for ask in ready.snapshots:
            self._send_snapshot(core, ask)
        if ready.timeout_now is not None:
            self._ask(ready.timeout_now, TimeoutNow())
        if ready.probe_leader is not None:
            self._ask(ready.probe_leader, Probe())

    def append(self, entries: Iterable[Entry]) -> None:
        """Put entries at the end of the cache."""
        checks, core = self.cluster.checks, self.live
        for entry in entries:
            self.log.append(entry)
            index = self.base + len(self.log)
            checks.on_append(self, index, entry, core.term_at(index - 1))

    def cut_from(self, index: Index) -> None:
        """Drop that entry and all after it from the cache."""
        del self.log[index - self.base - 1 :]

    def _apply(self, core: Consensus, first: Index, last: Index) -> None:
        checks, machine = self.cluster.checks, self.machine
        if core.state is State.LEADER:
            checks.on_leader_commit(
                core.term,
                last,
                self.log[last - self.base - 1],
                core.configuration,
                self.cluster.voters,
            )
        assert first == machine.applied + 1, "each entry once, in order"
        for index in range(first, last + 1):
            entry = self.log[index - self.base - 1]
            checks.on_apply(self.id, index, entry)
            machine.apply(index, entry)
            self.cluster.clients.on_applied(self, index, entry)
        machine.end_batch()
        checks.states.on_state(self.id, last, machine.digest)

    # -- what clients ask

    def propose(self, payloads: list[object]) -> tuple[Index, Term]:
        """Propose commands, which the core must accept; returns the first's index and term."""
        core = self.live
        entries = [Entry(core.term, payload) for payload in payloads]
        first = core.propose([ENTRY_BYTES] * len(entries), self.local_ns())
        assert first == self.base + len(self.log) + 1
        self.append(entries)
        self.turn()
        return first, entries[0].term

    def propose_configuration(self, configuration: Configuration) -> None:
        """Propose a configuration, which the core must accept."""
        core = self.live
        self.cluster.checks.on_configuration(self)
        core.propose_configuration(configuration, ENTRY_BYTES, self.local_ns())
        self.append((Entry(core.term, configuration),))
        self.turn()

    # -- asking and answering

    def _ask(self, peer: ServerID, body: Request) -> None:
        self.cluster.checks.on_request(self, body)
        self.cluster.network.ask(self, peer, body)

    def _send(self, send: Send) -> None:
        assert send.leader_commit <= send.last, "decision 6: no frame shows more than it carries"
        base = self.base
        entries = tuple(self.log[send.prev_index - base : max(send.last, send.prev_index) - base])
        self.cluster.network.send(self, Frame(send, entries), send)

    def _send_snapshot(self, core: Consensus, ask: SendSnapshot) -> None:
        snapshot = self.disk.snapshot
        if snapshot is None:
            core.on_snapshot_send_failed(ask.peer, ask.epoch, self.local_ns())
        else:
            self.cluster.checks.bounded.snapshots += 1
            self.cluster.network.ask(self, ask.peer, SnapshotFrame(ask, snapshot))

    def _release(self) -> None:
        held: list[Reply] = []
        for reply in self.held:
            if reply.after > self.durable_seq:
                held.append(reply)
                continue
            message = self.rpcs.pop(reply.rpc)
            self.cluster.network.answer(self, message, reply)
        self.held = held

    # -- disk

    def _on_hard_state(self, before: HardState, now: HardState) -> None:
        self.cluster.checks.on_hard_state(self.id, before, now)

    def _on_disk(self) -> None:
        self.cluster.checks.durable.on_disk(self)

    def _on_written(self, writes: list[Write]) -> None:
        self._written(self.life, writes)

    def _written(self, life: int, writes: list[Write]) -> None:
        core = self.core
        if core is None or life != self.life or self.defer(self._written, life, writes):
            return
        for write in writes:
            if write.persist is not None:
                self.durable_seq = write.persist.seq
            elif write.snapshot is not None and write.first - 1 > self.base:
                self._drop_log(core, write.first, write.snapshot)
        if self.durable_seq:
            core.on_persisted(self.durable_seq, self.local_ns())
        self._release()
        self.turn()

    def _on_failed(self, seq: Seq) -> None:
        self._failed(self.life, seq)

    def _failed(self, life: int, seq: Seq) -> None:
        core = self.core
        if core is None or life != self.life or self.defer(self._failed, life, seq):
            return
        core.on_persist_failed(seq, self.local_ns())
        self.turn()

    # -- snapshots

    def take_snapshot(self, trailing: int) -> None:
        """Save the state machine; when that is durable, drop the log but `trailing` entries."""
        core = self.live
        index = self.applied
        term = core.term_at(index)
        at, configuration = core.committed_configuration_index, core.committed_configuration
        if index <= core.snapshot_index or term is None or at > index:
            return
        snapshot = Snapshot(index, term, configuration, at, self.machine.copy())
        world = self.cluster.world
        world.after(1 + world.below(20_000_000), self._saved, self.life, snapshot, trailing)

    def _saved(self, life: int, snapshot: Snapshot, trailing: int) -> None:
        if life != self.life or self.core is None or self.live.disk_failed:
            return
        own = self.disk.snapshot
        if own is None or own.last_index < snapshot.last_index:
            assert isinstance(snapshot.state, Machine)
            snapshot.state.save()
            self.disk.snapshot = snapshot
            first = max(snapshot.last_index - trailing + 1, self.base + 1)
            self.device.submit(Write(None, (), first, snapshot))

    def _drop_log(self, core: Consensus, first: Index, snapshot: Snapshot) -> None:
        del self.log[: first - 1 - self.base]
        self.base = first - 1
        core.on_compacted(snapshot.last_index, snapshot.last_term, first)

    def begin_install(self, rpc: RpcId, ask: SendSnapshot, snapshot: Snapshot) -> None:
        """The core takes a snapshot: its bytes begin to come."""
        core, world = self.live, self.cluster.world
        if self._installing is not None:
            # A leader sends one at a time: the one before is dead, unless it counts already.
            before, visible = self._installing
            if visible:
                core.on_snapshot_failed(rpc, self.local_ns())
                return
            core.on_snapshot_failed(before, self.local_ns())
        self._installing = (rpc, False)
        whole = world.rng.random() >= self.cluster.active_faults.snapshot_failure_chance
        world.seen["install" if whole else "broken_install"] += 1
        wait = 1 + world.below(_INSTALL_NS_MAX)
        world.after(wait, self._arrived, self.life, rpc, ask, snapshot if whole else None)

    def _arrived(self, life: int, rpc: RpcId, ask: SendSnapshot, snapshot: Snapshot | None) -> None:
        """All its bytes are here, or (None) it broke."""
        core = self.core
        if core is None or life != self.life or self._installing != (rpc, False):
            return
        if self.defer(self._arrived, life, rpc, ask, snapshot):
            return
        self._installing = None
        now = self.local_ns()
        if snapshot is None:
            core.on_snapshot_failed(rpc, now)
        elif core.on_snapshot_arrived(rpc, ask.term, snapshot.last_index, snapshot.last_term, now):
            self._installing = (rpc, True)
            world = self.cluster.world
            world.after(world.below(_RENAME_NS_MAX), self._renamed, life, rpc, snapshot)
        self.turn()

    def _renamed(self, life: int, rpc: RpcId, snapshot: Snapshot) -> None:
        """It is visible: a restart begins from it."""
        if self.core is None or life != self.life:
            return
        own = self.disk.snapshot
        if own is None or own.last_index < snapshot.last_index:
            self.disk.snapshot = snapshot
        world = self.cluster.world
        world.after(world.below(_RENAME_NS_MAX), self._installed, life, rpc, snapshot)

    def _installed(self, life: int, rpc: RpcId, snapshot: Snapshot) -> None:
        core = self.core
        if core is None or life != self.life or self.defer(self._installed, life, rpc, snapshot):
            return
        self._installing = None
        if core.on_snapshot_installed(
            rpc,
            snapshot.last_index,
            snapshot.last_term,
            snapshot.configuration,
            snapshot.configuration_index,
            self.local_ns(),
        ):
            if core.first_index == snapshot.last_index + 1:
                self.base, self.log = snapshot.last_index, []
            self.machine = self._state_of(snapshot)
        self.turn()
