"""Clusters of this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers.base import LineCluster, LineProcess, Make, free_ports

NODE = Path(__file__).with_name("ours_node.py")


def make(
    name: str, *, fsync: bool, uvloop: bool = True, program: Sequence[str] = (str(NODE),)
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
            processes.append(LineProcess(command))
        return LineCluster(processes)

    return Make(name, start)
