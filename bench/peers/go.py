"""Clusters of Go's hashicorp/raft over raft-http, built from `interop/go`."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.base import Load, Make, MissingPeerError, Sample, free_ports, wait_until

BINARY = Path(__file__).parents[2] / "build" / "interop" / "rafthttp-interop"
# Go's answer to batches: proposals queue up while a batch is written, and go out as one.
TUNED = ("-batch-apply-ch", "-max-append-entries", "1024")


class GoCluster:
    """Go processes, or none where they do not start; the load runs in the leader's (`Cluster`)."""

    def __init__(self, addresses: Sequence[str], commands: Sequence[Sequence[str]]) -> None:
        self._addresses = list(addresses)
        self._processes: list[subprocess.Popen[bytes]] = []
        quiet = subprocess.DEVNULL
        try:
            for number, command in enumerate(commands, 1):  # in turn: Go's join is not tried again
                self._processes.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))
                wait_until(partial(self._has_voters, number), f"the joining of Go node {number}")
        except BaseException:
            self.stop()
            raise

    def bench(self, load: Load) -> Sample:
        """Put the load on the leader (`Cluster`)."""
        query = f"clients={load.clients}&seconds={load.seconds}&size={load.size}"
        answer = self._call("POST", f"/bench?{query}", load.seconds + 30)
        if answer["errors"]:
            raise RuntimeError(f"{answer['errors']} commands failed: {answer['error']}")
        return Sample(answer["per_second"], answer["p50_ms"], answer["p99_ms"])

    def pids(self) -> Sequence[int]:
        """The processes, the leader's first (`Cluster`)."""
        return [each.pid for each in self._processes]

    def stop(self) -> None:
        """End all processes (`Cluster`)."""
        for each in self._processes:
            each.kill()
            each.wait()

    def _has_voters(self, count: int) -> bool:
        try:
            servers = self._call("GET", "/configuration", 2)["servers"]
        except (OSError, KeyError):
            return False
        return len([each for each in servers if each["suffrage"] == "voter"]) == count

    def _call(self, method: str, target: str, timeout: float) -> dict[str, Any]:
        url = f"http://{self._addresses[0]}{target}"
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def make(name: str, *, bolt: bool, tuned: bool = False) -> Make:
    """Three Go nodes, in memory or with boltdb, which syncs each commit."""

    def start(directory: Path) -> GoCluster:
        if not BINARY.exists():
            raise MissingPeerError("the Go node is not built: make interop")
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        commands: list[list[str]] = []
        for number, address in enumerate(addresses):
            command = [str(BINARY), "-id", f"n{number}", "-address", address]
            command += ["-count", "-log-level", "ERROR", *(TUNED if tuned else ())]
            command += ["-bootstrap"] if number == 0 else ["-join", addresses[0]]
            if bolt:
                command += ["-data-dir", str(directory / f"n{number}")]
            commands.append(command)
        return GoCluster(addresses, commands)

    return Make(name, start)
