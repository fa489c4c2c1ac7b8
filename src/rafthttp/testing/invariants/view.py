"""What an invariant may see of a server: its core's figures, its log, its disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.coremember import Disk, Entry


class Running(Protocol):
    """One running server."""

    @property
    def id(self) -> ServerID:
        """Its name."""
        ...

    @property
    def life(self) -> int:
        """Counts its starts."""
        ...

    @property
    def live(self) -> Consensus:
        """The core."""
        ...


class View(Running, Protocol):
    """One running server, with all it keeps. `log[i]` is entry `base + 1 + i`."""

    base: Index
    log: list[Entry]

    @property
    def disk(self) -> Disk:
        """What is durable."""
        ...

    @property
    def applied(self) -> Index:
        """Last entry given to the state machine."""
        ...


class Voter(Protocol):
    """One voter when a commit is counted, up or down."""

    def holds(self, index: Index, entry: Entry) -> bool:
        """Whether its disk has that entry, or a snapshot that covers it."""
        ...


Log = Sequence[Entry]
