"""The leader's role: feeding the peers, committing, confirming reads, handing over.

One `Leadership` is one term of one leader; it is dropped when leadership ends.
"""

from __future__ import annotations

from rafthttp.raft.core.commitment import leader_commit, quorum_index, shown_commit
from rafthttp.raft.core.lease import (
    ReadLease,
    ReadRounds,
    lease_length_ns,
    quorum_contact_ns,
)
from rafthttp.raft.core.ready import (
    Heartbeat,
    ProgressState,
    Ready,
    Send,
    SendSnapshot,
)
from rafthttp.raft.core.replication import Progress
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Index, ServerID

_REPLICATE = ProgressState.REPLICATE
_PROBE = ProgressState.PROBE


class Leadership:
    """What a leader keeps (Raft Figure 2, "volatile state on leaders", and timers).

    Invariants: `peers` are all members but this server; `first_index` is the no-op's, None until
    the `Ready` that announces it is taken.
    """

    __slots__ = (
        "_epoch",
        "_server",
        "beat_due",
        "beat_ns",
        "commit_due",
        "first_index",
        "lease_ns",
        "notify_due",
        "notify_ns",
        "peers",
        "read_lease",
        "reads",
        "restoring",
        "timeout_now_sent",
        "transfer_ns",
        "transfer_target",
    )

    def __init__(self, server: Server, epoch: int) -> None:
        self._server = server
        self._epoch = epoch
        self.first_index: Index | None = None
        self.peers: dict[ServerID, Progress] = {}
        self.reads = ReadRounds()
        self.read_lease = ReadLease(
            lease_length_ns(server.config.heartbeat_timeout_ns, server.config.election_timeout_ns)
        )
        self.beat_ns = server.now_ns
        self.beat_due = True
        self.lease_ns: int | None = None
        self.notify_ns: int | None = None
        self.notify_due = False
        self.commit_due = False
        self.transfer_target: ServerID | None = None
        self.transfer_ns = 0
        self.timeout_now_sent = False
        self.restoring = False
        """Whether a user's snapshot is coming in: no proposal is accepted."""
        self.sync_peers()

    def next_epoch(self) -> int:
        """A number no stream's life had before, in this leadership or an earlier one."""
        self._epoch += 1
        return self._epoch

    def sync_peers(self) -> None:
        """One `Progress` for each other member of the latest configuration."""
        server = self._server
        members = {s.id for s in server.members.latest if s.id != server.local_id}
        for peer in [p for p in self.peers if p not in members]:
            del self.peers[peer]
        for peer in sorted(members - self.peers.keys()):
            self.peers[peer] = Progress(
                peer, server.log.last_index + 1, self.next_epoch(), server.now_ns
            )
        self.lease_ns = self._lease_end_ns()
        self.commit_due = True

    # -- commit

    def advance_commit(self) -> None:
        """Count what the voters hold durably; this server up to its own durable index."""
        self.commit_due = False
        server, peers = self._server, self.peers
        if self.first_index is None:
            return
        local_id, durable = server.local_id, server.disk.durable_index
        held = quorum_index(
            [durable if v == local_id else peers[v].match for v in server.members.voters],
            server.members.quorum,
        )
        commit = leader_commit(server.commit_index, held, self.first_index)
        if commit > server.commit_index:
            server.commit(commit)

    def on_own_copy(self) -> bool:
        """More of this server's own log is durable. Whether that may commit something.

        It completes a quorum only of what others hold already, or where none of them is needed.
        """
        commit_index = self._server.commit_index
        if self._server.members.quorum > 1:
            for progress in self.peers.values():
                if progress.match > commit_index:
                    break
            else:
                return False
        self.commit_due = True
        return True

    @property
    def has_committed(self) -> bool:
        """Whether an entry of the own term is committed (S50, S69)."""
        return self.first_index is not None and self._server.commit_index >= self.first_index

    # -- sends

    def fill(self, out: Ready) -> None:
        """Put everything that is due for the peers into the `Ready`."""
        server = self._server
        last_index, commit_index = server.log.last_index, server.commit_index
        inflight_max = server.config.inflight_appends_max
        for progress in self.peers.values():
            if progress.state is _REPLICATE:
                while progress.next <= last_index and progress.inflight < inflight_max:
                    if not self._send_entries(out, progress):
                        break
                if progress.commit_shown < commit_index and progress.state is _REPLICATE:
                    self._show_commit(out, progress)
            elif (
                progress.state is _PROBE
                and not progress.inflight
                and server.now_ns >= progress.retry_ns
            ):
                self._probe(out, progress)
            if progress.snapshot_due and server.now_ns >= progress.retry_ns:
                progress.snapshot_due = False
                out.snapshots.append(SendSnapshot(progress.peer, progress.epoch, server.term))
        self.notify_due = False
        if self.transfer_target is not None:
            self._hand_over(self.transfer_target)
        if self.reads.confirming:
            self._confirm(out)
        if self.beat_due or (self.reads.wants_round() and self.has_committed):
            self._heartbeat(out)
            self._confirm(out)

    def _send_entries(self, out: Ready, progress: Progress) -> bool:
        server = self._server
        config = server.config
        first = progress.next
        prev_term = server.log.term_at(first - 1)
        if prev_term is None:
            progress.need_snapshot(self.next_epoch())
            return False
        last = server.sizes.clip(
            first,
            server.log.last_index,
            config.append_size_bytes_max,
            config.append_entries_max,
            config.unsized_entries_max,
        )
        self._send(out, progress, first - 1, prev_term, last)
        progress.next = last + 1
        return True

    def _send(
        self, out: Ready, progress: Progress, prev_index: Index, prev_term: int, last: Index
    ) -> None:
        server = self._server
        commit = shown_commit(server.commit_index, last)
        progress.commit_shown = commit
        progress.inflight += 1
        out.sends.append(
            Send(progress.peer, progress.epoch, server.term, prev_index, prev_term, last, commit)
        )

    def _probe(self, out: Ready, progress: Progress) -> None:
        """One frame at a time; with entries only while nothing speaks against the place."""
        server = self._server
        prev_index = progress.next - 1
        prev_term = server.log.term_at(prev_index)
        if prev_term is None:
            progress.need_snapshot(self.next_epoch())
        elif progress.search is None and prev_index < server.log.last_index:
            after = progress.next
            self._send_entries(out, progress)
            progress.next = after
        else:
            self._send(out, progress, prev_index, prev_term, prev_index)

    def _show_commit(self, out: Ready, progress: Progress) -> None:
        """An idle peer learns the commit index from an empty frame, within the commit timeout."""
        server = self._server
        last = progress.next - 1
        if progress.commit_shown >= shown_commit(server.commit_index, last):
            return
        if self.notify_due and progress.inflight < server.config.inflight_appends_max:
            prev_term = server.log.term_at(last)
            if prev_term is not None:
                self._send(out, progress, last, prev_term, last)
        elif self.notify_ns is None:
            self.notify_ns = server.now_ns + server.config.commit_timeout_ns

    def _confirm(self, out: Ready) -> None:
        members = self._server.members
        out.reads.extend(
            self.reads.confirmed(members.voters, self._server.local_id, members.quorum)
        )

    def _heartbeat(self, out: Ready) -> None:
        server = self._server
        self.beat_due = False
        self.beat_ns = server.now_ns + server.random_timeout_ns(
            server.config.heartbeat_timeout_ns // 10
        )
        reads = self.reads
        reads.number += 1
        if reads.wants_round() and self.has_committed:
            reads.begin(server.commit_index)
        out.heartbeats.extend(
            Heartbeat(peer, server.term, reads.number, server.now_ns) for peer in self.peers
        )

    def holds_lease(self, now_ns: int) -> bool:
        """Whether a read needs no round (see `lease`); never before a commit of the own term."""
        server = self._server
        if (
            not server.config.lease_reads
            or server.unanswered_timeout_nows
            or not self.has_committed
        ):
            return False
        members = server.members
        others = [v for v in members.voters if v != server.local_id]
        return self.read_lease.holds(now_ns, others, members.quorum - members.is_voter)

    # -- check-quorum

    def _lease_end_ns(self) -> int | None:
        """When a quorum will not have been heard for the lease timeout; None if none is needed."""
        server, peers = self._server, self.peers
        others = [peers[v].contact_ns for v in server.members.voters if v != server.local_id]
        needed = server.members.quorum - (1 if server.members.is_voter else 0)
        if needed <= 0:
            return None
        return quorum_contact_ns(others, needed) + server.config.leader_lease_timeout_ns

    def has_lost_quorum(self) -> bool:
        """Check-quorum, when due (hashicorp/raft's LeaderLeaseTimeout; S15).

        A check that comes late is put off once by a heartbeat interval: the process was paused, and
        answers may lie unread. Nobody's safety rests on this timer.
        """
        server, due = self._server, self.lease_ns
        if due is None or server.now_ns < due:
            return False
        self.lease_ns = self._lease_end_ns()
        if self.lease_ns is None or self.lease_ns > server.now_ns:
            return False
        interval = server.config.heartbeat_timeout_ns // 10
        if server.now_ns - due > interval:
            self.lease_ns = server.now_ns + interval
            return False
        return True

    # -- hand over

    def best_voter(self) -> ServerID | None:
        """The other voter that has the most of the log, of those heard lately if there are any."""
        server, heard = self._server, self._heard()
        others = [v for v in server.members.voters if v != server.local_id]
        return max(others, key=lambda v: (v in heard, self.peers[v].match, v), default=None)

    @property
    def is_dispensable(self) -> bool:
        """Whether the other voters that were heard lately could elect and commit on their own."""
        return len(self._heard()) >= self._server.members.quorum

    def _heard(self) -> set[ServerID]:
        """The other voters heard within the lease timeout."""
        server, peers = self._server, self.peers
        since = server.now_ns - server.config.leader_lease_timeout_ns
        others = (v for v in server.members.voters if v != server.local_id)
        return {v for v in others if peers[v].contact_ns >= since}

    def begin_transfer(self, target: ServerID) -> None:
        """Refuse proposals until `target` leads, or the election timeout has passed (S67)."""
        server = self._server
        self.transfer_target = target
        self.transfer_ns = server.now_ns + server.config.election_timeout_ns
        self.timeout_now_sent = False

    def end_transfer(self) -> None:
        """Give the transfer up: proposals are accepted again."""
        self.transfer_target = None
        self._server.out.transfer_ended = False

    def _hand_over(self, target: ServerID) -> None:
        """Tell the target to campaign once it has everything (S65)."""
        progress = self.peers.get(target)
        if progress is None or self.timeout_now_sent:
            return
        if progress.match == self._server.log.last_index:
            self.timeout_now_sent = True
            self._server.tell_to_campaign(target)

    # -- time

    def tick(self) -> bool:
        """Do what is due. False: leadership is to be given up."""
        server = self._server
        now = server.now_ns
        if self.has_lost_quorum() or server.disk_is_late():
            return False
        if now >= self.beat_ns:
            self.beat_due = True
        if self.notify_ns is not None and now >= self.notify_ns:
            self.notify_ns = None
            self.notify_due = True
        if self.transfer_target is not None and now >= self.transfer_ns:
            self.end_transfer()
        return True

    def deadline_ns(self) -> int:
        """When `tick` is next needed."""
        server = self._server
        deadline = self.beat_ns
        if self.lease_ns is not None and self.lease_ns < deadline:
            deadline = self.lease_ns
        if self.notify_ns is not None and self.notify_ns < deadline:
            deadline = self.notify_ns
        if self.transfer_target is not None and self.transfer_ns < deadline:
            deadline = self.transfer_ns
        oldest = server.disk.oldest_ns
        if oldest is not None:
            deadline = min(deadline, oldest + server.config.disk_timeout_ns + 1)
        now = server.now_ns
        for progress in self.peers.values():
            if now < progress.retry_ns < deadline and progress.state is not _REPLICATE:
                deadline = progress.retry_ns
        return deadline
