"""Random entries of sessions and keys, for replicas that are to decide alike.

Knows envelopes; nothing of who applies them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from rafthttp.sessions import envelope
from rafthttp.sessions.envelope import SessionRequest

SESSIONS: Final = tuple(bytes([n]) * 16 for n in range(4))
KEYS: Final = tuple("abcdefghijkl")
STEPS: Final = (0,) * 8 + (1, 5, 20, 40, 59, 3600, -30, None)


class SessionEntries:
    """Entries one after the other: mostly of sessions that are open, in a window that moves on.

    Args:
        seed: the same one draws the same entries.
        commands: what is enveloped.
        sessions: ids of sessions.
        keys: keys of ONCE.
        steps: seconds from one entry's stamp to the next; None is an entry without a stamp.
    """

    def __init__(
        self,
        seed: int,
        commands: Sequence[bytes],
        *,
        sessions: Sequence[bytes] = SESSIONS,
        keys: Sequence[str] = KEYS,
        steps: Sequence[int | None] = STEPS,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._commands, self._sessions, self._keys = commands, sessions, keys
        self._steps = steps
        self._window = dict.fromkeys(sessions, 1)
        # Few calls of one kind in one run, many in another, so that each limit is met.
        self._weights = [self.random.choice([1, 5, 20]) for _ in range(4)]

    def draw(self) -> bytes:
        """The next entry's data."""
        choose = self.random.choice
        command = choose(self._commands)
        kind = self.random.choices(["open", "request", "once", "plain"], self._weights)[0]
        session = choose(self._sessions)
        if kind == "open":
            return envelope.opening(session)
        if kind == "request":
            lowest = self._window[session]
            sequence = lowest + self.random.randrange(8)
            if not self.random.randrange(6):
                self._window[session] += self.random.randrange(5)
            lowest = max(lowest - choose([0, 0, 3]), 0)
            return envelope.numbered(SessionRequest(session, sequence, lowest), command)
        if kind == "once":
            return envelope.once(choose(self._keys), choose([None, b"p", b"p", b"q"]), command)
        return choose([command, envelope.plain(envelope.MAGIC)[:40] + command])

    def step(self) -> int | None:
        """Seconds to the next entry's stamp."""
        return self.random.choice(self._steps)
