"""Real `rafthttp serve` processes for tests: started, killed, asked, and always gone at the end.

Knows the command line and the status page; polls conditions to a deadline, never sleeps for luck.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from rafthttp.testing.ports import free_ports

# On two busy cores an interpreter takes seconds to start; a healthy cluster needs a fraction.
DEADLINE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.03
_T = TypeVar("_T")


def eventually(probe: Callable[[], _T | None], what: str, timeout: float = DEADLINE_SECONDS) -> _T:
    """The first true value of `probe`.

    Raises:
        AssertionError: there was none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(_POLL_SECONDS)


def run_cli(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `rafthttp` to its end."""
    return subprocess.run(  # noqa: S603 - our own command
        command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
    )


def command(*arguments: str) -> list[str]:
    """The command line of `rafthttp` in this environment."""
    return [sys.executable, "-m", "rafthttp", *arguments]


@dataclass(slots=True)
class ServeProcess:
    """One node, running or not."""

    id: str
    address: str
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    extra: list[str] = field(default_factory=list[str])
    """Options of this node alone."""

    @property
    def url(self) -> str:
        """Where its HTTP API is."""
        return f"http://{self.address}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def output(self) -> str:
        """What it printed and logged."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to a running process."""
        assert self.process is not None, f"{self.id} was never started"
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(DEADLINE_SECONDS)

    def terminate(self) -> float:
        """SIGTERM; returns the seconds until its end.

        Raises:
            AssertionError: its exit code is not 0.
        """
        assert self.process is not None, f"{self.id} was never started"
        begin = time.monotonic()
        self.process.terminate()
        code = self.process.wait(DEADLINE_SECONDS)
        assert code == 0, f"{self.id} ended with {code}:\n{self.output()}"
        return time.monotonic() - begin


class ServeCluster:
    """Nodes `n1`, `n2`, … on free ports: `n1` bootstraps, each other joins through the one before.

    Args:
        directory: for data and logs.
        size: how many nodes.
        options: further options of `serve`, for every node.
        headers: sent with requests of this harness.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        options: Sequence[str] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.options = list(options)
        self.http = httpx.Client(timeout=10.0, trust_env=False, headers=headers)
        directory.mkdir(parents=True, exist_ok=True)
        self.nodes = [
            ServeProcess(
                f"n{number}",
                f"127.0.0.1:{port}",
                directory / f"n{number}",
                directory / f"n{number}.log",
            )
            for number, port in enumerate(free_ports(size), 1)
        ]

    def __getitem__(self, node_id: str) -> ServeProcess:
        return next(node for node in self.nodes if node.id == node_id)

    @property
    def running(self) -> list[ServeProcess]:
        """The nodes whose process lives."""
        return [node for node in self.nodes if node.running]

    def start(self, node: ServeProcess, *entry: str) -> None:
        """Start a node's process with `--bootstrap`, `--join URL`, or nothing (a restart)."""
        arguments = ["serve", "--id", node.id, "--listen", node.address]
        arguments += ["--data-dir", str(node.data_dir), *self.options, *node.extra, *entry]
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(  # noqa: S603 - our own command
                command(*arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_all(self) -> ServeProcess:
        """Begin the cluster; returns the leader once all are members."""
        for number, node in enumerate(self.nodes):
            if number == 0:
                self.start(node, "--bootstrap")
            else:
                self.start(node, "--join", self.nodes[number - 1].url)
        return self.wait_until_whole()

    def wait_until_whole(self, timeout: float = DEADLINE_SECONDS) -> ServeProcess:
        """Wait until all running nodes follow one leader and see all running nodes as voters."""
        return eventually(self._whole, "all nodes follow one leader", timeout)

    def _whole(self) -> ServeProcess | None:
        running = {node.id for node in self.running}
        leaders: set[str] = set()
        for node in self.running:
            status = self.status(node)
            if status is None or status["leader"] is None:
                return None
            voters = {s["id"] for s in status["servers"] if s["suffrage"] == "voter"}
            if not running <= voters:
                return None
            leaders.add(status["leader"]["id"])
        leader = leaders.pop() if len(leaders) == 1 else ""
        return self[leader] if leader in running else None

    def status(self, node: ServeProcess) -> dict[str, Any] | None:
        """A node's status page, or None while it does not answer."""
        try:
            answer = self.http.get(f"{node.url}/status", timeout=2.0)
            status: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return status if answer.status_code == 200 else None

    def leader(self, timeout: float = DEADLINE_SECONDS) -> ServeProcess:
        """A running node that says of itself that it leads."""

        def probe() -> ServeProcess | None:
            for node in self.running:
                status = self.status(node)
                if status is not None and status["state"] == "leader":
                    return node
            return None

        return eventually(probe, "a node leads", timeout)

    def logs(self) -> str:
        """What all nodes printed, for a failing test."""
        return "\n".join(f"--- {node.id}\n{node.output()}" for node in self.nodes)

    def close(self) -> None:
        """Kill what runs. Idempotent."""
        self.http.close()
        for node in self.nodes:
            node.kill()


@contextmanager
def serve_cluster(
    directory: Path,
    size: int = 3,
    options: Sequence[str] = (),
    headers: dict[str, str] | None = None,
) -> Generator[ServeCluster]:
    """A `ServeCluster` that is not started; afterwards its processes are gone in any case."""
    cluster = ServeCluster(directory, size, options, headers)
    try:
        yield cluster
    except BaseException:
        sys.stderr.write(cluster.logs() + os.linesep)
        raise
    finally:
        cluster.close()
