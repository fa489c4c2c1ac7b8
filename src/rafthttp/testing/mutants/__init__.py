"""Planted bugs: the checkers are checked, for one that lets its mutant live proves nothing.

    make mutants                                   # or: python -m rafthttp.testing.mutants

Each mutant changes one rule of the core while it is planted, and names what must catch it: a seed
of the simulator (`rafthttp.testing.sim`), or a dialogue of `tests/raft/core/testdata`, for some
bugs survive any number of random histories (S1, S28).
"""

from rafthttp.testing.mutants.catalogue import MUTANTS
from rafthttp.testing.mutants.plant import Mutant, Patch, planted

__all__ = ["MUTANTS", "Mutant", "Patch", "planted"]
