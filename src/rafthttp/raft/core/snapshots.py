"""Snapshots: a leader's taken in, the own one noted, one sent to a peer, one restored by a user.

Knows where a snapshot ends, never its bytes. The log begins at a snapshot or before it.

A snapshot becomes the beginning of a log in three steps, for the process may die between any two:

1. Its bytes are written where no restart looks. Entries are taken and acknowledged meanwhile.
2. `on_snapshot_arrived`: from here on no entry is acknowledged and no election started. It is made
   visible: a restart now begins from it, and drops a log that contradicts it. Were an entry
   acknowledged in between, that restart might lose it.
3. `on_snapshot_installed`: the log in memory begins anew, the write that resets the one on disk is
   queued before any other, and entries are taken again, behind it.
"""

from __future__ import annotations

from typing import Final

from rafthttp.raft.core.clients import Clients
from rafthttp.raft.core.ready import ProgressState, RpcId
from rafthttp.raft.errors import ConfigurationChangeError
from rafthttp.raft.types import Configuration, Index, ServerID, State, Term

# Stands for a user's snapshot where an RPC's id does for a leader's; those count up from 1.
_RESTORE: Final = 0


class Snapshots(Clients):
    """The snapshots' side of a server (see `consensus` for the caller's duties)."""

    __slots__ = ()

    # -- a leader's

    def on_install_snapshot(
        self,
        rpc: RpcId,
        leader: ServerID,
        term: Term,
        last_index: Index,
        last_term: Term,
        now_ns: int,
    ) -> bool:
        """An InstallSnapshot. True: stream it in; False: the reply is queued, drain it (S42)."""
        server = self._server
        server.now_ns = now_ns
        if server.disk.failed or term < server.term or self._is_rival(term) or last_term > term:
            server.reply_snapshot(rpc, success=False, upto=0)
            return False
        self._hear_leader(leader, term)
        if last_index <= server.commit_index:
            # Everything in it is here already; the state machine stays as it is (S39).
            server.reply_snapshot(rpc, success=True, upto=last_index)
            return False
        return True

    def on_snapshot_arrived(
        self, rpc: RpcId, term: Term, last_index: Index, last_term: Term, now_ns: int
    ) -> bool:
        """All its bytes are here: whether to make it visible. False: the reply is queued.

        Then nothing is wanted of it any more: another term has begun, whose leader may know nothing
        of it, or its entries came meanwhile.
        """
        server = self._server
        server.now_ns = now_ns
        if server.disk.failed or term != server.term or self._leadership is not None:
            server.reply_snapshot(rpc, success=False, upto=0)
            return False
        if last_index <= server.commit_index:
            matches = server.log.term_at(last_index) in (None, last_term)
            server.reply_snapshot(rpc, success=matches, upto=last_index if matches else 0)
            return False
        assert server.installing is None, "one at a time"
        server.installing = rpc
        if server.state is State.CANDIDATE:
            self._become_follower(server.term, None)
        return True

    def on_snapshot_installed(
        self,
        rpc: RpcId,
        last_index: Index,
        last_term: Term,
        configuration: Configuration,
        configuration_index: Index,
        now_ns: int,
    ) -> bool:
        """The snapshot is durable: take it as the beginning of the log.

        True: the state machine is to be restored from it before anything else is applied. False:
        entries came meanwhile that cover it, and the state machine is to be left alone.
        """
        server = self._server
        server.now_ns = now_ns
        self._installs_no_more(rpc)
        inside = server.log.term_at(last_index) == last_term
        if server.disk.failed or (self._leadership is not None and not inside):
            # A leader's log holds all that is committed: this snapshot is not of this cluster.
            server.reply_snapshot(rpc, success=False, upto=0)
            return False
        fresh = last_index > server.commit_index
        if fresh:
            # The leader was busy sending this, not silent.
            self._waits_since_ns = now_ns
            if inside:
                # What follows it in this log is kept (S40).
                server.commit(last_index)
                server.handed_index = server.snapshot_index = last_index
            else:
                # The log is short of it, or divergent at its end: it begins anew (S38).
                server.reset(last_index, last_term, configuration, configuration_index)
        server.reply_snapshot(rpc, success=True, upto=last_index)
        return fresh

    def on_snapshot_failed(self, rpc: RpcId, now_ns: int) -> None:
        """The snapshot did not arrive whole: everything stays as it was (S41)."""
        self._server.now_ns = now_ns
        self._installs_no_more(rpc)
        self._server.reply_snapshot(rpc, success=False, upto=0)

    def _installs_no_more(self, rpc: RpcId) -> None:
        if self._server.installing == rpc:
            self._server.installing = None

    # -- the own one

    def on_compacted(self, snapshot_index: Index, snapshot_term: Term, first_index: Index) -> None:
        """An own snapshot was taken, and the log now begins at `first_index`."""
        server = self._server
        assert snapshot_index <= server.commit_index, "only what is committed is in a snapshot"
        assert first_index <= snapshot_index + 1, "no gap behind the snapshot"
        assert server.log.term_at(snapshot_index) in (None, snapshot_term), "the log's own term"
        server.snapshot_index = max(server.snapshot_index, snapshot_index)
        if first_index - 1 > server.log.base_index:
            server.log.compact(first_index - 1)

    # -- to a peer

    def on_snapshot_sent(
        self,
        peer: ServerID,
        epoch: int,
        last_index: Index,
        term: Term,
        success: bool,
        now_ns: int,
    ) -> None:
        """The answer to an InstallSnapshot that ended at `last_index`; a zero `term` is none."""
        leadership = self._hear_answer(term, self._server.term, now_ns)
        progress = None if leadership is None else leadership.peers.get(peer)
        if progress is None or leadership is None:
            return
        progress.contact_ns = now_ns
        if progress.epoch != epoch:
            return
        if success:
            progress.snapshot_sent(last_index, leadership.next_epoch())
            leadership.commit_due = True
        else:
            self.on_snapshot_send_failed(peer, epoch, now_ns)

    def on_snapshot_send_failed(self, peer: ServerID, epoch: int, now_ns: int) -> None:
        """A snapshot could not be sent whole, or there is none."""
        self._server.now_ns = now_ns
        leadership = self._leadership
        progress = None if leadership is None else leadership.peers.get(peer)
        if (
            progress is not None
            and leadership is not None
            and progress.epoch == epoch
            and progress.state is ProgressState.SNAPSHOT
        ):
            progress.snapshot_failed(
                self._server.log.last_index + 1, leadership.next_epoch(), now_ns
            )

    # -- a user's

    def begin_restore(self, last_index: Index, now_ns: int) -> Index:
        """A user's snapshot that ended at `last_index` is to replace the state; returns its index.

        It leaves a hole behind the log, so that every other server gets it as a snapshot. Until the
        end of the leadership or of the restore no proposal is accepted.

        Raises:
            ConfigurationChangeError: not now: see the text.
        """
        server, leadership = self._server, self._leadership
        server.now_ns = now_ns
        if leadership is None or not self.can_change_configuration:
            raise ConfigurationChangeError(
                "not now: this server does not lead, has committed nothing in its term, or a"
                " configuration is not committed yet"
            )
        leadership.restoring = True
        return max(server.log.last_index, last_index) + 1

    def on_restore_arrived(self, index: Index, term: Term, now_ns: int) -> bool:
        """All bytes of the user's snapshot are here: whether to make it visible.

        False: leadership was lost since `begin_restore`.
        """
        server = self._server
        server.now_ns = now_ns
        if not self.restoring or term != server.term or server.disk.failed:
            return False
        assert index > server.log.last_index, "no proposal was accepted meanwhile"
        assert server.installing is None, "a leader installs nothing"
        server.installing = _RESTORE
        return True

    def on_restore_failed(self, now_ns: int) -> None:
        """The user's snapshot did not become visible: everything stays as it was."""
        self._server.now_ns = now_ns
        self._installs_no_more(_RESTORE)
        if self._leadership is not None:
            self._leadership.restoring = False

    def on_restored(
        self,
        index: Index,
        term: Term,
        configuration: Configuration,
        configuration_index: Index,
        now_ns: int,
    ) -> None:
        """The user's snapshot is durable: the log begins behind it, as if it were committed.

        Also where leadership was lost in the moment before: a restart would begin from it too.
        """
        server, leadership = self._server, self._leadership
        server.now_ns = now_ns
        self._installs_no_more(_RESTORE)
        server.reset(index, term, configuration, configuration_index)
        if leadership is not None:
            leadership.restoring = False
            for progress in leadership.peers.values():
                progress.need_snapshot(leadership.next_epoch())
