"""Clients of the simulated servers, and the history of what they asked and saw.

Each asks one thing at a time, of any server that is up, and waits up to a timeout. What an error
calls definite must never be seen; what it calls unknown may.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from rafthttp.raft.errors import Outcome, RaftHttpError, TransportError
from rafthttp.testing.driversim.loop import VirtualLoop
from rafthttp.testing.driversim.machine import COMMAND
from rafthttp.testing.driversim.member import Member
from rafthttp.testing.invariants import InvariantError
from rafthttp.testing.linearizability import Kind, Operation

_TIMEOUT: Final = 0.25
# Beyond its own timeout a call may take this long, and no longer unless its server died or stands.
_PATIENCE: Final = 0.5


class Clients:
    """All clients of one run.

    Attributes:
        history: for the linearizability checker.
        acknowledged: values that clients were told are applied.
        refused: values of which clients were told that they never will be.
        padding: what each command carries besides.
        on_acknowledged: called with a value.
    """

    def __init__(
        self, loop: VirtualLoop, rng: random.Random, members: Sequence[Member], keys: int
    ) -> None:
        self.history: list[Operation] = []
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.answers = 0
        self.on_acknowledged: Callable[[int], None] = lambda _: None
        self._loop = loop
        self._rng = rng
        self._members = members
        self._keys = keys
        self._values = 0
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self.padding = b""

    def start(self, clients: int, think: float) -> None:
        """Begin to ask; `think` is the most seconds between two requests."""
        self._tasks = [self._loop.create_task(self._client(think)) for _ in range(clients)]

    async def stop(self) -> None:
        """Ask nothing more; returns when all have their answers, or have given up."""
        self._stopped = True
        for task in self._tasks:
            await task

    def value(self) -> int:
        """One that was never written."""
        self._values += 1
        return self._values

    async def _client(self, think: float) -> None:
        favourite: Member | None = None
        while not self._stopped:
            await asyncio.sleep(think * self._rng.random())
            up = [m for m in self._members if m.is_up]
            if not up or self._stopped:
                continue
            member = favourite if favourite in up else self._rng.choice(up)
            assert member is not None
            answered = await (
                self._read(member) if self._rng.random() < 0.35 else self._write(member)
            )
            favourite = member if answered else None

    async def ask(self, member: Member, coro: Any) -> tuple[str, Any]:
        """One call in that server's process: `ok`, `definite` or `unknown`, and the answer."""
        life = member.life
        task: asyncio.Task[Any] = member.spawn(coro)
        waited = 0.0
        await asyncio.wait({task}, timeout=_TIMEOUT + _PATIENCE)
        while not task.done():
            # A dead or standing process never answers; one that lives must, by its own timeout.
            if life is not member.life or life is None or waited > 3 * _PATIENCE:
                return "unknown", None
            waited = 0.0 if life.paused else waited + _PATIENCE
            await asyncio.wait({task}, timeout=_PATIENCE)
        error = task.exception()
        if error is None:
            return "ok", task.result()
        if not isinstance(error, RaftHttpError):
            raise InvariantError(f"errors: {member.id} raised {error!r} to a client") from error
        outcome = getattr(error, "outcome", None)
        if outcome is Outcome.DEFINITE and not isinstance(error, TransportError):
            return "definite", error
        return "unknown", error

    async def _write(self, member: Member) -> bool:
        key, value = self._rng.randrange(self._keys), self.value()
        called = self._loop.now
        how, _ = await self.ask(
            member, member.apply(COMMAND.pack(key, value) + self.padding, _TIMEOUT)
        )
        if how == "definite":
            self.refused.append(value)
            return False
        returned = self._loop.now if how == "ok" else None
        self.history.append(Operation(key, Kind.WRITE, value, None, called, returned))
        if how == "ok":
            self.acknowledged.append(value)
            self.answers += 1
            self.on_acknowledged(value)
        return how == "ok"

    async def _read(self, member: Member) -> bool:
        key = self._rng.randrange(self._keys)
        machine = member.machine

        async def read() -> tuple[int | None, float]:
            await member.read_index(_TIMEOUT)
            return machine.values.get(key), self._loop.now

        called = self._loop.now
        how, answer = await self.ask(member, read())
        if how != "ok":
            return False
        value, at = answer
        self.answers += 1
        self.history.append(Operation(key, Kind.READ, None, value, called, at))
        return True
