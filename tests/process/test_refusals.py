"""What `serve` refuses, each in one clear line and with an exit code that is not 0."""

import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import ServeCluster, command, eventually, run_cli

pytestmark = pytest.mark.process

MEMORY = ("--in-memory", "--bootstrap")


def refused(*arguments: str) -> str:
    """The line that `serve` refuses with."""
    done = run_cli("serve", *arguments, timeout=30)
    assert done.returncode in {1, 2}, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("rafthttp: ")
    return line.removeprefix("rafthttp: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--id", "a&b", *MEMORY), "server ID"),
        (("--id", "a\r\nb", *MEMORY), "server ID"),
        (("--id", "", *MEMORY), "server ID"),
        (("--id", "x" * 300, *MEMORY), "server ID"),
        (("--id", "n1", "--path", "raft", *MEMORY), "path"),
        (("--id", "n1", "--in-memory", "--join", "ftp://127.0.0.1:1"), "join URL"),
        (("--id", "n1", "--in-memory"), "--bootstrap to begin a cluster, or --join URL"),
    ],
)
def test_names_and_paths_that_cannot_be(arguments: tuple[str, ...], says: str) -> None:
    (port,) = free_ports(1)
    assert says in refused("--listen", f"127.0.0.1:{port}", *arguments)


def test_data_directories_that_cannot_be_used(cluster: ServeCluster, tmp_path: Path) -> None:
    n1, n2, n3 = cluster.nodes
    (port,) = free_ports(1)
    listen = ("--listen", f"127.0.0.1:{port}")
    owner = n1.process
    assert owner is not None
    line = refused("--id", "n1", *listen, "--data-dir", str(n1.data_dir))
    assert f"in use by process {owner.pid}" in line

    n2.terminate()
    line = refused("--id", "other", *listen, "--data-dir", str(n2.data_dir))
    assert "n2" in line
    assert "other" in line

    n3.terminate()
    with closing(sqlite3.connect(n3.data_dir / "raft.db")) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {version + 1}")
        database.commit()
    assert "knows formats up to" in refused("--id", "n3", *listen, "--data-dir", str(n3.data_dir))

    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below", Path("/proc/rafthttp")):
        line = refused("--id", "n1", *listen, "--data-dir", str(place), "--bootstrap")
        assert str(place) in line


def test_a_port_that_is_taken(cluster: ServeCluster, tmp_path: Path) -> None:
    address = cluster.nodes[0].address
    line = refused(
        "--id", "n9", "--listen", address, "--data-dir", str(tmp_path / "n9"), "--bootstrap"
    )
    assert line == f"cannot listen on {address}: address already in use"
    assert not (tmp_path / "n9").exists(), "nothing is written before the port is there"


def test_a_voter_in_memory_is_warned_of(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command("serve", "--id", "n1", "--listen", f"127.0.0.1:{port}", *MEMORY),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        eventually(lambda: "forgets its votes" in log.read_text(), "the warning")
    finally:
        process.terminate()
        assert process.wait(10) == 0


def test_sigterm_ends_a_node_within_two_seconds_even_while_a_write_waits(
    cluster: ServeCluster,
) -> None:
    n1, n2, n3 = cluster.nodes
    assert cluster.http.put(f"{n1.url}/kv/k", content=b"v").status_code == 204
    n2.kill()
    n3.kill()
    with socket.create_connection(split(n1.address)) as waiting:
        waiting.sendall(b"PUT /kv/waits HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        waiting.settimeout(10)
        # A second request on the way means that the first was read.
        assert cluster.http.get(f"{n1.url}/healthz").status_code == 200
        assert n1.terminate() < 2.0
        head = waiting.recv(4096)
    assert head.startswith((b"HTTP/1.1 503", b"HTTP/1.1 504"))
    assert "Traceback" not in n1.output()


@pytest.mark.parametrize("guard", [("--insecure",), ("--allow", "127.0.0.0/8")])
def test_a_guard_opens_a_port_that_others_can_reach(
    clusters: Callable[..., ServeCluster], guard: tuple[str, ...]
) -> None:
    cluster = clusters(2, guard)
    for node in cluster.nodes:
        port = node.address.rpartition(":")[2]
        cluster.options = [*guard, "--listen", f"0.0.0.0:{port}", "--advertise", node.address]
        entry = ["--bootstrap"] if node.id == "n1" else ["--join", cluster.nodes[0].url]
        cluster.start(node, *entry)
    cluster.wait_until_whole()
    assert cluster.http.put(f"{cluster.nodes[1].url}/kv/k", content=b"v").status_code == 204


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
