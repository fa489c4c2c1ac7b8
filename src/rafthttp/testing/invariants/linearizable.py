"""Linearizability: to its clients the cluster is one register each (Raft §8, thesis §6.3).

Every operation seems to happen at one instant between question and answer. The search is that of
`rafthttp.testing.linearizability`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rafthttp.testing.invariants.error import InvariantError
from rafthttp.testing.linearizability import (
    NotLinearizableError,
    Operation,
    check_linearizable,
)


def check_clients(history: Iterable[Operation]) -> None:
    """What all clients asked and saw.

    Raises:
        SearchTooLongError: undecided.
    """
    try:
        check_linearizable(history)
    except NotLinearizableError as error:
        told = str(error).partition(": ")[2]
        raise InvariantError(f"linearizable: no order explains {told}") from error
