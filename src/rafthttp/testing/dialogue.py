"""Dialogues: commands to a few bare cores, and all they answer, as text to be read as a diff.

A dialogue is a file of blocks: commands, a line `----`, then what was printed, up to an empty line.
A block without the line is run and not printed. `#` begins a comment. Every step is checked by
`Invariants` too. The commands:

    cluster a b c d:nonvoter g:go [pre_vote=off] [early=off] [lease=on] [bytes=N]
            [inflight=N] [entries=N]
    log a 1 1 2 [term=3] [vote=b] [config=3:a,b;…] terms on disk; entry 1 is the configuration
    start [a ...]                                  all without names
    sleep 50ms [a ...]                             let time pass; tick those for whom it is due
    timeout a                                      let a's own deadline come; nobody else is ticked
    deliver [a->b] [kind] [n]   drop [a->b] [kind] the first n (all without n) messages that match
    copy a->b [kind]                               deliver the first, and keep a copy on the network
    settle                                         deliver and write until nothing moves
    hold a   release a   write a [n]   fail-write a   disks; a held one writes only when told
    crash a [writes]                               so many of its waiting writes reach the disk
    wipe a   take-part a from=3/2                  it lost its disk; an entry and its term
    propose a [n]   read a N   notify a   config a +b | ?b | -b   (voter, nonvoter, removed)
    transfer a [b]   cancel-transfer a   reload a heartbeat=500ms election=1s
    compact a INDEX [trailing=N]   closed a at b   cut a->b
    frame b from=a term=2 prev=3/1 [terms=2,2] [commit=3]          an AppendEntries made by hand
    vote b from=a term=3 log=4/2 [transfer]   prevote ...   timeout-now b from=a
    show [a ...]   messages
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from rafthttp.raft.core.ready import (
    CoreConfig,
    HardState,
    Ready,
    Send,
    VoteRequest,
)
from rafthttp.raft.errors import ConfigurationChangeError, RaftError
from rafthttp.raft.types import (
    Configuration,
    LogPosition,
    Server,
    ServerAddress,
    ServerID,
    State,
    Suffrage,
)
from rafthttp.testing.coremember import (
    Answer,
    Disk,
    Entry,
    Frame,
    Member,
    Message,
    Request,
    TimeoutNow,
)
from rafthttp.testing.corenet import CoreNet
from rafthttp.testing.readytext import kind_of, ready_lines, request_text

_SETTLE_STEPS_MAX = 10_000


def run_dialogue(text: str) -> str:
    """Run a dialogue; returns the text with what was printed in place of what stood there."""
    dialogue = Dialogue()
    result: list[str] = []
    for block in re.split(r"\n\n+", text.strip("\n")):
        commands, bar, _ = block.partition("\n----")
        result.append(commands)
        lines = dialogue.run(commands)
        if bar:
            result[-1] += "\n----\n" + "\n".join(lines or ["ok"])
    return "\n\n".join(result) + "\n"


class Dialogue:
    """The state of one dialogue. Same text, same answers."""

    def __init__(self) -> None:
        self.net = CoreNet(random.Random(7), self._on_ready)  # noqa: S311 - it must repeat
        self.net.on_refused = lambda member, error: self.say(f"{member.id}  raises: {error}")
        self.net.on_link_cut = lambda link: self.say(
            f"{link.source}  lost its stream to {link.target}"
        )
        self._lines: list[str] = []
        self._proposals = 0
        self._commands: dict[str, Callable[[list[str], dict[str, str]], None]] = {
            name.removeprefix("_do_").replace("_", "-"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def _on_ready(self, member: Member, ready: Ready) -> None:
        self._lines.extend(ready_lines(member, ready))

    def say(self, line: str) -> None:
        """Print a line."""
        self._lines.append(line)

    def run(self, commands: str) -> list[str]:
        """Run the commands of a block; returns what they printed."""
        self._lines = []
        for line in commands.splitlines():
            words = line.partition("#")[0].split()
            if words:
                options = dict(w.split("=", 1) for w in words[1:] if "=" in w)
                arguments = [w for w in words[1:] if "=" not in w]
                self._commands[words[0]](arguments, options)
        return self._lines

    # -- making the cluster

    def _do_cluster(self, args: list[str], options: dict[str, str]) -> None:
        servers: list[Server] = []
        for word in args:
            name, _, kind = word.partition(":")
            i = ServerID(name)
            if kind != "spare":
                suffrage = Suffrage.NONVOTER if kind == "nonvoter" else Suffrage.VOTER
                servers.append(_server(name, suffrage))
            config = CoreConfig(
                local_id=i,
                pre_vote=options.get("pre_vote") != "off",
                early_campaign=options.get("early") != "off",
                lease_reads=options.get("lease") == "on",
                append_size_bytes_max=int(options.get("bytes", "1000000")),
                inflight_appends_max=int(options.get("inflight", "64")),
                append_entries_max=int(options.get("entries", "8192")),
            )
            self.net.add(Member(i, config, go=kind == "go"))
        self._first = Entry(1, Configuration(tuple(servers)))
        for member in self.net.members.values():
            if self._first.payload.get(member.id) is not None:  # type: ignore[attr-defined] # a Configuration
                self._preset(member, [1], 1, None)

    def _preset(self, member: Member, terms: list[int], term: int, vote: str | None) -> None:
        assert isinstance(self._first.payload, Configuration)
        entries = [self._first, *(Entry(t, f"of term {t}") for t in terms[1:])]
        if member.go is not None:
            member.go.term, member.go.entries = term, [*entries]
        member.disk.hard_state = HardState(term, None if vote is None else ServerID(vote))
        member.disk.entries = entries
        member.disk.configurations = ((1, self._first.payload),)

    def _do_log(self, args: list[str], options: dict[str, str]) -> None:
        member = self._member(args[0])
        terms = [int(t) for t in args[1:]]
        self._preset(member, terms, int(options.get("term", terms[-1])), options.get("vote"))
        for pair in options["config"].split(";") if "config" in options else ():
            index, _, names = pair.partition(":")
            configuration = Configuration(tuple(_server(n) for n in names.split(",")))
            at = int(index) - 1
            member.disk.entries[at] = Entry(member.disk.entries[at].term, configuration)
            member.disk.configurations += ((at + 1, configuration),)

    def _do_start(self, args: list[str], _: dict[str, str]) -> None:
        for name in args or [m.id for m in self.net.members.values() if m.go is None]:
            self.net.start(ServerID(name))

    # -- time

    def _do_sleep(self, args: list[str], _: dict[str, str]) -> None:
        end = self.net.now_ns + _nanoseconds(args[0])
        names = set(args[1:]) or set(self.net.members)
        # Deadlines come one after the other, as they would.
        for _step in range(_SETTLE_STEPS_MAX):
            due = [
                (m.core.deadline_ns, m.id)
                for m in self.net.members.values()
                if m.core is not None and m.id in names and m.core.deadline_ns <= end
            ]
            if not due:
                break
            at, name = min(due)
            self.net.now_ns = max(self.net.now_ns, at)
            self.net.tick(name)
        self.net.now_ns = end

    def _do_timeout(self, args: list[str], _: dict[str, str]) -> None:
        core = self._member(args[0]).live
        self.net.now_ns = max(self.net.now_ns, core.deadline_ns)
        self.net.tick(ServerID(args[0]))

    # -- network

    def _matching(self, args: list[str]) -> list[Message]:
        way = next((a for a in args if "->" in a), "*->*")
        kind = next((a for a in args if "->" not in a and not a.isdigit()), None)
        source, _, target = way.partition("->")
        count = next((int(a) for a in args if a.isdigit()), None)
        return [
            m
            for m in self.net.messages
            if source in ("*", m.source)
            and target in ("*", m.target)
            and kind in (None, kind_of(m))
        ][:count]

    def _do_deliver(self, args: list[str], _: dict[str, str]) -> None:
        for message in self._matching(args):
            if message in self.net.messages:
                self.net.deliver(message)

    def _do_drop(self, args: list[str], _: dict[str, str]) -> None:
        for message in self._matching(args):
            self.net.drop(message)

    def _do_copy(self, args: list[str], _: dict[str, str]) -> None:
        self.net.deliver(self._matching(args)[0], keep=True)

    def _do_cut(self, args: list[str], _: dict[str, str]) -> None:
        source, _arrow, target = args[0].partition("->")
        self.net.cut(self._member(source).links[ServerID(target)])

    def _do_closed(self, args: list[str], _: dict[str, str]) -> None:
        self.net.close_streams(of=ServerID(args[0]), at=ServerID(args[2]))

    def _do_settle(self, args: list[str], _: dict[str, str]) -> None:
        del args
        for _step in range(_SETTLE_STEPS_MAX):
            writer = next(
                (m for m in self.net.members.values() if m.disk.waiting and not m.disk.held), None
            )
            if writer is not None:
                self.net.complete_write(writer.id)
            elif self.net.messages:
                self.net.deliver(self.net.messages[0])
            else:
                return
        raise AssertionError("the network does not come to rest")

    def _do_messages(self, args: list[str], _: dict[str, str]) -> None:
        for message in self._matching(args):
            if isinstance(message.body, Answer):
                self.say(f"{message.source} => {message.target} answer")
            else:
                self.say(f"{message.source} -> {message.target} {request_text(message.body)}")

    # -- disks

    def _do_hold(self, args: list[str], _: dict[str, str]) -> None:
        self._member(args[0]).disk.held = True

    def _do_release(self, args: list[str], _: dict[str, str]) -> None:
        self._member(args[0]).disk.held = False

    def _do_write(self, args: list[str], _: dict[str, str]) -> None:
        for _step in range(int(args[1]) if len(args) > 1 else 1):
            self.net.complete_write(ServerID(args[0]))

    def _do_fail_write(self, args: list[str], _: dict[str, str]) -> None:
        self.net.fail_write(ServerID(args[0]))

    def _do_crash(self, args: list[str], _: dict[str, str]) -> None:
        self.net.crash(ServerID(args[0]), int(args[1]) if len(args) > 1 else 0)

    def _do_wipe(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        if member.core is not None:
            self.net.crash(member.id)
        member.disk = Disk()

    def _do_take_part(self, args: list[str], options: dict[str, str]) -> None:
        member = self._member(args[0])
        index, term = _pair(options["from"])
        member.disk.votes_from = LogPosition(term, index)
        member.live.take_part(member.disk.votes_from, self.net.now_ns)
        self.net.settle(member)

    # -- clients

    def _do_propose(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        if not member.live.accepts_proposals:
            self.say(f"{member.id}  accepts no proposals")
            return
        names: list[str] = []
        for _step in range(int(args[1]) if len(args) > 1 else 1):
            self._proposals += 1
            names.append(f"p{self._proposals}")
        self.net.propose(member.id, names)
        self.net.settle(member)

    def _do_read(self, args: list[str], _: dict[str, str]) -> None:
        before = self.net.lease_reads
        self.net.read(ServerID(args[0]), int(args[1]))
        if self.net.lease_reads > before:
            commit_index = self._member(args[0]).live.commit_index
            self.say(f"{args[0]}  read {args[1]} at {commit_index} by lease")
        self.net.settle(self._member(args[0]))

    def _do_notify(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        member.live.notify_commit(self.net.now_ns)
        self.net.settle(member)

    def _do_config(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        new = member.live.configuration
        for change in args[1:]:
            name = ServerID(change[1:])
            if change[0] == "-":
                new = new.without(name)
            else:
                suffrage = Suffrage.VOTER if change[0] == "+" else Suffrage.NONVOTER
                new = new.with_server(_server(name, suffrage))
        try:
            self.net.propose_configuration(member.id, new)
        except ConfigurationChangeError as error:
            self.say(f"{member.id}  refuses: {error}")
        self.net.settle(member)

    def _do_transfer(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        try:
            member.live.transfer_leadership(
                ServerID(args[1]) if len(args) > 1 else None, self.net.now_ns
            )
        except RaftError as error:
            self.say(f"{member.id}  refuses: {error}")
        self.net.settle(member)

    def _do_cancel_transfer(self, args: list[str], _: dict[str, str]) -> None:
        member = self._member(args[0])
        if not member.live.cancel_transfer(self.net.now_ns):
            self.say(f"{member.id}  cannot cancel: the target was told")
        self.net.settle(member)

    def _do_reload(self, args: list[str], options: dict[str, str]) -> None:
        member = self._member(args[0])
        config = replace(
            member.config,
            heartbeat_timeout_ns=_nanoseconds(options["heartbeat"]),
            election_timeout_ns=_nanoseconds(options["election"]),
        )
        member.live.reconfigure(config, self.net.now_ns)
        self.net.settle(member)

    def _do_compact(self, args: list[str], options: dict[str, str]) -> None:
        index, trailing = int(args[1]), int(options.get("trailing", "0"))
        go = self._member(args[0]).go
        if go is not None:
            held = go.get(index)
            assert held is not None
            go.compact(index, held[0], trailing=trailing)
        else:
            self.net.compact(ServerID(args[0]), index, trailing)

    # -- made by hand

    def _inject(self, target: str, source: str, body: Request) -> None:
        self.net.deliver(self.net.post(ServerID(source), ServerID(target), body))

    def _do_frame(self, args: list[str], options: dict[str, str]) -> None:
        prev_index, prev_term = _pair(options["prev"])
        terms = [int(t) for t in options.get("terms", "").split(",") if t]
        term, last = int(options["term"]), prev_index + len(terms)
        send = Send(
            ServerID(args[0]), 0, term, prev_index, prev_term, last, int(options.get("commit", 0))
        )
        entries = tuple(Entry(t, f"of term {t}") for t in terms)
        self._inject(args[0], options["from"], Frame(send, entries))

    def _do_vote(self, args: list[str], options: dict[str, str], *, pre: bool = False) -> None:
        last_index, last_term = _pair(options["log"])
        request = VoteRequest(
            ServerID(args[0]), pre, int(options["term"]), last_index, last_term, "transfer" in args
        )
        self._inject(args[0], options["from"], request)

    def _do_prevote(self, args: list[str], options: dict[str, str]) -> None:
        self._do_vote(args, options, pre=True)

    def _do_timeout_now(self, args: list[str], options: dict[str, str]) -> None:
        self._inject(args[0], options["from"], TimeoutNow())

    # -- looking

    def _do_show(self, args: list[str], _: dict[str, str]) -> None:
        for member in self.net.members.values():
            if args and member.id not in args:
                continue
            if member.go is not None:
                go = member.go
                self.say(
                    f"{member.id}  go term {go.term} log {go.first}..{go.last_log}"
                    f" last {go.last_index}/{go.last_term} commit {go.commit_index}"
                )
            elif member.core is None:
                self.say(f"{member.id}  down")
            else:
                self._show(member)

    def _show(self, member: Member) -> None:
        core = member.live
        members = " ".join(
            s.id if s.suffrage is Suffrage.VOTER else f"{s.id}?" for s in core.configuration
        )
        line = (
            f"{member.id}  {core.state.value} term {core.term} leader {core.leader or '-'}"
            f" log {core.first_index}..{core.last_index}/{core.last_term}"
            f" durable {core.durable_index} commit {core.commit_index}"
            f" configuration {core.configuration_index}: {members}"
        )
        if core.state is State.LEADER:
            for peer in core.configuration:
                progress = core.progress(peer.id)
                if progress is not None:
                    line += f", {peer.id} {progress.value} {core.match_index(peer.id)}"
        self.say(line)

    def _member(self, name: str) -> Member:
        return self.net.members[ServerID(name)]


def _server(name: str, suffrage: Suffrage = Suffrage.VOTER) -> Server:
    return Server(ServerID(name), ServerAddress(f"{name}:1"), suffrage)


def _nanoseconds(text: str) -> int:
    if text.endswith("ms"):
        return int(text[:-2]) * 1_000_000
    return int(float(text.removesuffix("s")) * 1e9)


def _pair(text: str) -> tuple[int, int]:
    index, _, term = text.partition("/")
    return int(index), int(term)
