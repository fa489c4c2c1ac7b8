"""A network of bare cores under a scheduler's control: no clock, no I/O, every step chosen.

Knows how a driver carries out a `Ready`, and plays it without delay: writes wait in each server's
queue until they are completed, messages in one list until they are delivered or dropped. The caller
is the scheduler. `Invariants` is asked after every change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import (
    Heartbeat,
    Ready,
    Reply,
    Send,
    SendSnapshot,
    VoteRequest,
)
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, Index, ServerID, State
from rafthttp.testing.coreanswers import answer_as_go, hand_over_answer, is_of_transfer
from rafthttp.testing.coreinstalls import (
    advance_install,
    begin_install,
    is_step_at,
    lose_install,
)
from rafthttp.testing.coreinvariants import Invariants
from rafthttp.testing.coremember import (
    ENTRY_BYTES,
    Answer,
    Entry,
    Frame,
    InstallStep,
    Link,
    Member,
    Message,
    Probe,
    Request,
    Snapshot,
    SnapshotFrame,
    TimeoutNow,
)


class CoreNet:
    """Servers, the messages between them, and the time.

    Args:
        rng: chooses every core's generator, so one seed is one history.
        on_ready: told of each `Ready` before it is carried out.
    """

    def __init__(
        self, rng: random.Random, on_ready: Callable[[Member, Ready], None] | None = None
    ) -> None:
        self.rng = rng
        self.now_ns = 0
        self.members: dict[ServerID, Member] = {}
        self.messages: list[Message] = []
        self.on_ready = on_ready
        self.on_refused: Callable[[Member, ProtocolError], None] | None = None
        self.on_link_cut: Callable[[Link], None] | None = None
        self.checks = Invariants()
        self.lease_reads = 0
        self.slow_installs = False
        """Whether the steps of taking in a snapshot are messages of their own."""
        self._numbers = 0

    # -- servers

    def add(self, member: Member) -> None:
        """A server, not started yet."""
        self.members[member.id] = member

    def start(self, member_id: ServerID) -> None:
        """Start a server on what its disk holds."""
        member = self.members[member_id]
        assert member.core is None, f"{member_id} is up"
        initial = member.disk.initial_state()
        disk = member.disk
        snapshot = disk.snapshot
        assert initial.log_base is not None, "the disk says where it begins"
        # The core's log begins behind an entry that is held, or behind the snapshot.
        member.base = initial.log_base[0]
        if member.base < initial.snapshot_index:
            member.base -= 1
        disk.entries = disk.entries[max(member.base - disk.base, 0) :]
        disk.entries = disk.entries[: initial.last_index - member.base]
        disk.base = member.base
        member.log = list(disk.entries)
        member.applied = list(snapshot.state) if snapshot is not None else []
        member.rpcs.clear()
        member.held_replies.clear()
        member.durable_seq = 0
        member.core = Consensus(
            member.config,
            initial,
            random.Random(self.rng.random()),  # noqa: S311 - histories must repeat
            self.now_ns,
        )
        self.settle(member)

    def crash(self, member_id: ServerID, writes_done: int = 0) -> None:
        """Stop a server; of the writes that wait, only the first few reach the disk."""
        member = self.members[member_id]
        for _ in range(min(writes_done, len(member.disk.waiting))):
            member.disk.complete()
        member.disk.waiting.clear()
        member.core = None
        # A TimeoutNow that outlives its sender's next election is not modelled (see `lease`).
        self.messages = [m for m in self.messages if not is_of_transfer(m, member_id)]
        self.messages = [m for m in self.messages if not is_step_at(m, member_id)]
        lost = [m.body for m in member.rpcs.values() if isinstance(m.body, SnapshotFrame)]
        leaders = [m.source for m in member.rpcs.values() if isinstance(m.body, SnapshotFrame)]
        member.rpcs.clear()
        for other in self.members.values():
            for link in list(other.links.values()):
                if member_id in (link.source, link.target):
                    self.cut(link)
        for leader, frame in zip(leaders, lost, strict=True):
            self._snapshot_lost(leader, frame.ask)

    def settle(self, member: Member) -> None:
        """Take and carry out what a server has to do, until it has nothing."""
        for _ in range(100):
            if member.core is None:
                return
            ready = member.core.ready()
            if ready is None:
                return
            if self.on_ready is not None:
                self.on_ready(member, ready)
            self._execute(member, member.core, ready)
        raise AssertionError("a core does not come to rest")

    def tick(self, member_id: ServerID) -> None:
        """Tell a server the time."""
        member = self.members[member_id]
        if member.core is not None:
            member.core.tick(self.now_ns)
            self.settle(member)

    # -- a Ready

    def _execute(self, member: Member, core: Consensus, ready: Ready) -> None:
        if ready.noop is not None:
            self._append(member, [Entry(core.term, f"noop{core.term}")])
        if ready.persist is not None:
            persist = ready.persist
            entries = tuple(
                member.log[persist.first - member.base - 1 : persist.last - member.base]
            )
            assert len(entries) == max(persist.last - persist.first + 1, 0), "the cache has them"
            member.disk.waiting.append((persist, entries))
        if core.state is not State.LEADER:
            for link in list(member.links.values()):
                self.cut(link, tell=False)
        for send in ready.sends:
            self._send(member, send)
        for beat in ready.heartbeats:
            self.post(member.id, beat.peer, Frame(beat, ()))
        for vote in ready.votes:
            self.post(member.id, vote.peer, vote)
        for ask in ready.snapshots:
            self._send_snapshot(member, ask)
        if ready.timeout_now is not None:
            self.post(member.id, ready.timeout_now, TimeoutNow())
        if ready.probe_leader is not None:
            self.post(member.id, ready.probe_leader, Probe())
        member.held_replies.extend(ready.replies)
        self._release_replies(member)
        if ready.apply is not None:
            self._apply(member, *ready.apply)
        for read in ready.reads:
            self.checks.on_read_confirmed(member.id, read.read, read.read_index)
        if ready.soft_state is not None and ready.soft_state.state is State.LEADER:
            self.checks.on_leader(member.id, core, member.log, member.base)

    def _append(self, member: Member, entries: Iterable[Entry]) -> None:
        for entry in entries:
            member.log.append(entry)
            index = member.base + len(member.log)
            self.checks.on_append(member.id, index, entry, member.live.term_at(index - 1))

    def _apply(self, member: Member, first: Index, last: Index) -> None:
        assert first == len(member.applied) + 1, "each entry once, in order"
        for index in range(first, last + 1):
            entry = member.entry(index)
            member.applied.append(entry)
            self.checks.on_commit(member.id, index, entry)
        if member.live.state is State.LEADER:
            self._check_durable(member.live, last, member.entry(last))

    def _check_durable(self, core: Consensus, index: Index, entry: Entry) -> None:
        """What a leader holds for committed is durable on a majority of its voters (S1, S4)."""
        holders = 0
        for voter in core.configuration.voters:
            other = self.members[voter.id]
            held = other.go.get(index) if other.go is not None else other.disk.get(index)
            holders += held is None or held[0] == entry.term
            if held is None:
                holders -= not other.covers(index)
        assert holders >= core.configuration.quorum_size, (
            f"entry {index} is committed, and durable on {holders} voters only"
        )

    # -- proposals

    def propose(self, member_id: ServerID, payloads: Iterable[object]) -> None:
        """Propose commands; the core must accept them."""
        member = self.members[member_id]
        core = member.live
        entries = [Entry(core.term, payload) for payload in payloads]
        first = core.propose([ENTRY_BYTES] * len(entries), self.now_ns)
        assert first == member.base + len(member.log) + 1
        self._append(member, entries)

    def propose_configuration(self, member_id: ServerID, configuration: Configuration) -> None:
        """Propose a configuration. Raises what the core raises."""
        member = self.members[member_id]
        core = member.live
        core.propose_configuration(configuration, ENTRY_BYTES, self.now_ns)
        self._append(member, [Entry(core.term, configuration)])

    def close_streams(self, of: ServerID, at: ServerID) -> None:
        """Let `at` see the last stream of `of` close (decision 7)."""
        member = self.members[at]
        if member.core is not None:
            member.core.on_stream_closed(of, self.now_ns)
            self.settle(member)

    def read(self, member_id: ServerID, read: int) -> None:
        """Ask for a linearizable read; by lease it is answered at once."""
        self.checks.on_read_asked(read)
        core = self.members[member_id].live
        index = core.lease_read_index(self.now_ns)
        if index is None:
            core.on_read(read, self.now_ns)
        else:
            self.lease_reads += 1
            self.checks.on_read_confirmed(member_id, read, index)

    def compact(self, member_id: ServerID, index: Index, trailing: int) -> None:
        """Take a snapshot of what is applied up to `index`, and drop the log but `trailing`.

        Behind all writes, as a disk's one queue has it.
        """
        member = self.members[member_id]
        core = member.live
        assert index <= len(member.applied)
        while member.disk.waiting:
            self.complete_write(member_id)
        term = core.term_at(index)
        assert term is not None
        at, configuration = core.committed_configuration_index, core.committed_configuration
        if at > index:
            return
        disk = member.disk
        if disk.snapshot is None or disk.snapshot.last_index < index:  # one may just be arriving
            state = tuple(member.applied[:index])
            disk.snapshot = Snapshot(index, term, configuration, at, state)
        first = max(index - trailing + 1, member.base + 1)
        del member.log[: first - 1 - member.base]
        member.base = first - 1
        del disk.entries[: first - 1 - disk.base]
        disk.base = first - 1
        core.on_compacted(index, term, first)
        self.settle(member)

    # -- disk

    def complete_write(self, member_id: ServerID) -> None:
        """Let the oldest write of a server become durable."""
        member = self.members[member_id]
        persist = member.disk.complete()
        member.durable_seq = persist.seq
        if member.core is not None:
            member.core.on_persisted(persist.seq, self.now_ns)
            self._release_replies(member)
            self.settle(member)

    def fail_write(self, member_id: ServerID) -> None:
        """Let the oldest write of a server fail, and all behind it."""
        member = self.members[member_id]
        persist, _ = member.disk.waiting.popleft()
        member.disk.waiting.clear()
        member.live.on_persist_failed(persist.seq, self.now_ns)
        self.settle(member)

    def _release_replies(self, member: Member) -> None:
        held: list[Reply] = []
        for reply in member.held_replies:
            if reply.after > member.durable_seq:
                held.append(reply)
                continue
            message = member.rpcs.pop(reply.rpc)
            self._answer(message, reply)
        member.held_replies = held

    # -- network

    def post(self, source: ServerID, target: ServerID, body: Request | Answer) -> Message:
        """Put a message on the network."""
        self._numbers += 1
        message = Message(self._numbers, source, target, body)
        self.messages.append(message)
        return message

    def _send(self, member: Member, send: Send) -> None:
        link = member.links.get(send.peer)
        if link is None or not link.open:
            link = member.links[send.peer] = Link(member.id, send.peer)
        entries = tuple(
            member.log[
                send.prev_index - member.base : max(send.last, send.prev_index) - member.base
            ]
        )
        assert send.leader_commit <= send.last, "decision 6: no frame shows more than it carries"
        link.epoch = send.epoch
        message = self.post(member.id, send.peer, Frame(send, entries))
        message.link = link
        link.asked.append(message.number)

    def _send_snapshot(self, member: Member, ask: SendSnapshot) -> None:
        snapshot = member.disk.snapshot
        if snapshot is None:
            member.live.on_snapshot_send_failed(ask.peer, ask.epoch, self.now_ns)
        else:
            self.post(member.id, ask.peer, SnapshotFrame(ask, snapshot))

    def cut(self, link: Link, *, tell: bool = True) -> None:
        """Break a replication stream: frames on their way go astray, answers are lost."""
        if not link.open:
            return
        link.open = False
        for message in self.messages:
            if message.link is link and not isinstance(message.body, Answer):
                message.link = None
        self.messages = [m for m in self.messages if m.link is not link]
        source = self.members[link.source]
        if source.links.get(link.target) is link:
            del source.links[link.target]
        if tell and source.core is not None:
            if self.on_link_cut is not None:
                self.on_link_cut(link)
            source.core.on_append_entries_failed(link.target, link.epoch, self.now_ns)
            self.settle(source)

    def drop(self, message: Message) -> None:
        """Lose a message; on a replication stream, that breaks the stream."""
        if message not in self.messages:
            return
        self.messages.remove(message)
        if message.link is not None:
            self.cut(message.link)
        if isinstance(message.body, SnapshotFrame):
            self._snapshot_lost(message.source, message.body.ask)
        elif isinstance(message.body, InstallStep):
            lose_install(self, self.members[message.target], message.body)
        elif isinstance(message.body, Answer) and isinstance(message.body.request, SnapshotFrame):
            self._snapshot_lost(message.target, message.body.request.ask)
        elif isinstance(message.body, Probe):
            prober = self.members[message.source]
            if prober.core is not None:
                prober.core.on_leader_probed(message.target, alive=False, now_ns=self.now_ns)
                self.settle(prober)

    def _snapshot_lost(self, leader: ServerID, ask: SendSnapshot) -> None:
        member = self.members[leader]
        if member.core is not None:
            member.core.on_snapshot_send_failed(ask.peer, ask.epoch, self.now_ns)
            self.settle(member)

    def deliver(self, message: Message, *, keep: bool = False) -> None:
        """Hand a message to its target; with `keep` a copy stays (a duplicate, off any stream)."""
        if message.link is not None:
            # A stream keeps its order.
            message = next(
                m for m in self.messages if m.link is message.link and m.target == message.target
            )
        self.messages.remove(message)
        if keep and not isinstance(message.body, Answer | SnapshotFrame | InstallStep | TimeoutNow):
            self.post(message.source, message.target, message.body)
        target = self.members[message.target]
        if isinstance(message.body, Answer):
            if target.core is not None:
                hand_over_answer(target.core, message, message.body, self.now_ns)
                self.settle(target)
        elif target.go is not None:
            self._answer(message, answer_as_go(target.go, message, message.body))
        elif target.core is None:
            self.messages.append(message)
            self.drop(message)
        else:
            self._on_request(target, target.core, message, message.body)
            self.settle(target)

    def _on_request(self, member: Member, core: Consensus, message: Message, body: Request) -> None:
        number, source, now = message.number, message.source, self.now_ns
        if not isinstance(body, Probe | InstallStep):
            member.rpcs[number] = message
        match body:
            case Frame(ask, entries):
                self._on_frame(member, core, message, ask, entries)
            case VoteRequest() if body.pre_vote:
                core.on_request_pre_vote(
                    number, source, body.term, body.last_index, body.last_term, now
                )
            case VoteRequest():
                core.on_request_vote(
                    number,
                    source,
                    body.term,
                    body.last_index,
                    body.last_term,
                    body.leadership_transfer,
                    now,
                )
            case TimeoutNow():
                core.on_timeout_now(number, source, now)
            case SnapshotFrame(ask, snapshot):
                begin_install(self, member, core, message, SnapshotFrame(ask, snapshot))
            case InstallStep():
                advance_install(self, member, core, body)
            case Probe():
                self.post(message.target, source, Answer(body, None))

    def _on_frame(
        self,
        member: Member,
        core: Consensus,
        message: Message,
        ask: Send | Heartbeat,
        entries: tuple[Entry, ...],
    ) -> None:
        prev_index, prev_term, commit = 0, 0, 0
        if isinstance(ask, Send):
            prev_index, prev_term, commit = ask.prev_index, ask.prev_term, ask.leader_commit
        configurations = [
            (prev_index + 1 + at, entry.payload)
            for at, entry in enumerate(entries)
            if isinstance(entry.payload, Configuration)
        ]
        try:
            first = core.on_append_entries(
                message.number,
                message.source,
                ask.term,
                prev_index,
                prev_term,
                [entry.term for entry in entries],
                [ENTRY_BYTES] * len(entries),
                commit,
                configurations,
                self.now_ns,
            )
        except ProtocolError as error:
            del member.rpcs[message.number]
            if self.on_refused is not None:
                self.on_refused(member, error)
            if message.link is not None:
                self.cut(message.link)
            return
        if first is not None:
            del member.log[first - member.base - 1 :]
            self._append(member, entries[first - prev_index - 1 :])

    def _answer(self, message: Message, reply: Reply | None) -> None:
        assert not isinstance(message.body, Answer)
        answer = Answer(message.body, reply)
        link = message.link
        if link is None:
            if not isinstance(message.body, Frame) or isinstance(message.body.ask, Heartbeat):
                self.post(message.target, message.source, answer)
            return
        link.answered[message.number] = answer
        while link.open and link.asked and link.asked[0] in link.answered:
            number = link.asked.popleft()
            back = self.post(message.target, message.source, link.answered.pop(number))
            back.link = link
