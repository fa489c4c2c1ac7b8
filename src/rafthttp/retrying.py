"""Trying a call again until a leader answers it, as far as its outcome allows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from rafthttp.forwarding import ForwardRefusedError
from rafthttp.raft.errors import (
    EntryTooLargeError,
    Outcome,
    OverloadedError,
    RaftError,
    TimedOutError,
)

# Pauses between tries to reach a leader, doubled from the first to the last, with jitter; a change
# of leader ends them early. An election takes a tenth of a second at best.
_PAUSES: Final = (0.01, 0.25)
# Trying again helps in none of these.
_FINAL: Final = (EntryTooLargeError, ForwardRefusedError, OverloadedError)

_T = TypeVar("_T")


async def retry(
    once: Callable[[float], Awaitable[_T]],
    timeout: float,
    *,
    repeatable: bool,
    has_ended: Callable[[], bool],
    wait_changed: Callable[[], Awaitable[Any]],
) -> _T:
    """Call `once` with the seconds left until it succeeds or may not be called again.

    Args:
        once: gets the seconds that are left.
        timeout: seconds for all tries together.
        repeatable: whether it may be called again although its outcome is unknown.
        has_ended: whether the server is gone for good, so that waiting helps no more.
        wait_changed: returns once another leader is known; cuts a pause short.

    Raises:
        RaftError: of the last try, or a definite `TimedOutError`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pause, pause_max = _PAUSES
    while True:
        try:
            return await once(max(deadline - loop.time(), 0.001))
        except _FINAL:
            raise
        except RaftError as error:
            if (error.outcome is Outcome.UNKNOWN and not repeatable) or has_ended():
                raise
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise TimedOutError(
                    f"not done within {timeout:g} s: {error}",
                    outcome=Outcome.DEFINITE,
                    leader=error.leader,
                ) from error
        with suppress(TimeoutError):
            jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            async with asyncio.timeout(min(jittered, remaining)):
                await wait_changed()
        pause = min(pause * 2, pause_max)
