"""What travels between bare cores, and what each of them keeps. For `corenet`.

Knows shapes and a disk that forgets what was not written; not who does what when.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    CoreConfig,
    HardState,
    Heartbeat,
    InitialState,
    Persist,
    Reply,
    RpcId,
    Send,
    SendSnapshot,
    VoteRequest,
)
from rafthttp.raft.types import Configuration, Index, LogPosition, ServerID, Term
from rafthttp.testing.gofollower import GoFollower

ENTRY_BYTES = 100
"""What every entry weighs here."""


class Entry(NamedTuple):
    """One entry; a configuration's payload is the `Configuration` itself."""

    term: Term
    payload: object


class Snapshot(NamedTuple):
    """A snapshot; the state is the caller's (`corenet`: the entries it covers)."""

    last_index: Index
    last_term: Term
    configuration: Configuration
    configuration_index: Index
    state: Any


class Frame(NamedTuple):
    """An AppendEntries as it travels: the `Send` or `Heartbeat` with its entries."""

    ask: Send | Heartbeat
    entries: tuple[Entry, ...]


class SnapshotFrame(NamedTuple):
    """An InstallSnapshot as it travels."""

    ask: SendSnapshot
    snapshot: Snapshot


class InstallStep(NamedTuple):
    """A snapshot on its way into a server: all its bytes are there, then it is visible."""

    number: RpcId
    frame: SnapshotFrame
    visible: bool


class TimeoutNow(NamedTuple):
    """A TimeoutNow."""


class Probe(NamedTuple):
    """A dial of the leader's address (`Ready.probe_leader`)."""


Request = Frame | VoteRequest | SnapshotFrame | InstallStep | TimeoutNow | Probe


class Answer(NamedTuple):
    """A reply on its way back, with the request it answers."""

    request: Request
    reply: Reply | None


@dataclass(eq=False, slots=True)
class Link:
    """One life of a replication stream. Answers come in the order of the frames.

    `lost`: frames and answers go astray, and nobody has noticed yet. `there_ns`, `back_ns`: when
    the newest frame arrives and the newest answer is back; what follows comes no earlier.
    """

    source: ServerID
    target: ServerID
    open: bool = True
    epoch: int = 0
    lost: bool = False
    there_ns: int = 0
    back_ns: int = 0
    asked: deque[int] = field(default_factory=deque[int])
    answered: dict[int, Answer] = field(default_factory=dict[int, Answer])


@dataclass(eq=False, slots=True)
class Message:
    """Something on the network. `link` is set for frames and answers of a replication stream.

    `life`: of the server that asked; a later life of it takes no answer.
    """

    number: int
    source: ServerID
    target: ServerID
    body: Request | Answer
    link: Link | None = None
    life: int = 0


class Disk:
    """What survives a crash, and the writes that wait."""

    def __init__(self) -> None:
        self.hard_state = HardState(0, None)
        self.base: Index = 0
        self.entries: list[Entry] = []
        self.configurations: tuple[tuple[Index, Configuration], ...] = ()
        self.snapshot: Snapshot | None = None
        self.votes_from = LogPosition(0, 0)
        self.waiting: deque[tuple[Persist, tuple[Entry, ...]]] = deque()
        self.held = False

    def get(self, index: Index) -> Entry | None:
        """One durable entry."""
        at = index - self.base - 1
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def complete(self) -> Persist:
        """Do the oldest write."""
        persist, entries = self.waiting.popleft()
        self.write(persist, entries)
        return persist

    def write(self, persist: Persist, entries: tuple[Entry, ...]) -> None:
        """Do one write; with fewer entries than it names, it is torn behind them."""
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.reset_to is not None:
            self.base, self.entries = persist.reset_to, []
        if persist.truncate_from is not None:
            del self.entries[persist.truncate_from - self.base - 1 :]
        if entries:
            assert persist.first == self.base + len(self.entries) + 1, "no gap on disk"
            self.entries.extend(entries)
        if persist.configurations is not None:
            self.configurations = tuple(persist.configurations)

    def initial_state(self) -> InitialState:
        """What a server finds at start."""
        snapshot = self.snapshot
        index, term = (snapshot.last_index, snapshot.last_term) if snapshot is not None else (0, 0)
        base = index
        at_end = self.get(index)
        if at_end is not None and at_end.term == term and self.base < index:
            # What is kept behind the snapshot; the term of what comes before it is forgotten.
            base, term_of_base = self.base + 1, self.entries[0].term
        else:
            term_of_base = term
        entries = self.entries[max(base - self.base, 0) :]
        if at_end is not None and at_end.term != term:
            # A crash between the snapshot and the write that resets the log (S38).
            entries = []
        runs: list[tuple[Index, Term]] = []
        for at, entry in enumerate(entries):
            if not runs or runs[-1][1] != entry.term:
                runs.append((base + 1 + at, entry.term))
        last = base + len(entries)
        configurations = [pair for pair in self.configurations if pair[0] <= last]
        if snapshot is not None:
            own = (snapshot.configuration_index, snapshot.configuration)
            configurations = [own, *(pair for pair in configurations if pair[0] > own[0])]
        hard_state = self.hard_state
        highest = max(runs[-1][1] if runs else term, self.votes_from.term)
        if hard_state.term < highest:
            # What shows it arrived before the term did; no vote was given in it.
            hard_state = HardState(highest, None)
        return InitialState(
            hard_state,
            index,
            term,
            last,
            runs,
            tuple(configurations),
            (base, term_of_base),
            self.votes_from,
        )


class Member:
    """One server: a core, its cache, its disk; or a model of one in Go.

    Invariant: `log[i]` is entry `base + 1 + i`, as far as the core's last index.
    """

    def __init__(self, member_id: ServerID, config: CoreConfig, *, go: bool = False) -> None:
        self.id = member_id
        self.config = config
        self.disk = Disk()
        self.core: Consensus | None = None
        self.go = GoFollower() if go else None
        self.base: Index = 0
        self.log: list[Entry] = []
        self.applied: list[Entry] = []
        self.links: dict[ServerID, Link] = {}
        self.rpcs: dict[RpcId, Message] = {}
        self.held_replies: list[Reply] = []
        self.durable_seq = 0

    def entry(self, index: Index) -> Entry:
        """One entry of the cache."""
        return self.log[index - self.base - 1]

    def covers(self, index: Index) -> bool:
        """Whether a durable snapshot stands for that entry."""
        if self.go is not None:
            return self.go.snapshot_index >= index
        return self.disk.snapshot is not None and self.disk.snapshot.last_index >= index

    @property
    def live(self) -> Consensus:
        """The core, which must be running."""
        assert self.core is not None, f"{self.id} is down"
        return self.core
