"""Clusters of this package, as its source is or compiled (`make compiled`, ADR 13)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from bench.peers.base import LineCluster, LineProcess, Make, MissingPeerError, free_ports

NODE = Path(__file__).with_name("ours_node.py")
COMPILED = Path(__file__).parents[2] / "build/compiled"


def environment(*, compiled: bool) -> dict[str, str]:
    """For a process that is to run the source, or what was compiled of it.

    Raises:
        MissingPeerError: nothing was.
    """
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    paths = [each for each in paths if Path(each) != COMPILED]
    if compiled:
        if not is_built():
            raise MissingPeerError("the compiled package is not built: make compiled")
        paths.insert(0, str(COMPILED))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def is_built() -> bool:
    """Whether this Python has a compiled package to run."""
    core = COMPILED / "rafthttp/raft/core"
    return any((core / f"consensus{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def make(
    name: str,
    *,
    fsync: bool,
    compiled: bool = False,
    uvloop: bool = True,
    program: Sequence[str] = (str(NODE),),
) -> Make:
    """Three nodes, in memory or with the sqlite store; `program` is what Python runs for each."""

    def start(directory: Path) -> LineCluster:
        ports = free_ports(3)
        processes: list[LineProcess] = []
        for number, port in enumerate(ports):
            command = [sys.executable, *program, f"n{number}", f"127.0.0.1:{port}"]
            if number == 0:
                command.append("--bootstrap")
            else:
                command += ["--join", f"http://127.0.0.1:{ports[0]}"]
            if fsync:
                command += ["--data", str(directory / f"n{number}")]
            if uvloop:
                command.append("--uvloop")
            processes.append(LineProcess(command, environment(compiled=compiled)))
        return LineCluster(processes)

    return Make(name, start)
