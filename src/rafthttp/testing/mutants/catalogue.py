"""All mutants, and what must catch each."""

from __future__ import annotations

from typing import Final

from rafthttp.testing.mutants import elections, membership, replication, sessions, storage
from rafthttp.testing.mutants.plant import Mutant

MUTANTS: Final = tuple(
    Mutant(plant.__name__, plant, dialogue, simulated)
    for plant, dialogue, simulated in (
        *elections.PLANTS,
        *replication.PLANTS,
        *storage.PLANTS,
        *membership.PLANTS,
    )
) + tuple(
    Mutant(plant.__name__, plant, None, simulated=False, replicated=True)
    for plant in sessions.PLANTS
)
