"""A leader paused, a lost quorum, a removed node that knocks, floods, a full disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from rafthttp.testing.hostile import (
    connect,
    descriptors,
    exchange,
    flood,
    open_stream,
    peak_bytes,
    read_to_end,
    reset_peak,
    resident_bytes,
)
from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually, run_cli

pytestmark = pytest.mark.process

MIB = 1 << 20


def put(cluster: ServeCluster, node: ServeProcess, key: str, value: str = "v") -> int:
    return cluster.http.put(f"{node.url}/kv/{key}", content=value.encode()).status_code


def term_of(cluster: ServeCluster, node: ServeProcess) -> int:
    status = cluster.status(node)
    assert status is not None
    return int(status["term"])


def pid_of(node: ServeProcess) -> int:
    assert node.process is not None
    return node.process.pid


# -- a leader that is stopped for a while


READS = 60


async def requests_at_once(
    node: ServeProcess, keys: list[str]
) -> tuple[list[httpx.Response], dict[str, httpx.Response]]:
    """Linearizable reads of `k` and a write of each key, answered once the process runs again.

    All of them lie in the sockets of the stopped process: they are the first that it finds.
    """
    count = READS + len(keys)
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(timeout=20, trust_env=False, limits=limits) as client:
        writes = [client.put(f"{node.url}/kv/{key}", content=b"woken") for key in keys]
        reads = [client.get(f"{node.url}/kv/k") for _ in range(READS)]
        answering = asyncio.gather(*reads, *writes)
        await asyncio.to_thread(
            eventually, lambda: unread_sockets(node.address) >= count, "the requests wait"
        )
        node.send(signal.SIGCONT)
        answers = await answering
    return answers[:READS], dict(zip(keys, answers[READS:], strict=True))


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_a_leader_that_was_stopped_serves_no_stale_read(cluster: ServeCluster, rounds: int) -> None:
    """S69, S71: what the next leader acknowledged meanwhile is what the old one answers, or 503.

    What it acknowledged itself, before and after, is on every node; what it refused is on none.
    """
    woken: dict[str, httpx.Response] = {}
    for number in range(rounds):
        old = cluster.wait_until_whole()
        assert put(cluster, old, "k", f"old-{number}") == 204
        assert put(cluster, old, f"kept-{number}") == 204
        old.send(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            others = [node for node in cluster.nodes if node is not old]
            new = eventually(lambda o=others: leader_among(cluster, o), "another leader")  # type: ignore[misc]  # mypy infers no lambda with defaults
            assert put(cluster, new, "k", f"new-{number}") == 204
            eventually(lambda b=begin: time.monotonic() - b > 3.0, "three election timeouts")  # type: ignore[misc]  # likewise
            keys = [f"woken-{number}-{i}" for i in range(20)]
            reads, writes = asyncio.run(requests_at_once(old, keys))
        finally:
            old.send(signal.SIGCONT)
        assert {answer.status_code for answer in reads} <= {200, 503}
        assert {a.text for a in reads if a.status_code == 200} <= {f"new-{number}"}
        woken |= writes
        cluster.wait_until_whole()
        for node in cluster.nodes:
            assert cluster.http.get(f"{node.url}/kv/k").text == f"new-{number}"

    kept = {f"kept-{number}" for number in range(rounds)}
    acknowledged = {key for key, answer in woken.items() if answer.status_code == 204}
    refused = {key for key, answer in woken.items() if answer.status_code == 503}
    assert {woken[key].json()["outcome"] for key in refused} <= {"definite"}
    unknown = {key for key, answer in woken.items() if answer.status_code == 504}
    assert acknowledged | refused | unknown == woken.keys()
    for node in cluster.nodes:
        listed = cluster.http.get(f"{node.url}/kv?limit=10000").json()["keys"]
        present = {item["key"] for item in listed}
        assert kept | acknowledged <= present, node.id
        assert not refused & present, node.id


def leader_among(cluster: ServeCluster, nodes: list[ServeProcess]) -> ServeProcess | None:
    for node in nodes:
        status = cluster.status(node)
        if status is not None and status["state"] == "leader":
            return node
    return None


def unread_sockets(address: str) -> int:
    """How many connections to a local port have bytes that nobody has read, as the kernel tells."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    established = (f for f in (row.split() for row in rows) if f[1].endswith(port) and f[3] == "01")
    return sum(int(f[4].partition(":")[2], 16) > 0 for f in established)


# -- a lost quorum


def test_two_of_three_down_and_back(cluster: ServeCluster) -> None:
    leader = cluster.leader()
    first, second = (node for node in cluster.nodes if node is not leader)
    assert put(cluster, leader, "k", "kept") == 204
    first.kill()
    second.kill()
    write = cluster.http.put(f"{leader.url}/kv/k", content=b"open", timeout=8)
    outcome = {503: "definite", 504: "unknown"}[write.status_code]
    assert write.json()["outcome"] == outcome
    later = cluster.http.put(f"{leader.url}/kv/later", content=b"x", timeout=8)
    assert (later.status_code, later.json()["outcome"]) == (503, "definite")
    read = cluster.http.get(f"{leader.url}/kv/k", timeout=8)
    assert read.status_code == 503
    assert cluster.http.get(f"{leader.url}/kv/k?consistency=stale").text == "kept"
    assert cluster.http.get(f"{leader.url}/healthz").json()["leader_known"] is False

    # Restarted with the flags of their first start: they change nothing.
    cluster.start(first, "--bootstrap")
    cluster.start(second, "--join", "http://127.0.0.1:9")
    cluster.wait_until_whole()
    pages = [page for node in cluster.nodes if (page := cluster.status(node))]
    assert len({page["cluster_id"] for page in pages}) == 1
    assert all(len(page["servers"]) == 3 for page in pages)
    value = cluster.http.get(f"{first.url}/kv/k").text
    assert value in (("kept", "open") if outcome == "unknown" else ("kept",))
    assert cluster.http.get(f"{second.url}/kv/later").status_code == 404


def test_a_removed_node_that_goes_on_knocking_disturbs_nobody(cluster: ServeCluster) -> None:
    """S53: it was removed by a request to another node, and its process knows of nothing."""
    leader = cluster.leader()
    removed, other = (node for node in cluster.nodes if node is not leader)
    removed.send(signal.SIGSTOP)  # it does not even hear of its removal
    term = term_of(cluster, leader)
    request = f"DELETE /raft?id={removed.id} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert exchange(leader.address, request.encode()).startswith(b"HTTP/1.1 200")
    removed.send(signal.SIGCONT)
    knocks = eventually(
        lambda: removed.output().count("is candidate") >= 2, "it campaigns more than once"
    )
    assert knocks
    for number in range(50):
        assert put(cluster, other, f"calm-{number}") == 204
    assert cluster.leader() is leader
    assert term_of(cluster, leader) == term == term_of(cluster, other)
    assert term_of(cluster, removed) == term, "its own term does not rise"
    assert put(cluster, removed, "no") in (204, 503)


# -- floods


@pytest.fixture
def guarded(clusters: Callable[..., ServeCluster], tmp_path: Path) -> ServeCluster:
    (tmp_path / "token").write_text("right")
    made = clusters(3, ("--token-file", str(tmp_path / "token")), {"Authorization": "Bearer right"})
    made.start_all()
    return made


@pytest.mark.parametrize("opens", [5000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_unauthenticated_opens_change_no_leader(guarded: ServeCluster, opens: int) -> None:
    leader = guarded.leader()
    term, files = term_of(guarded, leader), descriptors(pid_of(leader))
    head = b"GET /raft HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"
    host, _, port = leader.address.rpartition(":")

    async def open_all() -> list[bytes]:
        room = asyncio.Semaphore(200)

        async def one() -> bytes:
            async with room:
                reader, writer = await asyncio.open_connection(host, int(port))
                try:
                    writer.write(head)
                    return await reader.readline()
                finally:
                    writer.close()
                    await writer.wait_closed()

        return await asyncio.gather(*(one() for _ in range(opens)))

    assert set(asyncio.run(open_all())) == {b"HTTP/1.1 401 Unauthorized\r\n"}
    assert put(guarded, leader, "after") == 204
    assert guarded.leader() is leader
    assert term_of(guarded, leader) == term
    eventually(lambda: descriptors(pid_of(leader)) <= files + 3, "descriptors are given back")


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default:THE PEAK")
def test_a_gigabyte_of_garbage(cluster: ServeCluster) -> None:
    """Refused, or read past in bounded time and memory; behind a head of any shape."""
    leader = cluster.leader()
    victim = next(node for node in cluster.nodes if node is not leader)
    term, memory = term_of(cluster, leader), resident_bytes(pid_of(victim))
    has_peak = reset_peak(pid_of(victim))
    if not has_peak:
        warnings.warn("THE PEAK OF MEMORY IS NOT TESTED: this kernel tells none", stacklevel=1)

    def assert_peak(head: bytes) -> None:
        if has_peak:
            grown = peak_bytes(pid_of(victim)) - memory
            assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB more at the peak behind {head!r}"
            assert reset_peak(pid_of(victim))

    noise = os.urandom(MIB)
    chunk = b"100000\r\n" + noise + b"\r\n"
    heads = [
        (b"", noise),
        (b"GET /", b"a" * MIB),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"a" * MIB),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", b"a: b\r\n" * 170_000),
        (b"PUT /kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741824\r\n\r\n", noise),
        (b"PUT /kv/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", chunk),
        (b"PUT /raft?op=apply HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", chunk),
        (
            b"POST /raft HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"a: b\r\n" * 170_000,
        ),
    ]
    for head, piece in heads:
        first: Iterator[bytes] = iter([head])
        begin = time.monotonic()
        flood(victim.address, lambda f=first, p=piece: next(f, p), 1 << 30, 20)  # type: ignore[misc]  # mypy infers no lambda with defaults
        assert time.monotonic() - begin < 15, head
        assert term_of(cluster, leader) == term, head
        assert_peak(head)
    with open_stream(victim.address) as stream:
        with suppress(ConnectionError):
            for _ in range(1024):
                stream.sendall(noise)
        assert read_to_end(stream) == b""
    assert_peak(b"the 101")
    # Measured: 1 MiB where nothing else runs, and no more after 150 rounds of the last head. On a
    # busy machine the allocator may keep what two bodies took before they were refused: 16 MiB of
    # a value, 17 MiB of a forwarded call.
    eventually(lambda: resident_bytes(pid_of(victim)) < memory + 40 * MIB, "memory does not grow")
    assert term_of(cluster, leader) == term
    assert cluster.leader() is leader
    assert put(cluster, victim, "after") == 204


# -- the end


def test_sigterm_with_every_kind_of_client_hanging(cluster: ServeCluster) -> None:
    """No hang over five seconds, no traceback, exit code 0."""
    for node in cluster.nodes:
        with ExitStack() as stack:

            def opened(request: bytes, at: str = node.address, on: ExitStack = stack) -> None:
                on.enter_context(connect(at)).sendall(request)

            opened(b"")
            opened(b"GET /raft HTTP/1.1\r\nHost: h\r\nUpgr")
            opened(b"PUT /kv/k HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
            opened(b"PUT /raft?op=apply HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
            opened(b"GET /kv?limit=10000 HTTP/1.1\r\nHost: h\r\n\r\n" * 200)
            opened(b"POST /raft?id=n9&address=10.255.255.1:9 HTTP/1.1\r\nHost: h\r\n\r\n")
            for _ in range(3):
                stack.enter_context(open_stream(node.address))
            half = stack.enter_context(open_stream(node.address))
            half.sendall(b"\x01\x86\xa4Addr")
            assert cluster.http.get(f"{node.url}/healthz").status_code == 200
            assert node.terminate() < 5.0
        assert "Traceback" not in node.output(), node.output()
        assert "ERROR" not in node.output(), node.output()


def test_a_data_directory_that_is_full_or_cannot_be_written(
    tmp_path: Path, cannot_mount: Callable[[str], NoReturn]
) -> None:
    """One clear line each."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "rafthttp-test", str(disk)],
        capture_output=True,
        check=False,
    )
    if mount.returncode != 0:
        cannot_mount("A FULL DATA DIRECTORY IS NOT TESTED: needs the right to mount tmpfs")
    try:
        with (disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        (port,) = free_ports(1)
        arguments = ("serve", "--id", "n1", "--listen", f"127.0.0.1:{port}", "--bootstrap")
        full = run_cli(*arguments, "--data-dir", str(disk / "n1"), timeout=30)
        subprocess.run(
            ["mount", "-o", "remount,ro", str(disk)],
            check=True,
        )
        closed = run_cli(*arguments, "--data-dir", str(disk / "n2"), timeout=30)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for done in (full, closed):
        assert done.returncode == 1, done
        (line,) = done.stderr.splitlines()
        assert line.startswith("rafthttp: "), line
        assert str(disk) in line
    assert "full" in full.stderr or "No space left" in full.stderr
    assert "read-only" in closed.stderr.lower()
