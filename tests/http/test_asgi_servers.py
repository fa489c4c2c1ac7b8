"""Three applications on three ports, one cluster, under each ASGI server, as real processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.web_servers import COMMANDS, without

APP = "rafthttp.testing.asgi_app:app"
PATIENCE_SECONDS = 10.0

pytestmark = pytest.mark.process


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(server: str, name: str, directory: Path, join: str, inside: str) -> Generator[Served]:
    (port,) = free_ports(1)
    log = directory / f"{name}.log"
    environment = os.environ | {
        "RAFT_ID": name,
        "RAFT_ADDRESS": f"127.0.0.1:{port}",
        "RAFT_JOIN": join,
        "RAFT_INSIDE": inside,
    }
    with log.open("wb") as output:
        command = [sys.executable, "-m", *COMMANDS[server](port, APP)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield Served(process, port, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def until(condition: Callable[[], bool], told: list[Served]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    logs = "\n".join(one.log.read_text()[-3000:] for one in told)
    raise AssertionError(f"not within {PATIENCE_SECONDS} s\n{logs}")


@pytest.mark.parametrize(
    ("server", "inside"),
    [("uvicorn", "fastapi"), ("hypercorn", "django"), ("granian", "starlette")],
)
def test_a_cluster_over_websocket(
    server: str, inside: str, tmp_path: Path, hypercorns_own: Callable[[str], set[str]]
) -> None:
    """Votes, an entry of 3 MB, forwards, reads; then SIGTERM with streams open on both sides."""
    with ExitStack() as stack, httpx.Client(timeout=10.0) as http:
        nodes: list[Served] = []

        def start(name: str) -> None:
            join = nodes[-1].url if nodes else ""
            nodes.append(stack.enter_context(served(server, name, tmp_path, join, inside)))
            voters = len(nodes)
            wanted = {"leader": "n1", "voters": voters}
            until(lambda: http.get(f"{nodes[-1].url}/state").json() == wanted, nodes)

        for name in ("n1", "n2", "n3"):
            start(name)
        value = os.urandom(3 << 20)
        answer = http.put(f"{nodes[2].url}/value", content=value)
        assert (answer.status_code, answer.json()) == (200, len(value))
        for node in nodes:
            answer = http.get(f"{node.url}/value")
            assert answer.text == hashlib.sha256(value).hexdigest()
            assert answer.headers["X-Guarded"] == "yes"
        if inside == "django":
            assert http.get(f"{nodes[0].url}/hello").text == "hello /hello"
        # A server that kept its socket said 426 to each raw dial; what carried all this is else.
        refused = http.get(
            f"{nodes[0].url}/raft", headers={"Upgrade": "raft", "Connection": "Upgrade"}
        )
        assert (refused.status_code, refused.headers["Upgrade"]) == (426, "websocket")
        for node in (nodes[1], nodes[0], nodes[2]):  # a follower, the leader, the last one
            began = time.monotonic()
            node.process.send_signal(signal.SIGTERM)
            node.process.wait(5.0)
            assert time.monotonic() - began < 5.0
            told = node.log.read_text()
            if server == "hypercorn":
                told = without(hypercorns_own(server), told)
            assert "Traceback" not in told, told
