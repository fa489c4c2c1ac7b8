"""Clusters of PySyncObj: what a Python developer has without this package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from bench.peers.base import LineCluster, LineProcess, Make, MissingPeerError, free_ports

NODE = Path(__file__).with_name("pysyncobj_node.py")


def make(name: str, *, journal: bool, threads: bool = False) -> Make:
    """Three nodes, tuned; with a journal file, which it never flushes to disk, or without.

    `threads`: a thread for each client, in place of callbacks.
    """

    def start(directory: Path) -> LineCluster:
        if importlib.util.find_spec("pysyncobj") is None:
            raise MissingPeerError("PySyncObj is not installed: pip install 'pysyncobj'")
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        processes: list[LineProcess] = []
        for number, address in enumerate(addresses):
            others = [each for each in addresses if each != address]
            command = [sys.executable, str(NODE), address, *others]
            if journal:
                command += ["--journal", str(directory / f"journal{number}")]
            if threads:
                command.append("--threads")
            processes.append(LineProcess(command))
        return LineCluster(processes)

    return Make(name, start)
