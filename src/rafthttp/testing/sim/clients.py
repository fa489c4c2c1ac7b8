"""Clients of the simulated cluster, and the history of what they asked and saw.

Each has at most one request under way; it waits for the answer up to a timeout, then goes on: the
outcome of that request is unknown. A refusal is definite and leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rafthttp.raft.types import Index, ServerID, Term
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.healed import Acknowledged
from rafthttp.testing.linearizability import Kind, Operation
from rafthttp.testing.sim.faults import MS
from rafthttp.testing.sim.process import Process

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster

_TIMEOUT_NS = 250 * MS
_FILLER_KEY = -1


@dataclass(eq=False, slots=True)
class _Asked:
    """A request under way."""

    client: int
    kind: Kind
    key: int
    value: int
    called_ns: int
    term: Term = 0
    open: bool = True


class Clients:
    """All clients of one run.

    Attributes:
        history: what they asked and saw, for the linearizability checker.
        acknowledged: what they were told is applied.
    """

    def __init__(self, cluster: Cluster, clients: int, keys: int, think_ns: int) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._chance = cluster.chance("clients")
        self._keys = keys
        self._think_ns = think_ns
        self._values = 0
        self._reads = 0
        self._writing: dict[ServerID, dict[Index, _Asked]] = {}
        self._reading: dict[int, _Asked] = {}
        self._stopped = False
        self.history: list[Operation] = []
        self.acknowledged: list[Acknowledged] = []
        for client in range(clients):
            self._world.after(self._chance.below(think_ns), self._act, client)

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True

    def value(self) -> int:
        """A value that was never written."""
        self._values += 1
        return self._values

    # -- asking

    def _act(self, client: int) -> None:
        if self._stopped:
            return
        server = self._choose()
        if server is None:
            self._again(client)
        elif not server.defer(self._act_at, client, server):
            self._act_at(client, server)

    def _act_at(self, client: int, server: Process) -> None:
        """The request is in; a server that was paused may find it before what deposes it (S70)."""
        if server.core is None or not server.core.accepts_proposals:
            self._again(client)
        elif self._chance.random() < 0.3:
            self._read(client, server)
        else:
            self._write(client, server)

    def _again(self, client: int) -> None:
        self._world.after(1 + self._chance.below(self._think_ns), self._act, client)

    def _choose(self) -> Process | None:
        """A server that says it leads, deposed ones included."""
        leaders = [
            p
            for p in self._cluster.processes.values()
            if p.core is not None and p.core.accepts_proposals
        ]
        if not leaders:
            return None
        return leaders[self._chance.below(len(leaders))]

    def _write(self, client: int, server: Process) -> None:
        world = self._world
        key, value = self._chance.below(self._keys), self.value()
        asked = _Asked(client, Kind.WRITE, key, value, world.now_ns)
        many = self._chance.rng.choice(self._cluster.batches)
        payloads: list[object] = [self._cluster.command(key, value)]
        payloads += [self._cluster.command(_FILLER_KEY, self.value()) for _ in range(many - 1)]
        index, asked.term = server.propose(payloads)
        self._writing.setdefault(server.id, {})[index] = asked
        world.after(_TIMEOUT_NS, self._timed_out, asked)

    def _read(self, client: int, server: Process) -> None:
        world = self._world
        self._reads += 1
        asked = _Asked(client, Kind.READ, self._chance.below(self._keys), 0, world.now_ns)
        self._reading[self._reads] = asked
        self._cluster.checks.reads.on_asked(
            self._reads, self._cluster.checks.states.committed_index
        )
        core = server.live
        leased = core.lease_read_index(server.local_ns()) if server.config.lease_reads else None
        if leased is not None:
            world.seen["lease_read"] += 1
            self._cluster.checks.reads.on_confirmed(server.id, self._reads, leased)
            self.on_read(server, self._reads)
            return
        core.on_read(self._reads, server.local_ns())
        server.turn()
        world.after(_TIMEOUT_NS, self._timed_out, asked)

    # -- answers

    def on_applied(self, server: Process, index: Index, entry: Entry) -> None:
        """A server's state machine took in an entry: whoever waits for it there is told."""
        writing = self._writing.get(server.id)
        asked = writing.pop(index, None) if writing else None
        if asked is None:
            return
        if asked.term != entry.term:
            self._unknown(asked)
        elif asked.open:
            self.acknowledged.append(Acknowledged(index, entry.payload))
            self._end(asked, asked.value, None, self._world.now_ns)

    def on_read(self, server: Process, read: int) -> None:
        """A read is confirmed; the server has applied all it must see."""
        asked = self._reading.pop(read, None)
        if asked is not None and asked.open:
            value = server.machine.values.get(asked.key)
            self._end(asked, 0, value, self._world.now_ns)

    def on_read_refused(self, read: int) -> None:
        """A read was refused: definite."""
        asked = self._reading.pop(read, None)
        if asked is not None:
            self._close(asked)

    def on_aborted(self, server: Process, first: Index) -> None:
        """A server lost leadership: what it proposed from `first` up is unknown (S35)."""
        writing = self._writing.get(server.id)
        if writing:
            for index in [i for i in writing if i >= first]:
                self._unknown(writing.pop(index))

    def on_crash(self, server: Process) -> None:
        """A server died: its clients know nothing."""
        for asked in self._writing.pop(server.id, {}).values():
            self._unknown(asked)

    def _timed_out(self, asked: _Asked) -> None:
        if asked.open:
            self._unknown(asked)

    def _unknown(self, asked: _Asked) -> None:
        if asked.open and asked.kind is Kind.WRITE:
            self._end(asked, asked.value, None, None)
        else:
            self._close(asked)

    def _end(
        self, asked: _Asked, argument: object, result: object, returned_ns: int | None
    ) -> None:
        if asked.open:
            self.history.append(
                Operation(asked.key, asked.kind, argument, result, asked.called_ns, returned_ns)
            )
        self._close(asked)

    def _close(self, asked: _Asked) -> None:
        if asked.open:
            asked.open = False
            self._again(asked.client)

    def finish(self) -> list[Operation]:
        """The history, with what is still under way as unknown."""
        for writing in self._writing.values():
            for asked in writing.values():
                self._unknown(asked)
        return self.history
