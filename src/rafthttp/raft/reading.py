"""How a server reads: linearizable indexes, by a quorum's round, by a lease, or from the leader.

Knows the driver's reads and deadlines; not commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from rafthttp.raft.config import Config
from rafthttp.raft.errors import (
    ConfigError,
    Outcome,
    ShutdownError,
    TimedOutError,
    UnknownLeaderError,
)
from rafthttp.raft.runtime.reads import FollowerReads
from rafthttp.raft.status import RaftStatus
from rafthttp.raft.transport.protocols import Transport
from rafthttp.raft.types import Index, Leader, LogPosition, State

_T = TypeVar("_T")


class RaftReads(RaftStatus):
    """The part of `Raft` that reads."""

    def __init__(self, config: Config, transport: Transport) -> None:
        super().__init__(config, transport)
        self._forwarded: FollowerReads | None = None

    async def verify_leader(self, *, timeout: float | None = None) -> None:
        """Check with a quorum that this server leads (S71).

        Raises:
            NotLeaderError: it does not, or leadership was lost before a quorum answered.
        """
        await self._confirm_by_round(timeout)

    async def read_index(self, *, timeout: float | None = None) -> Index:
        """Wait until a local read is linearizable (Raft thesis §6.4); returns its index.

        A quorum round on the leader, shared by all readers of a turn, or none while a lease holds
        (`Config.lease_reads`); on a follower one forward for the index, then the wait until it is
        applied here.

        Raises:
            NotLeaderError: definite; no leader, or no way to ask it.
        """
        deadline = self._deadline(timeout)
        if self.state is State.LEADER or self._forwarded is None:
            index = await self.confirm_read_index(timeout=timeout)
        else:
            waiting = self._forwarded.get(self._other_leader, self._config.election_timeout)
            index = await self._before(waiting, deadline, "no read index from the leader in time")
        if self.applied_index < index:
            wait = self._driver.applier.wait(index)
            await self._before(wait, deadline, f"index {index} was not applied here in time")
        return index

    async def confirm_read_index(self, *, timeout: float | None = None) -> Index:
        """A confirmed index, not waited for: the leader's half of a follower's `read_index`.

        Raises:
            NotLeaderError: definite.
        """
        by_lease = self._lease_read_index()
        return await self._confirm_by_round(timeout) if by_lease is None else by_lease

    def committed_in_term(self) -> LogPosition:
        """Leader only: the last entry known to be committed, which is of the present term.

        Raises:
            NotLeaderError: definite; it does not lead, or has committed nothing in its term yet.
        """
        core = self._driver.core
        self._driver.check_leads()
        if core.term_at(core.commit_index) != core.term:
            raise UnknownLeaderError("this server is only just becoming the leader")
        return LogPosition(core.term, core.commit_index)

    def flush_commit(self) -> None:
        """Tell idle followers the commit index now; a reader over there is waiting for it."""
        self._driver.flush_commit()

    # -- inside

    def _lease_read_index(self) -> Index | None:
        """The index of a read that the lease covers at this very moment.

        The clock is asked here: the process may have been stopped since the loop's last pass, or
        the whole machine, for longer than the lease (S70).
        """
        if not self._config.lease_reads or self._stop is not None:
            return None
        driver = self._driver
        now, was_suspended = driver.lease_clock.read()
        if was_suspended:
            driver.core.forget_lease(driver.lease_clock.fresh_ns())
        return driver.core.lease_read_index(now)

    async def _confirm_by_round(self, timeout: float | None) -> Index:
        deadline = self._deadline(timeout)
        future = self._driver.confirm_read()
        return await self._before(future, deadline, "no quorum answered in time")

    def _other_leader(self) -> Leader:
        if self._stop is not None:
            raise ShutdownError("raft is shut down")
        leader = self._driver.leader
        if leader is None or leader.id == self.id:
            raise self._driver.not_leader()
        return leader

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _deadline(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        if timeout <= 0:
            raise ConfigError(f"timeout is {timeout}; it must be above 0")
        return self._now() + timeout

    async def _before(self, waiting: Awaitable[_T], deadline: float | None, text: str) -> _T:
        """Wait for what changes nothing; a timeout is definite."""
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting
        except TimeoutError:
            raise TimedOutError(
                text, outcome=Outcome.DEFINITE, leader=self.leader_with_id()
            ) from None
