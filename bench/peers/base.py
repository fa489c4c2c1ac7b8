"""What the benchmark asks of a cluster of any make, and the processes behind one.

Three processes on loopback; the load runs in the leader's own process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

START_SECONDS = 30.0


class MissingPeerError(Exception):
    """A peer that cannot be had here; the report names it."""


@dataclass(frozen=True)
class Load:
    """Commands of `size` bytes, `clients` of them under way at a time, for `seconds`."""

    clients: int
    seconds: float
    size: int


@dataclass(frozen=True)
class Sample:
    """What one run of one load gave; latencies in milliseconds, CPU in cores of the leader."""

    commits_a_second: float
    p50_ms: float
    p99_ms: float
    cpu_cores: float | None = None


class Cluster(Protocol):
    """Three processes of one make, running."""

    def bench(self, load: Load) -> Sample:
        """Put the load on the leader."""
        ...

    def pids(self) -> Sequence[int]:
        """The processes, the leader's first."""
        ...

    def stop(self) -> None:
        """End all processes. Idempotent."""
        ...


@dataclass(frozen=True)
class Make:
    """One make of cluster in one configuration, by name."""

    name: str
    start: Callable[[Path], Cluster]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Poll until `condition` holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


class LineProcess:
    """A process that answers one JSON object a line on its standard input with one a line."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.pid = self._process.pid

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question, its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it: its input ends, then it is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LineCluster:
    """A cluster of `LineProcess`es (`Cluster`); where it does not begin, none is left."""

    def __init__(self, processes: Sequence[LineProcess]) -> None:
        self._processes = list(processes)
        self._voters = len(processes)
        try:
            wait_until(self._find_leader, "an election")
        except BaseException:
            self.stop()
            raise

    def bench(self, load: Load) -> Sample:
        """Put the load on the leader (`Cluster`)."""
        wait_until(self._find_leader, "an election")
        answer = self._processes[0].ask(
            {"clients": load.clients, "seconds": load.seconds, "size": load.size}
        )
        return Sample(
            answer["commits"] / answer["seconds"],
            answer["p50_ms"],
            answer["p99_ms"],
            answer["cpu_seconds"] / answer["seconds"],
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """A question to the leader, its answer."""
        wait_until(self._find_leader, "an election")
        return self._processes[0].ask(question)

    def stop_last(self) -> None:
        """End one process that does not lead."""
        self._processes.pop().stop()

    def pids(self) -> Sequence[int]:
        """The processes, the leader's first (`Cluster`)."""
        return [each.pid for each in self._processes]

    def stop(self) -> None:
        """End all processes (`Cluster`)."""
        for each in self._processes:
            each.stop()

    def _find_leader(self) -> bool:
        """Bring the leader to the front once it leads all."""
        answers = [each.ask({}) for each in self._processes]
        for position, answer in enumerate(answers):
            if answer["leads"] and answer["voters"] == self._voters:
                self._processes.insert(0, self._processes.pop(position))
                return True
        return False


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
