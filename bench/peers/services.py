"""Services over HTTP under wrk: the key-value application of this package, and etcd."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import ours
from bench.peers.base import Load, Make, MissingPeerError, Sample, free_ports, wait_until

SCRIPTS = Path(__file__).parent.parent / "wrk"
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def wrk(url: str, script: str, load: Load) -> Sample:
    """Requests a second; any answer but a success is an error.

    Raises:
        RuntimeError: some answers were failures.
    """
    command = ["wrk", "-t1", f"-c{load.clients}", f"-d{math.ceil(load.seconds)}s", "--latency"]
    command += ["--timeout", "10s", "-s", str(SCRIPTS / script), url]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if failed := re.search(r"Non-2xx or 3xx responses: (\d+)", out):
        raise RuntimeError(f"{failed[1]} requests to {url} failed")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert rate is not None, out

    def latency(percent: int) -> float:
        found = re.search(rf"{percent}%\s+([\d.]+)([a-z]+)", out)
        assert found is not None, out
        return float(found[1]) * _UNITS_MS[found[2]]

    return Sample(float(rate[1]), latency(50), latency(99))


class HttpCluster:
    """Processes with one URL each, loaded at the leader's (`Cluster`)."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], script: str) -> None:
        self._processes = list(processes)
        self._script = script
        self.leader_url = ""

    def bench(self, load: Load) -> Sample:
        """Load the leader (`Cluster`)."""
        return wrk(self.leader_url, self._script, load)

    def pids(self) -> Sequence[int]:
        """The processes (`Cluster`)."""
        return [each.pid for each in self._processes]

    def lead(self, position: int, url: str) -> None:
        """That process leads: it comes first."""
        self._processes.insert(0, self._processes.pop(position))
        self.leader_url = url

    def stop(self) -> None:
        """End all processes (`Cluster`)."""
        for each in self._processes:
            each.terminate()
        for each in self._processes:
            try:
                each.wait(10)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


def serve(name: str, script: str, *, compiled: bool) -> Make:
    """Three `rafthttp serve` processes with sqlite and fsync, as shipped."""

    def start(directory: Path) -> HttpCluster:
        _need("wrk")
        ports = free_ports(3)
        processes: list[subprocess.Popen[bytes]] = []
        for number, port in enumerate(ports):
            command = [sys.executable, "-m", "rafthttp", "serve", "--id", f"n{number}"]
            command += ["--listen", f"127.0.0.1:{port}", "--data-dir", str(directory / str(number))]
            if number == 0:
                command.append("--bootstrap")
            else:
                command += ["--join", f"http://127.0.0.1:{ports[0]}"]
            processes.append(_quiet(command, ours.environment(compiled=compiled)))
        cluster = HttpCluster(processes, script)

        def all_in() -> bool:
            status = _get(f"http://127.0.0.1:{ports[0]}/status")
            servers: list[dict[str, str]] = status.get("servers", [])
            return len([each for each in servers if each["suffrage"] == "voter"]) == 3

        wait_until(all_in, "the joining of three nodes")
        cluster.lead(0, f"http://127.0.0.1:{ports[0]}")
        wrk(cluster.leader_url, "kv_put.lua", _FILL)
        return cluster

    return Make(name, start)


def etcd(name: str, script: str) -> Make:
    """Three etcd processes with fsync, as Debian ships it."""

    def start(directory: Path) -> HttpCluster:
        _need("wrk")
        _need("etcd")
        clients, peers = free_ports(3), free_ports(3)
        initial = ",".join(f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        processes: list[subprocess.Popen[bytes]] = []
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            command = ["etcd", "--name", f"n{number}", "--data-dir", str(directory / str(number))]
            for kind, port in (("client", client), ("peer", peer)):
                urls = f"http://127.0.0.1:{port}"
                command += [f"--listen-{kind}-urls", urls]
                advertise = "--advertise-client-urls" if kind == "client" else ""
                command += [advertise or "--initial-advertise-peer-urls", urls]
            command += ["--initial-cluster", initial, "--log-level", "error"]
            processes.append(_quiet(command))
        cluster = HttpCluster(processes, script)

        def has_leader() -> bool:
            for position, port in enumerate(clients):
                status = _post(f"http://127.0.0.1:{port}/v3/maintenance/status")
                leader = status.get("leader")
                if leader and leader == status["header"]["member_id"]:
                    cluster.lead(position, f"http://127.0.0.1:{port}")
                    return True
            return False

        wait_until(has_leader, "etcd's election")
        wrk(cluster.leader_url, "etcd_put.lua", _FILL)
        return cluster

    return Make(name, start)


_FILL = Load(clients=64, seconds=1, size=64)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise MissingPeerError(f"{program} is not installed")


def _quiet(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)


def _get(url: str) -> dict[str, Any]:
    return _call(urllib.request.Request(url))


def _post(url: str) -> dict[str, Any]:
    return _call(urllib.request.Request(url, data=b"{}"))


def _call(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError:
        return {}
