"""After healing: one leader that serves, every member in its state, every answer kept.

Raft §5.4.3 says that what is committed stays; that the rest comes back is the point of §5.2, §6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rafthttp.raft.types import Index, ServerID
from rafthttp.testing.coremember import Entry
from rafthttp.testing.invariants.error import InvariantError


class Acknowledged(NamedTuple):
    """A command that a client was told is applied."""

    at: Index
    payload: object


def check_healed(
    leaders: Sequence[ServerID],
    states: Iterable[tuple[ServerID, Index, int]],
    acknowledged: Iterable[Acknowledged],
    committed: Mapping[Index, Entry],
) -> None:
    """The cluster claims to be whole: leaders of the newest term; id, applied, digest of each."""
    if len(leaders) != 1:
        raise InvariantError(f"healed: {list(leaders)} lead")
    seen = sorted(states)
    if len({state[1:] for state in seen}) != 1:
        raise InvariantError(f"healed: the members did not converge: {seen}")
    for command in acknowledged:
        entry = committed.get(command.at)
        if entry is None or entry.payload != command.payload:
            raise InvariantError(f"healed: acknowledged {command.payload} is lost")
