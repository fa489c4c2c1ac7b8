"""What applications ask of a `Node`: commands, reads, and trying again until one is answered.

Knows the way to the leader, deadlines and outcomes; nothing of stores, membership and HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from rafthttp.leaderward import Leaderward
from rafthttp.raft.config import Config
from rafthttp.raft.errors import ConfigError, EntryTooLargeError, ShutdownError
from rafthttp.raft.raft import Raft
from rafthttp.raft.runtime.proposals import check_command
from rafthttp.raft.types import Index, ServerID, State
from rafthttp.retrying import retry
from rafthttp.sessions.client import ClientSession, OnceClient
from rafthttp.sessions.envelope import ENVELOPE_SIZE_BYTES, SessionRequest, plain

_log = logging.getLogger("rafthttp.node")

# A try of a command that may be tried again gets half of the time that is left, but this at least.
_ATTEMPT_MIN: Final = 1.0

_T = TypeVar("_T")


class Commands:
    """The base of `Node`.

    Args:
        node_id: the node's name.
        config: its settings.
        sessions: as for `Node`.
        timeout: as for `Node`.
    """

    def __init__(
        self, node_id: ServerID, config: Config, *, sessions: bool, timeout: float
    ) -> None:
        self.id = node_id
        self.config = config
        self.sessions = sessions
        self.timeout = timeout
        self._raft: Raft | None = None
        self._leaderward: Leaderward
        self._leader_changed = asyncio.Event()
        self._once = OnceClient(self._attempt, self._retry, timeout)

    @property
    def raft(self) -> Raft:
        """The server.

        Raises:
            ShutdownError: the node does not run.
        """
        if self._raft is None:
            raise ShutdownError("the node is not running")
        return self._raft

    @property
    def command_size_bytes_max(self) -> int:
        """How large a command may be."""
        return self.config.entry_size_bytes_max - (ENVELOPE_SIZE_BYTES if self.sessions else 0)

    async def apply(
        self,
        data: bytes,
        *,
        timeout: float | None = None,
        request_id: str | bytes | SessionRequest | None = None,
        request_payload: bytes | None = None,
    ) -> Any:
        """Replicate one command, here or through the leader; returns the state machine's answer.

        A definite refusal (not the leader, no leader yet) is tried again until the deadline; what
        may have reached a leader is sent again only with `sessions`. An answer that comes from
        another process, or that was given before, has crossed msgpack: None, bool, int, float, str,
        bytes, list and dict stay what they are.

        Args:
            data: the command.
            timeout: seconds for all tries together.
            request_id: of a request of the application's own client, who may repeat it (an
                `Idempotency-Key`): within 10 minutes at least, 24 hours as a rule, the command is
                applied once and the answer is the first one's. Needs `sessions`.
            request_payload: what that client sent: a repeat with another one is refused.

        Raises:
            RaftError: its `outcome` says whether the command may yet be applied.
            RequestReusedError: see `request_payload`.
            SessionExpiredError: the session of a `SessionRequest` is forgotten.
            RemoteApplyError: the leader's state machine raised; on the leader itself the exception
                is raised as it is.
        """
        check_command(data)
        size, most = len(data), self.command_size_bytes_max
        if size > most:
            raise EntryTooLargeError(f"the command has {size} bytes; at most {most} are allowed")
        timeout = self.timeout if timeout is None else timeout
        if self.sessions:
            return await self._once.apply(data, timeout, request_id, request_payload)
        if request_id is not None:
            raise ConfigError("request_id needs Node(sessions=True)")
        envelope = plain(data)
        return await self._retry(
            lambda remaining: self._leaderward.apply(self.raft, envelope, remaining), timeout
        )

    async def open_session(self, *, timeout: float | None = None) -> ClientSession:
        """Begin a session for a client of the application that numbers its requests itself.

        Raises:
            RaftError: definite; there is none.
        """
        if not self.sessions:
            raise ConfigError("a session needs Node(sessions=True)")
        return await self._once.open(self.timeout if timeout is None else timeout)

    async def read_index(self, *, timeout: float | None = None) -> Index:
        """Wait until a local read is linearizable; tried again until the deadline.

        Raises:
            RaftError: definite; nothing was read.
        """
        return await self._retry(
            lambda remaining: self.raft.read_index(timeout=remaining), timeout, repeatable=True
        )

    async def linearizable(self, *, timeout: float | None = None) -> None:
        """`read_index` for who does not need the index: read the state machine after it."""
        await self.read_index(timeout=timeout)

    # -- inside

    async def _watch_leader(self, raft: Raft) -> None:
        known = False
        async for leader in raft.leader_changes():
            if known or leader is not None:  # that nobody leads at first is no news
                known = True
                _log.info("%s: leader is %s", self.id, "unknown" if leader is None else leader.id)
            self._leader_changed.set()
            self._leader_changed = asyncio.Event()

    async def _wait_leader_changed(self) -> None:
        await self._leader_changed.wait()

    async def _retry(
        self,
        once: Callable[[float], Awaitable[_T]],
        timeout: float | None,
        *,
        repeatable: bool = False,
        applies_once: bool = False,
    ) -> _T:
        return await retry(
            once,
            self.timeout if timeout is None else timeout,
            repeatable=repeatable,
            applies_once=applies_once,
            has_ended=lambda: self._raft is None or self._raft.state is State.SHUTDOWN,
            wait_changed=self._wait_leader_changed,
        )

    async def _attempt(self, data: bytes, timeout: float) -> Any:
        """One try of many: what is lost on its way to a leader must leave time for another."""
        raft = self.raft
        if raft.state is not State.LEADER:
            timeout = max(timeout / 2, min(timeout, _ATTEMPT_MIN))
        return await self._leaderward.apply(raft, data, timeout)
