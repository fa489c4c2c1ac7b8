"""Commands and reads on their way to the leader, from the member an application asked.

Knows who leads and how a forward is sent there; nothing of retries (the caller's) and of bodies
(`forwarding`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rafthttp import forwarding
from rafthttp.forwarding import Forwarder
from rafthttp.http.layer import Layer
from rafthttp.http.messages import OUTCOME_HEADER
from rafthttp.raft.errors import ShutdownError, UnknownLeaderError
from rafthttp.raft.raft import Raft
from rafthttp.raft.types import Index, Leader, ServerAddress, State


class Leaderward:
    """The way to the leader, which may be this server.

    Args:
        layer: how forwards reach another member.
        address_of: where to dial it now.
        pending_bytes_max: bytes of commands under way, beyond which `OverloadedError`.
    """

    def __init__(
        self,
        layer: Layer,
        address_of: Callable[[Leader], ServerAddress],
        *,
        pending_bytes_max: int,
    ) -> None:
        self._layer = layer
        self._address_of = address_of
        self._forwarder = Forwarder(self._commands, pending_bytes_max=pending_bytes_max)

    async def apply(self, raft: Raft, data: bytes, timeout: float) -> Any:
        """Replicate one command, here or through the leader; asked once. As `Raft.apply`."""
        if raft.state is State.LEADER:
            return await raft.apply(data, timeout=timeout)
        if raft.state is State.SHUTDOWN:
            because = "" if raft.failure is None else f": {raft.failure}"
            raise ShutdownError(f"the server is shut down{because}")
        leader = raft.leader_with_id()
        if leader is None or leader.id == raft.id:
            raise UnknownLeaderError("no leader is known")
        return await self._forwarder.apply(leader, data, timeout)

    async def read_index(self, leader: Leader, timeout: float) -> Index:
        """Ask another server, which leads, for a read index.

        Raises:
            RaftError: definite; a read changes nothing.
        """
        body = forwarding.encode_read_index(timeout)
        answer = await self._forward(leader, forwarding.READ_INDEX, body, timeout)
        return forwarding.decode_index(leader, answer)

    async def close(self) -> None:
        """End what is under way. Idempotent."""
        await self._forwarder.close()

    async def _commands(self, leader: Leader, body: bytes, timeout: float) -> bytes:
        return await self._forward(leader, forwarding.APPLY, body, timeout)

    async def _forward(self, leader: Leader, op: str, body: bytes, timeout: float) -> bytes:
        response = await self._layer.forward(self._address_of(leader), op, body, timeout)
        if response.status != 200:
            text = response.body[:200].decode(errors="replace").strip()
            headers = {name.lower(): value for name, value in response.headers}
            nothing_done = headers.get(OUTCOME_HEADER.lower()) == "definite"
            forwarding.raise_for_status(leader, response.status, text, nothing_done=nothing_done)
        return response.body
