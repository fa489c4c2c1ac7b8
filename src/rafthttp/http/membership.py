"""Join and leave: what is asked, by whom it is answered, and the flow between.

Knows configurations and errors; of a `Raft` only the few methods of `MembershipRaft`.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum

from rafthttp.http.messages import Request
from rafthttp.raft.errors import (
    ConfigurationChangeError,
    NotLeaderError,
    RaftError,
    RaftHttpError,
    RequestRefusedError,
    TransportError,
)
from rafthttp.raft.types import ServerAddress, ServerID


class ChangeKind(StrEnum):
    """What a change request is for."""

    JOIN = "join"
    LEAVE = "leave"


class ChangeRequest:
    """One request to change the membership; answered once, by `respond` or `fail`.

    Attributes:
        kind: join or leave.
        id: the server.
        address: its address; None when it leaves.
        deadline: on the event loop's clock; later answers reach nobody.
    """

    def __init__(
        self,
        kind: ChangeKind,
        server_id: ServerID,
        address: ServerAddress | None = None,
        *,
        deadline: float,
    ) -> None:
        self.kind = kind
        self.id = server_id
        self.address = address
        self.deadline = deadline
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __str__(self) -> str:
        return f"{self.kind.value} server {self.id}"

    @property
    def done(self) -> bool:
        """Whether it is answered, or nobody waits any more."""
        return self._answer.done()

    def respond(self) -> None:
        """The change is made. Without effect once done."""
        if not self._answer.done():
            self._answer.set_result(None)

    def fail(self, error: RaftHttpError) -> None:
        """The change is not made, or nobody knows. Without effect once done."""
        if not self._answer.done():
            self._answer.set_exception(error)

    async def wait(self) -> None:
        """Wait for the answer; raises what `fail` was given."""
        await asyncio.shield(self._answer)

    def abandon(self) -> None:
        """Nobody waits any more."""
        if not self._answer.cancel() and not self._answer.cancelled():
            self._answer.exception()  # seen: no "exception was never retrieved"


def refusal_of(
    error: RaftHttpError, change: ChangeRequest, request: Request
) -> RequestRefusedError:
    """What to answer when a change failed, by wire.md's table."""
    if isinstance(error, RequestRefusedError):
        return error
    text = f"failed to {change}: {error}"
    if isinstance(error, NotLeaderError) and error.leader is not None:
        location = f"{request.scheme}://{error.leader.address}{request.target}"
        return RequestRefusedError(308, text, headers=(("Location", location),))
    if isinstance(error, (ConfigurationChangeError, TransportError)):
        return RequestRefusedError(403, text)
    if isinstance(error, RaftError):
        return RequestRefusedError(503, text, headers=(("Retry-After", "1"),))
    return RequestRefusedError(500, text)
