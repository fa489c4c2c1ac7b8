"""The simulated network: what is lost, late, twice, or held back.

A replication stream keeps the order of its frames and answers; losing one breaks it, and the sender
learns of that a little later. All else travels alone and may overtake. Frames of a broken stream
may still arrive, without an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rafthttp.raft.core.ready import Heartbeat, Reply, Send, SendSnapshot, VoteRequest
from rafthttp.raft.types import ServerID
from rafthttp.testing.coreanswers import hand_over_answer
from rafthttp.testing.coremember import (
    Answer,
    Frame,
    Link,
    Message,
    Probe,
    Request,
    SnapshotFrame,
    TimeoutNow,
)
from rafthttp.testing.sim.faults import MS, Faults
from rafthttp.testing.sim.inbound import receive
from rafthttp.testing.sim.process import Process

if TYPE_CHECKING:
    from rafthttp.testing.sim.cluster import Cluster
    from rafthttp.testing.sim.go import GoVoter

# Until the sender of a snapshot gives up waiting for the answer.
_SNAPSHOT_TIMEOUT_NS = 400 * MS
# Until a sender learns that its stream is broken.
_NOTICE_NS = 40 * MS


class Network:
    """Messages between the servers of a cluster.

    Attributes:
        blocked: pairs (from, to) between which nothing passes.
        clogged: until when a pair holds its messages back.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._chance = cluster.chance("network")
        self._faults: Faults = cluster.faults
        self._numbers = 0
        self._snapshots: dict[int, tuple[Process, int, SendSnapshot]] = {}
        self.blocked: set[tuple[ServerID, ServerID]] = set()
        self.clogged: dict[tuple[ServerID, ServerID], int] = {}

    def heal(self, faults: Faults) -> None:
        """From now on the network works as `faults` says, and nothing is blocked."""
        self._faults = faults
        self.blocked.clear()
        self.clogged.clear()

    # -- asking

    def send(self, source: Process, frame: Frame, send: Send) -> None:
        """A frame of a replication stream; a new stream is opened where there is none."""
        link = source.links.get(send.peer)
        if link is None or not link.open:
            link = source.links[send.peer] = Link(source.id, send.peer)
        link.epoch = send.epoch
        message = self._message(source, send.peer, frame)
        message.link = link
        link.asked.append(message.number)
        arrives = self._fate(message)
        if arrives is None:
            self._break(link)
        elif not link.lost:
            link.there_ns = max(arrives, link.there_ns)
            self._world.at(link.there_ns, self._deliver, message)

    def ask(self, source: Process, target: ServerID, body: Request) -> None:
        """Any other request."""
        message = self._message(source, target, body)
        arrives = self._fate(message)
        if isinstance(body, SnapshotFrame):
            self._snapshots[message.number] = (source, source.life, body.ask)
            wait = _NOTICE_NS if arrives is None else _SNAPSHOT_TIMEOUT_NS
            self._world.after(wait, self._snapshot_failed, message.number)
        elif isinstance(body, Probe) and arrives is None:
            self._world.after(self._chance.below(_NOTICE_NS), self._probe_failed, message)
        if arrives is not None:
            self._world.at(arrives, self._deliver, message)

    def ask_from_go(self, source: GoVoter, ask: VoteRequest) -> None:
        """A server in Go asks for a vote."""
        self._numbers += 1
        message = Message(self._numbers, source.id, ask.peer, ask, None, source.life)
        arrives = self._fate(message)
        if arrives is not None:
            self._world.at(arrives, self._deliver, message)

    def _message(self, source: Process, target: ServerID, body: Request) -> Message:
        self._numbers += 1
        return Message(self._numbers, source.id, target, body, None, source.life)

    def _fate(self, message: Message) -> int | None:
        """When a message arrives; None if it never does. Puts its duplicate on the way."""
        world, faults = self._world, self._faults
        if self._cluster.is_gone(message.target):
            return None
        pair = (message.source, message.target)
        if pair in self.blocked:
            world.seen["blocked"] += 1
            return None
        if faults.drop_chance and self._chance.random() < faults.drop_chance:
            world.seen["drop"] += 1
            return None
        arrives = self._arrives(pair)
        body = message.body
        if (
            faults.duplicate_chance
            and not isinstance(body, Answer | SnapshotFrame | TimeoutNow)
            and self._chance.random() < faults.duplicate_chance
        ):
            world.seen["duplicate"] += 1
            self._numbers += 1
            copy = Message(self._numbers, message.source, message.target, body, None, message.life)
            world.at(arrives + self._chance.below(50 * MS), self._deliver, copy)
        return arrives

    def _arrives(self, pair: tuple[ServerID, ServerID]) -> int:
        world, faults = self._world, self._faults
        takes = 1 + int(self._chance.random() * faults.latency_ns_max)
        if faults.delay_chance and self._chance.random() < faults.delay_chance:
            world.seen["delay"] += 1
            takes *= 1 + self._chance.below(50)
        clogged = self.clogged.get(pair)
        if clogged is not None and clogged > world.now_ns:
            return clogged + takes
        return world.now_ns + takes

    # -- arriving

    def _deliver(self, message: Message) -> None:
        cluster = self._cluster
        go = cluster.go.get(message.target)
        if go is not None:
            self._deliver_to_go(go, message, message.body)
            return
        target = cluster.processes[message.target]
        if target.core is None:
            self._refused(message)
            return
        if isinstance(message.body, TimeoutNow) and self._is_outlived(message):
            return
        if target.defer(self._deliver, message):
            return
        self._world.note(message.number, target.number)
        if isinstance(message.body, Answer):
            self._on_answer(target, message, message.body)
        else:
            receive(self, target, target.core, message, message.body)
        target.turn()

    def _deliver_to_go(self, go: GoVoter, message: Message, body: Request | Answer) -> None:
        if isinstance(body, Answer):
            go.on_answer(message, body)
        elif go.up:
            self._reply(message, go.hear(message, body))
        else:
            self._refused(message)

    def _is_outlived(self, message: Message) -> bool:
        """A TimeoutNow whose sender has died since; no promise covers it (see `core.lease`)."""
        return self._cluster.processes[message.source].life != message.life

    def _on_answer(self, asker: Process, message: Message, answer: Answer) -> None:
        if message.life != asker.life or (message.link is not None and not message.link.open):
            return
        if isinstance(answer.request, SnapshotFrame):
            number = message.number
            if self._snapshots.pop(number, None) is None:
                return
        assert asker.core is not None
        hand_over_answer(asker.core, message, answer, asker.local_ns())

    def _refused(self, message: Message) -> None:
        """Nobody listens there."""
        if message.link is not None:
            self._break(message.link)
        if isinstance(message.body, SnapshotFrame):
            self._world.after(1 * MS, self._snapshot_failed, message.number)
        elif isinstance(message.body, Probe):
            self._world.after(1 * MS, self._probe_failed, message)

    # -- answering

    def answer(self, server: Process, message: Message, reply: Reply) -> None:
        """A server answers a request."""
        assert not isinstance(message.body, Answer)
        self._cluster.checks.on_reply(server, message.source, message.body, reply)
        self._reply(message, reply)

    def reply_to_probe(self, message: Message) -> None:
        """Somebody is there."""
        self._reply(message, None)

    def _reply(self, message: Message, reply: Reply | None) -> None:
        body = message.body
        assert not isinstance(body, Answer)
        link = message.link
        if link is None:
            if not isinstance(body, Frame) or isinstance(body.ask, Heartbeat):
                self._post_answer(message.number, message, Answer(body, reply), None)
            return
        link.answered[message.number] = Answer(body, reply)
        while link.open and link.asked and link.asked[0] in link.answered:
            number = link.asked.popleft()
            self._post_answer(number, message, link.answered.pop(number), link)

    def _post_answer(
        self, number: int, message: Message, answer: Answer, link: Link | None
    ) -> None:
        back = Message(number, message.target, message.source, answer, link, message.life)
        arrives = self._fate(back)
        if arrives is None:
            if link is not None:
                self._break(link)
        elif link is None:
            self._world.at(arrives, self._deliver, back)
        elif not link.lost:
            link.back_ns = max(arrives, link.back_ns)
            self._world.at(link.back_ns, self._deliver, back)

    # -- broken streams

    def _break(self, link: Link) -> None:
        """What is sent on this stream from now on is lost; its sender will notice."""
        if link.lost or not link.open:
            return
        link.lost = True
        self._world.after(self._chance.below(_NOTICE_NS), self._notice, link)

    def _notice(self, link: Link) -> None:
        source = self._cluster.processes[link.source]
        if not link.open or source.core is None:
            return
        if source.defer(self._notice, link):
            return
        self.close(link)
        source.core.on_append_entries_failed(link.target, link.epoch, source.local_ns())
        source.turn()

    def close(self, link: Link) -> None:
        """The end of a stream; frames on their way may still arrive."""
        link.open = False
        source = self._cluster.processes[link.source]
        if source.links.get(link.target) is link:
            del source.links[link.target]

    def close_links(self, server: Process) -> None:
        """A server stops feeding its peers."""
        for link in list(server.links.values()):
            self.close(link)

    def reset(self, of: ServerID, at: Process) -> None:
        """`at` sees the last stream of `of` close."""
        core = at.core
        if core is None or at.defer(self.reset, of, at):
            return
        core.on_stream_closed(of, at.local_ns())
        at.turn()

    def on_crash(self, died: ServerID) -> None:
        """A server died: its peers see the streams close, where they can."""
        world = self._world
        own = self._cluster.processes.get(died)
        if own is not None:
            self.close_links(own)
        for other in self._cluster.processes.values():
            link = other.links.get(died)
            if link is not None:
                self._break(link)
            if other is not own and (died, other.id) not in self.blocked:
                world.after(1 + self._chance.below(5 * MS), self.reset, died, other)

    def _snapshot_failed(self, number: int) -> None:
        asked = self._snapshots.pop(number, None)
        if asked is None:
            return
        source, life, ask = asked
        core = source.core
        if core is not None and source.life == life:
            core.on_snapshot_send_failed(ask.peer, ask.epoch, source.local_ns())
            source.turn()

    def _probe_failed(self, message: Message) -> None:
        prober = self._cluster.processes[message.source]
        if prober.core is not None and prober.life == message.life:
            prober.core.on_leader_probed(message.target, alive=False, now_ns=prober.local_ns())
            prober.turn()
