"""Clusters whose three processes can be killed, stopped and started again one by one.

`rafthttp serve`, Go's hashicorp/raft and etcd, each with its own defaults and a disk; they are
asked over HTTP only.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.peers.base import MissingPeerError, free_ports, wait_until
from bench.peers.go import BINARY

COUNT = 3
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Progress:
    """What one member says of itself."""

    leads: bool
    voters: int
    applied: int
    last: int


class Service(Protocol):
    """One make: how its members are started, asked and written to."""

    ports: Sequence[int]
    one_by_one: bool
    """Whether each must have joined before the next is started."""

    def command(self, number: int, *, again: bool) -> list[str]:
        """What to run, at first or again on the same directory."""
        ...

    def progress(self, number: int) -> Progress:
        """How it is.

        Raises:
            OSError: it does not answer.
        """
        ...

    def write(self, count: int) -> tuple[str, str, bytes]:
        """Method, target and body of one write; any member that can take it answers 2xx."""
        ...


class Members:
    """Three processes of a make, leaders or not. Ends with `stop`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start_all(self) -> None:
        """Start a new cluster, until all are in it."""
        for number in range(COUNT):
            self.start(number, again=False)
            if self.service.one_by_one:
                self._wait_voters(number + 1)
        self._wait_voters(COUNT)
        self.wait_level()

    def start(self, number: int, *, again: bool = True) -> None:
        """Start one that does not run."""
        command = self.service.command(number, again=again)
        self._processes[number] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send it a signal; returns at once."""
        os.kill(self._processes[number].pid, what)

    def reap(self, number: int) -> None:
        """It was killed: wait until the system has let go of it."""
        self._processes.pop(number).wait(10)

    def leader(self) -> int | None:
        """Who leads."""
        for number in range(COUNT):
            found = self._progress(number)
            if found is not None and found.leads:
                return number
        return None

    def wait_leader(self) -> int:
        """Who leads, once anybody does.

        Raises:
            TimeoutError: nobody did in time.
        """
        wait_until(lambda: self.leader() is not None, "an election")
        leader = self.leader()
        assert leader is not None, "nothing is harmed meanwhile"
        return leader

    def wait_level(self) -> None:
        """Until one leads, and all have applied all it has.

        Raises:
            TimeoutError: it did not come to that in time.
        """
        wait_until(self._is_level, "catching up")

    def pids(self) -> Sequence[int]:
        """The processes, the leader's first."""
        leader = self.wait_leader()
        numbers = sorted(self._processes, key=lambda number: number != leader)
        return [self._processes[number].pid for number in numbers]

    def stop(self) -> None:
        """End all processes. Idempotent."""
        for process in self._processes.values():
            process.kill()
            process.wait(10)
        self._processes.clear()

    def _wait_voters(self, count: int) -> None:
        def has() -> bool:
            return any(
                found is not None and found.leads and found.voters == count
                for found in map(self._progress, range(COUNT))
            )

        wait_until(has, f"a cluster of {count}")

    def _is_level(self) -> bool:
        found = [self._progress(number) for number in range(COUNT)]
        leads = next((each for each in found if each is not None and each.leads), None)
        return leads is not None and all(
            each is not None and each.applied == leads.last for each in found
        )

    def _progress(self, number: int) -> Progress | None:
        if number not in self._processes:
            return None
        try:
            return self.service.progress(number)
        except (OSError, http.client.HTTPException, KeyError, ValueError):
            return None


class Serve:
    """`rafthttp serve` as shipped (`Service`)."""

    one_by_one = False

    def __init__(self, directory: Path) -> None:
        self.ports: Sequence[int] = free_ports(COUNT)
        self._directory = directory

    def command(self, number: int, *, again: bool) -> list[str]:
        """See `Service`; what was asked for at first changes nothing later."""
        del again
        command = [sys.executable, "-m", "rafthttp", "serve", "--id", f"n{number}"]
        command += ["--listen", f"127.0.0.1:{self.ports[number]}"]
        command += ["--data-dir", str(self._directory / f"n{number}")]
        if number == 0:
            return [*command, "--bootstrap"]
        return [*command, "--join", f"http://127.0.0.1:{self.ports[0]}"]

    def progress(self, number: int) -> Progress:
        """See `Service`."""
        status = _call("GET", self.ports[number], "/status")
        voters = [each for each in status["servers"] if each["suffrage"] == "voter"]
        return Progress(
            status["state"] == "leader",
            len(voters),
            status["applied_index"],
            status["last_index"],
        )

    def write(self, count: int) -> tuple[str, str, bytes]:
        """See `Service`."""
        return "PUT", f"/kv/probe-{count % 100}", b"x" * 64


class Go:
    """Go's hashicorp/raft with boltdb; only the leader takes writes (`Service`)."""

    one_by_one = True  # its join is not tried again

    def __init__(self, directory: Path) -> None:
        if not BINARY.exists():
            raise MissingPeerError("the Go node is not built: make interop")
        self.ports: Sequence[int] = free_ports(COUNT)
        self._directory = directory

    def command(self, number: int, *, again: bool) -> list[str]:
        """See `Service`."""
        command = [str(BINARY), "-id", f"n{number}", "-address", f"127.0.0.1:{self.ports[number]}"]
        command += ["-data-dir", str(self._directory / f"n{number}"), "-count"]
        command += ["-log-level", "ERROR"]
        if again:
            return command
        if number == 0:
            return [*command, "-bootstrap"]
        return [*command, "-join", f"127.0.0.1:{self.ports[0]}"]

    def progress(self, number: int) -> Progress:
        """See `Service`."""
        stats = _call("GET", self.ports[number], "/stats")
        servers = _call("GET", self.ports[number], "/configuration")["servers"]
        voters = [each for each in servers if each["suffrage"] == "voter"]
        return Progress(
            stats["state"] == "Leader", len(voters), stats["applied_index"], stats["last_index"]
        )

    def write(self, count: int) -> tuple[str, str, bytes]:
        """See `Service`."""
        del count
        return "POST", "/apply?timeout=1", b"x" * 64


class Etcd:
    """Etcd as Debian ships it (`Service`)."""

    one_by_one = False

    def __init__(self, directory: Path) -> None:
        if shutil.which("etcd") is None:
            raise MissingPeerError("etcd is not installed")
        ports = free_ports(2 * COUNT)
        self.ports: Sequence[int] = ports[:COUNT]
        self._peers = ports[COUNT:]
        self._directory = directory

    def command(self, number: int, *, again: bool) -> list[str]:
        """See `Service`; the initial cluster is not looked at again."""
        del again
        members = [f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(self._peers)]
        client = f"http://127.0.0.1:{self.ports[number]}"
        peer = f"http://127.0.0.1:{self._peers[number]}"
        command = ["etcd", "--name", f"n{number}", "--log-level", "error"]
        command += ["--data-dir", str(self._directory / f"n{number}")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        return [*command, "--initial-cluster", ",".join(members)]

    def progress(self, number: int) -> Progress:
        """See `Service`."""
        status = _call("POST", self.ports[number], "/v3/maintenance/status", b"{}")
        return Progress(
            status["leader"] == status["header"]["member_id"],
            COUNT,
            int(status["raftAppliedIndex"]),
            int(status["raftIndex"]),
        )

    def write(self, count: int) -> tuple[str, str, bytes]:
        """See `Service`."""
        del count
        return "POST", "/v3/kv/put", json.dumps({"key": "cHJvYmU=", "value": "eHh4" * 21}).encode()


@contextmanager
def running(make: Callable[[Path], Service], directory: Path | None) -> Generator[Members]:
    """A new cluster, and its files, for a while.

    Raises:
        MissingPeerError: it cannot be had here.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        members = Members(make(Path(name)))
        try:
            members.start_all()
            yield members
        finally:
            members.stop()


def _call(method: str, port: int, target: str, body: bytes | None = None) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", body, method=method)
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
