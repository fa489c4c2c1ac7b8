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
    RequestReusedError,
    SessionExpiredError,
    TimedOutError,
)

# Pauses between tries to reach a leader, doubled from the first to the last, with jitter; a change
# of leader ends them early. An election takes a tenth of a second at best.
_PAUSES: Final = (0.01, 0.25)
# Trying again helps in none of these.
_FINAL: Final = (
    EntryTooLargeError,
    ForwardRefusedError,
    OverloadedError,
    RequestReusedError,
    SessionExpiredError,
)

_T = TypeVar("_T")


async def retry(
    once: Callable[[float], Awaitable[_T]],
    timeout: float,
    *,
    repeatable: bool = False,
    applies_once: bool = False,
    has_ended: Callable[[], bool],
    wait_changed: Callable[[], Awaitable[Any]],
) -> _T:
    """Call `once` with the seconds left until it succeeds or may not be called again.

    Args:
        once: gets the seconds that are left.
        timeout: seconds for all tries together.
        repeatable: whether it may be called again although its outcome is unknown, because it
            changes nothing.
        applies_once: likewise, because the replicas know it again. What is unknown stays so if no
            later try is answered.
        has_ended: whether the server is gone for good, so that waiting helps no more.
        wait_changed: returns once another leader is known; cuts a pause short.

    Raises:
        RaftError: of the last try, or `TimedOutError`; unknown where any try may have had effect.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pause, pause_max = _PAUSES
    is_unknown = False
    while True:
        try:
            return await once(max(deadline - loop.time(), 0.001))
        except RaftError as error:
            if error.outcome is Outcome.UNKNOWN:
                if not (repeatable or applies_once):
                    raise
                is_unknown = is_unknown or applies_once
            remaining = deadline - loop.time()
            if isinstance(error, _FINAL) or has_ended():
                if is_unknown and error.outcome is Outcome.DEFINITE:
                    # True of the last try; of one before it nothing is known.
                    raise type(error)(
                        f"an earlier try may have been applied: {error}",
                        outcome=Outcome.UNKNOWN,
                        leader=error.leader,
                    ) from error
                raise
            if remaining <= 0:
                raise TimedOutError(
                    f"not done within {timeout:.3g} s: {error}",
                    outcome=Outcome.UNKNOWN if is_unknown else Outcome.DEFINITE,
                    leader=error.leader,
                ) from error
        with suppress(TimeoutError):
            jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            async with asyncio.timeout(min(jittered, remaining)):
                await wait_changed()
        pause = min(pause * 2, pause_max)
