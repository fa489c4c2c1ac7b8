"""Leadership transfers: from the wish to hand over to the day another server leads.

Knows the core's transfer and futures; when to tell the target is the core's. One at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.errors import (
    LeadershipTransferError,
    NotLeaderError,
    Outcome,
    RaftError,
    TimedOutError,
)
from rafthttp.raft.types import Leader, ServerAddress, ServerID, State


class Owner(Protocol):
    """What a transfer asks of the driver."""

    core: Consensus

    @property
    def leader(self) -> Leader | None:
        """Who leads."""
        ...

    def now_ns(self) -> int:
        """The clock of every input."""
        ...

    def wake(self) -> None:
        """Schedule a turn."""
        ...

    def watch(self, condition: Callable[[], bool]) -> asyncio.Future[None]:
        """A future that is done after a turn in which `condition` holds."""
        ...

    def check_leads(self) -> None:
        """Raise where this server does not lead."""
        ...

    def not_leader(self) -> NotLeaderError:
        """The error that says who leads instead."""
        ...


class Transfers:
    """The transfer under way, if there is one."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._ended: asyncio.Future[None] | None = None

    async def run(
        self,
        target: ServerID | None,
        address: ServerAddress | None,
        timeout: float | None,
        election_timeout: float,
    ) -> Leader:
        """Hand over, and wait until another server leads; at most `election_timeout` seconds.

        Raises:
            LeadershipTransferError: definite; this server leads on, or nobody does yet.
            TimedOutError: `timeout` passed first; definite where the target was not told yet.
            NotLeaderError: this server does not lead.
        """
        now = asyncio.get_running_loop().time()
        deadline = None if timeout is None else now + timeout
        await self.step_down(target, address, deadline)
        latest = now + election_timeout
        return await self._successor(latest if deadline is None else min(latest, deadline))

    async def step_down(
        self, target: ServerID | None, address: ServerAddress | None, deadline: float | None
    ) -> None:
        """The first half of `run`: until this server leads no longer, or leads on for good.

        Raises:
            RaftError: as `run`; not where this server leads on.
        """
        owner = self._owner
        owner.check_leads()
        if target is not None and address is not None:
            self._check_address(target, address)
        owner.core.transfer_leadership(target, owner.now_ns())
        self._ended = asyncio.get_running_loop().create_future()
        owner.wake()
        try:
            async with asyncio.timeout_at(deadline):
                await self._ended
        except TimeoutError:
            unknown = not owner.core.cancel_transfer(owner.now_ns())
            raise TimedOutError(
                "leadership was not transferred in time",
                outcome=Outcome.UNKNOWN if unknown else Outcome.DEFINITE,
                leader=owner.leader,
            ) from None
        except asyncio.CancelledError:
            owner.core.cancel_transfer(owner.now_ns())
            raise
        finally:
            owner.wake()

    def ended(self) -> None:
        """The core's transfer ended, in one way or the other (`Ready.transfer_ended`)."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def close(self, error: RaftError) -> None:
        """The server is shut down."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # who asked may have given up: then nobody looks

    async def _successor(self, latest: float) -> Leader:
        """The other server that leads, once it is heard."""
        owner, core = self._owner, self._owner.core
        if core.state is not State.LEADER:
            watch = owner.watch(lambda: core.leader is not None)
            try:
                async with asyncio.timeout_at(latest):
                    await watch
            except TimeoutError:
                raise LeadershipTransferError(
                    "this server gave up leadership, and no other is known to lead yet"
                ) from None
        leader = owner.leader
        if leader is None or core.state is State.LEADER:
            raise LeadershipTransferError(
                "the other server did not take over in time; this one leads on", leader=leader
            )
        return leader

    def _check_address(self, target: ServerID, address: ServerAddress) -> None:
        server = self._owner.core.configuration.get(target)
        if server is not None and server.address != address:
            raise LeadershipTransferError(
                f"{target} is at {server.address}, not at {address}", leader=self._owner.leader
            )
