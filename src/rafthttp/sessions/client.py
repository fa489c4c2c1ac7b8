"""Who numbers the requests: the other half of the table.

Knows envelopes and errors; how an envelope reaches the leader is the caller's (`Attempt`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from rafthttp.raft.errors import Outcome, SessionExpiredError, TimedOutError
from rafthttp.sessions.envelope import (
    ID_SIZE_BYTES,
    SessionRequest,
    numbered,
    once,
    opening,
)

# Requests since the lowest that is not answered, beyond which new ones get another session: one
# that hangs must not fill the table with the answers of all that follow it (64 MiB hold 500,000).
_SPAN_MAX: Final = 100_000

_T = TypeVar("_T")

Attempt: TypeAlias = Callable[[bytes, float], Awaitable[Any]]
"""Proposes one command through the leader, once, within seconds."""


class Retry(Protocol):
    """See `rafthttp.retrying.retry`."""

    async def __call__(
        self,
        once: Callable[[float], Awaitable[_T]],
        timeout: float | None,
        *,
        repeatable: bool = False,
        applies_once: bool = False,
    ) -> _T:
        """The result of the first try that gives one."""
        ...


class ClientSession:
    """The numbers of one open session: each request gets its own, a retry keeps it.

    Args:
        key: the 16 bytes under which the session was opened.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.lowest = 1
        """Every request below it has ended."""
        self._next = 1
        self._ended: set[int] = set()

    @property
    def span(self) -> int:
        """How many numbers lie between the oldest request under way and the next."""
        return self._next - self.lowest

    def begin(self) -> SessionRequest:
        """The next request. `end` it, whatever comes of it."""
        sequence = self._next
        self._next += 1
        return SessionRequest(self.key, sequence, self.lowest)

    def end(self, request: SessionRequest) -> None:
        """It is answered or given up, and will not be sent again."""
        self._ended.add(request.sequence)
        while self.lowest in self._ended:
            self._ended.remove(self.lowest)
            self.lowest += 1


class OnceClient:
    """Sends commands in envelopes, again where no answer came.

    Args:
        attempt: see `Attempt`.
        retry: see `Retry`.
        timeout: seconds to open a session, all tries together.
    """

    def __init__(self, attempt: Attempt, retry: Retry, timeout: float) -> None:
        self._attempt = attempt
        self._retry = retry
        self._timeout = timeout
        self._session: ClientSession | None = None
        self._opening: asyncio.Task[ClientSession] | None = None

    async def apply(
        self,
        command: bytes,
        timeout: float,
        request_id: str | bytes | SessionRequest | None,
        payload: bytes | None,
    ) -> Any:
        """The state machine's answer, however often it was asked.

        Raises:
            SessionExpiredError, RequestReusedError: see there.
            RaftError: unknown only where a try may have been applied and none was answered.
        """
        if request_id is None:
            return await self._apply_numbered(command, timeout)
        if isinstance(request_id, SessionRequest):
            return await self._send(numbered(request_id, command), timeout)
        return await self._send(once(request_id, payload, command), timeout)

    async def open(self, timeout: float) -> ClientSession:
        """Begin a session. Raises as `apply`, always definite: no command was sent."""

        async def once(remaining: float) -> ClientSession:
            # An id of which it is not known whether it was opened is never used.
            key = os.urandom(ID_SIZE_BYTES)
            await self._attempt(opening(key), remaining)
            return ClientSession(key)

        return await self._retry(once, timeout, repeatable=True)

    async def close(self) -> None:
        """Wait for a session that is being opened; once the server is shut down that ends."""
        if self._opening is not None:
            await asyncio.wait({self._opening})

    async def _apply_numbered(self, command: bytes, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            session = self._session
            if session is None or session.span > _SPAN_MAX:
                session = await self._opened(deadline)
            request = session.begin()
            try:
                return await self._send(numbered(request, command), deadline - loop.time())
            except SessionExpiredError as error:
                if self._session is session:
                    self._session = None
                if error.outcome is Outcome.UNKNOWN or loop.time() >= deadline:
                    raise
            finally:
                session.end(request)

    async def _send(self, envelope: bytes, timeout: float) -> Any:
        return await self._retry(
            lambda remaining: self._attempt(envelope, remaining), timeout, applies_once=True
        )

    async def _opened(self, deadline: float) -> ClientSession:
        """The session that is being opened: one for all who wait."""
        while True:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open_for_all())
                # Nobody may be left who waits for it.
                self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
            try:
                async with asyncio.timeout_at(deadline):
                    return await asyncio.shield(self._opening)
            except TimedOutError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
            except TimeoutError:
                raise TimedOutError(
                    "no session was opened in time", outcome=Outcome.DEFINITE
                ) from None

    async def _open_for_all(self) -> ClientSession:
        try:
            self._session = session = await self.open(self._timeout)
        finally:
            self._opening = None
        return session
