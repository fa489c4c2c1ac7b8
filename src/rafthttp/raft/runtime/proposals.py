"""What clients asked for and wait for: commands not yet proposed, and entries not yet applied.

Knows futures and indexes; bounds both count and bytes (decision 13).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from rafthttp.raft.errors import (
    DifferentLeaderError,
    EntryTooLargeError,
    NotLeaderError,
    OverloadedError,
    RaftError,
    UnknownLeaderError,
)
from rafthttp.raft.types import Index, Leader, LogType


def check_command(data: object) -> None:
    """Refuse what cannot be encoded before it can fail everybody else's commands with it.

    Raises:
        TypeError: it is not bytes.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"a command must be bytes, not {type(data).__name__}")


def not_leader_error(leader: Leader | None) -> NotLeaderError:
    """What a server answers that does not lead: who does, where it is known."""
    if leader is None:
        return UnknownLeaderError("this server does not lead, and knows no leader")
    return DifferentLeaderError(
        f"this server does not lead; {leader.id} at {leader.address} does", leader=leader
    )


class Proposal:
    """One command on its way into the log; `future` gets `(index, response)`.

    `size` are the bytes it counts for; `is_plain` holds for a command without extensions.
    """

    __slots__ = ("data", "extensions", "future", "is_plain", "size", "type")

    def __init__(
        self,
        type: LogType,  # noqa: A002 - hashicorp/raft's field name
        data: bytes,
        extensions: bytes,
        future: asyncio.Future[tuple[Index, Any]],
    ) -> None:
        self.type = type
        self.data = data
        self.extensions = extensions
        self.future = future
        self.size = len(data) + len(extensions)
        self.is_plain = type is LogType.COMMAND and not extensions


class Pending:
    """Proposals of this server, in the order of the log.

    `queued` are not yet proposed: they can still be refused as definite. `_waiting[i]` belongs to
    the entry `_first + i`; None where no client waits.
    """

    def __init__(self, count_max: int, bytes_max: int, entry_size_bytes_max: int) -> None:
        self.queued: list[Proposal] = []
        self._first: Index = 1
        self._waiting: deque[Proposal | None] = deque()
        self._bytes = 0
        self._queued_bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._entry_size_bytes_max = entry_size_bytes_max

    def __len__(self) -> int:
        return len(self.queued) + len(self._waiting)

    def add(self, proposal: Proposal) -> None:
        """Queue a proposal for the next turn.

        Raises:
            EntryTooLargeError, OverloadedError: definite; nothing was queued.
        """
        size = proposal.size
        if size > self._entry_size_bytes_max:
            raise EntryTooLargeError(
                f"the command has {size} bytes;"
                f" entry_size_bytes_max is {self._entry_size_bytes_max}"
            )
        count = len(self.queued) + len(self._waiting)
        if count >= self._count_max or self._bytes + size > self._bytes_max:
            raise OverloadedError(f"{len(self)} commands of {self._bytes} bytes are pending")
        self._bytes += size
        self._queued_bytes += size
        self.queued.append(proposal)

    def take(self, bytes_max: int) -> list[Proposal]:
        """What is queued and still wanted, the oldest first; the caller proposes it now.

        Stops at `bytes_max`, but takes at least one; the rest stays queued.
        """
        if self._queued_bytes <= bytes_max:
            queued, self.queued = self.queued, []
            self._queued_bytes = 0
        else:
            count, size = 0, 0
            while count < len(self.queued) and size < bytes_max:
                size += self.queued[count].size
                count += 1
            queued = self.queued[:count]
            del self.queued[:count]
            self._queued_bytes -= size
        live = [p for p in queued if not p.future.done()]
        if len(live) != len(queued):
            for proposal in queued:
                if proposal.future.done():
                    self._bytes -= proposal.size
        return live

    def is_queued(self, future: asyncio.Future[Any]) -> bool:
        """Whether a client's command has not been proposed yet."""
        return any(p.future is future for p in self.queued)

    def proposed(self, first: Index, proposals: list[Proposal] | list[None]) -> None:
        """These stand in the log from `first` on.

        Entries of another leader may lie between them and those of an earlier leadership of this
        server that are committed and still to be applied.
        """
        if not self._waiting:
            self._first = first
        between = first - self._first - len(self._waiting)
        assert between >= 0, "what is no longer in the log was aborted"
        self._waiting.extend([None] * between)
        self._waiting.extend(proposals)

    def applied(self, last: Index) -> list[Proposal | None]:
        """Take those up to `last` that wait here; they end at `last`."""
        count = min(last - self._first + 1, len(self._waiting))
        if count <= 0:
            return []
        taken = [self._waiting.popleft() for _ in range(count)]
        self._first += count
        for proposal in taken:
            if proposal is not None:
                self._bytes -= proposal.size
        return taken

    def abort(self, index: Index, error: RaftError) -> None:
        """Fail those at `index` and behind: they may yet be committed by another leader."""
        while self._waiting and self._first + len(self._waiting) - 1 >= index:
            proposal = self._waiting.pop()
            if proposal is not None:
                self._fail(proposal, error)

    def refuse_queued(self, error: RaftError) -> None:
        """Fail what is not yet proposed."""
        queued, self.queued = self.queued, []
        self._queued_bytes = 0
        self.refuse(queued, error)

    def refuse(self, proposals: list[Proposal], error: RaftError) -> None:
        """Fail proposals that were taken and then not proposed."""
        for proposal in proposals:
            self._fail(proposal, error)

    def _fail(self, proposal: Proposal, error: RaftError) -> None:
        self._bytes -= proposal.size
        if not proposal.future.done():
            proposal.future.set_exception(
                type(error)(str(error), outcome=error.outcome, leader=error.leader)
            )
