"""Whether the hot path of this installation is machine code (ADR 13)."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

from rafthttp.raft.core import consensus

IS_COMPILED: Final[bool] = consensus.__file__.endswith(tuple(EXTENSION_SUFFIXES))
"""True where the package was built with mypyc; behaviour is the same, commits cost less CPU."""
