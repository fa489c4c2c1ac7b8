"""Calls forwarded to another member: `PUT path?op=…` over kept connections.

Knows dials and HTTP; not what is forwarded. A call is never sent twice: an error says *definite*
only where no byte of it can have reached the peer.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from rafthttp.http.access import HeadersFactory
from rafthttp.http.client import ClientConnection
from rafthttp.http.dial import Dial
from rafthttp.http.grammar import parse_operation
from rafthttp.http.messages import ForwardResponse
from rafthttp.raft.errors import ConfigError, ForwardError, Outcome, TransportError
from rafthttp.raft.types import ServerAddress

CONNECTIONS_MAX: Final = 64
"""Calls at a time to one peer, each on its own connection; more wait within their timeout."""

IDLE_CONNECTIONS_MAX: Final = 16
"""Connections kept per peer for the next call."""

IDLE_SECONDS_MAX: Final = 4.0
"""A connection idle for longer is not used again: uvicorn closes it after 5 s, and a call that
meets the close is of unknown outcome."""

RESPONSE_SIZE_BYTES_MAX: Final = 64 << 20
"""Bytes of an answer: some hundred results of a state machine, or one large one."""


@dataclass(slots=True)
class _Peer:
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_MAX))
    idle: list[tuple[ClientConnection, float]] = field(
        default_factory=list[tuple[ClientConnection, float]]
    )
    calls: int = 0


class ForwardClient:
    """Makes forwarded calls. Ends with `close`."""

    def __init__(self, path: str, dial: Dial, headers: HeadersFactory) -> None:
        self._path = path
        self._dial = dial
        self._headers = headers
        self._peers: dict[ServerAddress, _Peer] = {}
        self._busy: set[ClientConnection] = set()
        self._closed = False

    async def call(
        self,
        address: ServerAddress,
        op: str,
        body: bytes,
        timeout: float,
    ) -> ForwardResponse:
        """Have `op` done by the member at `address`, within `timeout` seconds.

        Raises:
            ForwardError: no answer; see its `outcome`.
            ConfigError: `op` is against its grammar, or the timeout is not positive.
        """
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be more than 0")
        try:
            target = f"{self._path}?op={parse_operation(op)}"
        except ValueError as error:
            raise ConfigError(str(error)) from None
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = _Peer()
        peer.calls += 1
        try:
            return await self._call(peer, address, target, body, timeout)
        finally:
            peer.calls -= 1
            if not peer.calls and not peer.idle and self._peers.get(address) is peer:
                del self._peers[address]

    async def close(self) -> None:
        """Close every connection; calls under way are of unknown outcome. Idempotent."""
        self._closed = True
        for peer in self._peers.values():
            for connection, _ in peer.idle:
                connection.abort()
            peer.idle.clear()
        for connection in list(self._busy):
            connection.abort()

    async def _call(
        self,
        peer: _Peer,
        address: ServerAddress,
        target: str,
        body: bytes,
        timeout: float,
    ) -> ForwardResponse:
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(timeout), peer.slots:
                headers = await self._headers()
                connection = await self._connection(peer, address, timeout)
                self._busy.add(connection)
                answer = await connection.call(
                    "PUT",
                    target,
                    headers.items(),
                    body,
                    response_size_bytes_max=RESPONSE_SIZE_BYTES_MAX,
                )
        except TimeoutError as error:
            raise _error(address, f"no answer within {timeout:g} s", connection) from error
        except (TransportError, OSError) as error:
            raise _error(address, str(error), connection) from error
        else:
            self._keep(peer, connection)
            connection = None
            return ForwardResponse(answer.status, answer.body, tuple(answer.headers))
        finally:
            if connection is not None:
                self._busy.discard(connection)
                connection.abort()

    async def _connection(
        self, peer: _Peer, address: ServerAddress, timeout: float
    ) -> ClientConnection:
        if self._closed:
            raise ConnectionResetError("the layer is closed")
        oldest = time.monotonic() - IDLE_SECONDS_MAX
        while peer.idle:
            connection, since = peer.idle.pop()
            if connection.reusable and since >= oldest:
                return connection
            connection.abort()
        return ClientConnection(await self._dial(address, timeout), address)

    def _keep(self, peer: _Peer, connection: ClientConnection) -> None:
        self._busy.discard(connection)
        if connection.reusable and not self._closed and len(peer.idle) < IDLE_CONNECTIONS_MAX:
            peer.idle.append((connection, time.monotonic()))
        else:
            connection.abort()


def _error(address: str, text: str, connection: ClientConnection | None) -> ForwardError:
    sent = connection is not None and connection.sent
    outcome = Outcome.UNKNOWN if sent else Outcome.DEFINITE
    return ForwardError(f"forwarding to {address}: {text}", outcome=outcome)
