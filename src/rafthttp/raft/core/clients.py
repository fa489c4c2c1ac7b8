"""What clients ask of a server: entries, configurations, reads, and that another one leads.

Knows the leader's role from outside; nothing of other servers' RPCs.
"""

from __future__ import annotations

from collections.abc import Sequence

from rafthttp.raft.core.membership import check_change
from rafthttp.raft.core.ready import CoreConfig, ReadId
from rafthttp.raft.core.status import Status
from rafthttp.raft.errors import (
    CantBootstrapError,
    ConfigurationChangeError,
    LeadershipTransferError,
    UnknownLeaderError,
)
from rafthttp.raft.types import Configuration, Index, ServerID, State


class Clients(Status):
    """The client's side of a server (see `consensus` for the caller's duties)."""

    __slots__ = ()

    def propose(self, sizes: Sequence[int], now_ns: int) -> Index:
        """Append entries of these sizes; returns the first index. Needs `accepts_proposals`."""
        assert self.accepts_proposals, "the caller checks accepts_proposals"
        server = self._server
        server.now_ns = now_ns
        log = server.log
        first = log.last_index + 1
        log.append(server.term, len(sizes))
        server.sizes.extend(sizes)
        return first

    def bootstrap(self, configuration: Configuration, size: int, now_ns: int) -> None:
        """Entry 1, of term 1, on a server that has nothing yet; as if it had been there at start.

        Raises:
            CantBootstrapError: it has something.
        """
        server = self._server
        if server.term or server.log.last_index or server.voted_for is not None:
            raise CantBootstrapError("there is state already: a cluster is bootstrapped once")
        server.now_ns = now_ns
        server.enter_term(1, None)
        server.log.append(1, 1)
        server.sizes.extend((size,))
        server.members.append(1, configuration)
        self._restart_timer(server.config.heartbeat_timeout_ns)
        if server.members.voters == (server.local_id,):
            self._timeout_ns = 0

    def propose_configuration(self, configuration: Configuration, size: int, now_ns: int) -> Index:
        """Append a configuration; it counts from now on. Returns its index.

        Raises:
            ConfigurationChangeError: not a change of one server, or not allowed now.
        """
        server = self._server
        if not self.can_change_configuration or self._leadership is None:
            raise ConfigurationChangeError(
                "not now: this server does not lead, has committed nothing in its term, or another"
                " configuration is not committed yet"
            )
        check_change(server.members.latest, configuration)
        index = self.propose((size,), now_ns)
        server.members.append(index, configuration)
        self._leadership.sync_peers()
        return index

    def on_read(self, read: ReadId, now_ns: int) -> None:
        """Confirm a read by a quorum; it waits for a commit of the own term (S69)."""
        self._server.now_ns = now_ns
        if self._leadership is None:
            self._server.out.reads_aborted.append(read)
        else:
            self._leadership.reads.waiting.append(read)

    def lease_read_index(self, now_ns: int) -> Index | None:
        """The index of a read that needs no round now; None where it needs one (`on_read`).

        `now_ns` is read for this call, not before: the process may have been paused since (S70).
        """
        leadership = self._leadership
        if leadership is None or not leadership.holds_lease(now_ns):
            return None
        return self._server.commit_index

    def forget_lease(self, now_ns: int) -> None:
        """The clock stood still for a while: what was sent before proves nothing any more."""
        if self._leadership is not None:
            self._leadership.read_lease.begin_anew(now_ns)

    def reconfigure(self, config: CoreConfig, now_ns: int) -> None:
        """Other settings from now on; timers that run are measured anew."""
        server, leadership = self._server, self._leadership
        server.now_ns = now_ns
        server.config = config
        if leadership is not None:
            # The others may wait for less than the present interval.
            leadership.beat_due = True
        elif server.state is State.CANDIDATE:
            self._timeout_ns = server.random_timeout_ns(config.election_timeout_ns)
        else:
            self._timeout_ns = server.random_timeout_ns(config.heartbeat_timeout_ns)
        self._set_deadline()

    def notify_commit(self, now_ns: int) -> None:
        """Show the commit index to idle followers now, not within the commit timeout."""
        self._server.now_ns = now_ns
        if self._leadership is not None:
            self._leadership.notify_due = True

    def transfer_leadership(self, target: ServerID | None, now_ns: int) -> None:
        """Bring a voter up to date and make it campaign; None picks the one that has most.

        The end is told in `Ready.transfer_ended`, at the latest after the election timeout (S67).

        Raises:
            UnknownLeaderError: this server does not lead (S68).
            LeadershipTransferError: one is under way, or a restore, or there is no such voter.
        """
        server, leadership = self._server, self._leadership
        server.now_ns = now_ns
        if leadership is None or leadership.first_index is None:
            raise UnknownLeaderError("this server does not lead")
        if leadership.transfer_target is not None:
            raise LeadershipTransferError("a leadership transfer is under way")
        if leadership.restoring:
            # It would lead without the snapshot that is about to count here.
            raise LeadershipTransferError("a restore is under way")
        if target is None:
            target = leadership.best_voter()
            if target is None:
                raise LeadershipTransferError("there is no other voter to transfer to")
        elif target == server.local_id:
            raise LeadershipTransferError("leadership cannot be transferred to the leader itself")
        elif target not in server.members.voters:
            known = server.members.latest.get(target) is not None
            raise LeadershipTransferError(
                f"{target} does not vote" if known else f"{target} is no member"
            )
        leadership.begin_transfer(target)

    def cancel_transfer(self, now_ns: int) -> bool:
        """End the transfer under way, unless the target was told to campaign already.

        True: none is under way any more. False: it can only be waited for.
        """
        self._server.now_ns = now_ns
        leadership = self._leadership
        if leadership is None or leadership.transfer_target is None:
            return True
        if leadership.timeout_now_sent:
            return False
        leadership.end_transfer()
        return True
