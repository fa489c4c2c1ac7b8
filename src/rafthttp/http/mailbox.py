"""A bounded queue with an end, for streams and change requests on their way in.

Knows asyncio only. Unlike `asyncio.Queue` it closes: readers are told, and what nobody took is
returned to whoever closes, who owes it an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class MailboxClosedError(Exception):
    """The mailbox is closed; nothing more will come."""


class Mailbox(Generic[T]):
    """At most `size_max` items wait here."""

    def __init__(self, size_max: int) -> None:
        self._items: deque[T] = deque()
        self._size_max = size_max
        self._readers: deque[asyncio.Future[None]] = deque()
        self.closed = False

    def put(self, item: T) -> bool:
        """Add an item; False when full or closed."""
        if self.closed or len(self._items) >= self._size_max:
            return False
        self._items.append(item)
        self._wake_one()
        return True

    def discard(self, item: T) -> None:
        """Remove an item whose owner gave up waiting, if nobody took it."""
        if item in self._items:
            self._items.remove(item)

    async def get(self) -> T:
        """The oldest item. Nothing is lost if this is cancelled.

        Raises:
            MailboxClosedError: closed, also while waiting.
        """
        while not self._items:
            if self.closed:
                raise MailboxClosedError
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            try:
                await reader
            except BaseException:
                if reader.done() and not reader.cancelled():
                    self._wake_one()  # woken and cancelled in one turn: pass the item on
                else:
                    with contextlib.suppress(ValueError):  # passed over by a wake-up meanwhile
                        self._readers.remove(reader)
                raise
        return self._items.popleft()

    def close(self) -> list[T]:
        """Let every reader know, and return what nobody took. Idempotent."""
        self.closed = True
        left = list(self._items)
        self._items.clear()
        while self._readers:
            self._wake_one()
        return left

    def _wake_one(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return
