"""`rafthttp cluster`, which `make run` calls: what it prints works, and it leaves nothing."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import command, eventually

pytestmark = pytest.mark.process


class Running:
    """A `rafthttp cluster` and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, port: int) -> None:
        self.process = process
        self.output = output
        self.port = port

    def text(self) -> str:
        return self.output.read_text()

    def wait_until_introduced(self) -> str:
        eventually(lambda: "Ctrl-C stops them." in self.text(), "the cluster is introduced")
        return self.text()

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def running_cluster(tmp_path: Path, *options: str) -> Generator[Running]:
    port = free_ports(3)[0]
    output = tmp_path / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command("cluster", "--nodes", "3", "--port", str(port), *options),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    running = Running(process, output, port)
    children: list[int] = []
    try:
        eventually(lambda: len(running.children()) == 3, "three processes")
        children = running.children()
        yield running
    finally:
        process.kill()
        process.wait(10)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_introduces_itself_its_curl_lines_work_and_a_signal_stops_all(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running_cluster(tmp_path) as running:
        text = running.wait_until_introduced()
        assert re.search(r"^n[123] leads a cluster of 3\.$", text, re.MULTILINE)
        for offset in range(3):
            assert f"n{offset + 1}  http://127.0.0.1:{running.port + offset}" in text
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("curl")]
        assert len(lines) == 4
        answers = [
            subprocess.run(
                ["curl", "-sS", "--fail", *shlex.split(line)[1:]],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout
            for line in lines
        ]
        assert answers[1] == "hello"
        assert '"greeting"' in answers[2]
        assert '"n3"' in answers[3]

        children = running.children()
        begin = time.monotonic()
        running.process.send_signal(number)
        code = running.process.wait(10)
        assert time.monotonic() - begin < 2.0
        assert code == 0
        assert not [pid for pid in children if is_alive(pid)]
        assert "Traceback" not in running.text()


def test_a_killed_parent_leaves_no_orphans(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as running:
        running.wait_until_introduced()
        children = running.children()
        running.process.kill()
        running.process.wait(10)
        eventually(lambda: not [p for p in children if is_alive(p)], "no orphans", 5)


def test_a_dead_child_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as running:
        running.wait_until_introduced()
        victim = running.children()[2]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: "n3 was killed by SIGKILL" in running.text(), "the report")
        assert running.process.poll() is None
        assert len(running.children()) == 2


def test_a_taken_port_is_one_line_and_nothing_stays(tmp_path: Path) -> None:
    with running_cluster(tmp_path, "--data-dir", str(tmp_path / "a")) as first:
        first.wait_until_introduced()
        second = subprocess.run(
            command("cluster", "--port", str(first.port), "--data-dir", str(tmp_path / "b")),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert "address already in use; choose another with --port (make run PORT=...)" in line


def test_a_data_directory_given_keeps_the_data_for_the_next_run(tmp_path: Path) -> None:
    """S61: the flags of the first start are given again."""
    data_dir = str(tmp_path / "data")

    def curl(port: int, *arguments: str) -> str:
        done = subprocess.run(
            ["curl", "-sS", "--fail", *arguments, f"http://127.0.0.1:{port}/kv/kept"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    # The nodes' addresses are part of the cluster, so the second run takes the same ports.
    with running_cluster(tmp_path, "--data-dir", data_dir) as first:
        first.wait_until_introduced()
        curl(first.port, "-X", "PUT", "--data-binary", "value")
        first.process.terminate()
        assert first.process.wait(10) == 0
    for options, says in (
        (("--port", str(first.port - 1)), f"give --port {first.port}"),
        (("--port", str(first.port), "--nodes", "2"), "give --nodes 3"),
    ):
        other = subprocess.run(
            command("cluster", *options, "--data-dir", data_dir),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert other.returncode == 1
        (line,) = other.stderr.splitlines()
        assert says in line
    again = subprocess.Popen(
        command("cluster", "--port", str(first.port), "--data-dir", data_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert again.stdout is not None
        for line in again.stdout:
            if line.startswith("Ctrl-C"):
                break
        assert curl(first.port + 2) == "value"
    finally:
        again.terminate()
        again.communicate(timeout=10)
    assert again.returncode == 0
