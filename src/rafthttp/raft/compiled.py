"""Whether the hot path of this installation is machine code (ADR 13)."""

from __future__ import annotations

from typing import Final

from rafthttp.raft.core import consensus

IS_COMPILED: Final[bool] = not consensus.__file__.endswith(".py")
"""True where the package was built with mypyc; behaviour is the same, commits cost less CPU."""
