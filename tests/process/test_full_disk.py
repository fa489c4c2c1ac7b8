"""The disk of one node of three is full while it serves: the others go on, and it comes back.

The way back is the one that docs/how-to/full-disk.md tells: free space, and start the node again.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import httpx
import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually, run_cli

pytestmark = pytest.mark.process

VALUE = b"x" * 40_000
NO_SPACE: Final = "No space left on device"
OFTEN = ("--snapshot-threshold=20", "--snapshot-interval=0.2", "--trailing-logs=5")


@pytest.fixture
def disk(tmp_path: Path, cannot_mount: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A small file system."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "rafthttp-test", str(mounted)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        cannot_mount(f"A FULL DISK UNDER A SERVER IS NOT TESTED: {mount.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def fill(disk: Path) -> Path:
    """Not a byte more goes in."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


class Writing:
    """Writes keys, each until some node takes it, and remembers them."""

    def __init__(self, cluster: ServeCluster) -> None:
        self._cluster = cluster
        self.acknowledged: list[str] = []

    def do(self, prefix: str, count: int, among: Sequence[ServeProcess]) -> None:
        for number in range(count):
            key = f"{prefix}-{number}"
            eventually(lambda k=key: self._put(among, k), f"{key} is written")  # type: ignore[misc]  # mypy infers no lambda with defaults
            self.acknowledged.append(key)

    def _put(self, among: Sequence[ServeProcess], key: str) -> bool:
        for node in among:
            with suppress(httpx.HTTPError):
                answer = self._cluster.http.put(f"{node.url}/kv/{key}", content=VALUE)
                if answer.status_code == 204:
                    return True
        return False


def last_line(node: ServeProcess) -> str:
    return node.output().splitlines()[-1]


def has_ended(node: ServeProcess) -> str:
    """By itself, and not well; its last words."""
    assert node.process is not None
    assert node.process.wait(30) == 1
    assert last_line(node).startswith(f"rafthttp: {node.id} takes no part any more: ")
    return last_line(node)


def assert_level(cluster: ServeCluster, node: ServeProcess, keys: Sequence[str]) -> None:
    """It has all that was acknowledged."""
    leader = cluster.wait_until_whole()

    def level() -> bool:
        here, there = cluster.status(node), cluster.status(leader)
        if here is None or there is None:
            return False
        return bool(here["applied_index"] == there["last_index"])

    eventually(level, f"{node.id} has all")
    for key in keys:
        answer = cluster.http.get(f"{node.url}/kv/{key}?consistency=stale")
        assert (answer.status_code, answer.content) == (200, VALUE), key


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_one_of_three_has_a_full_disk(
    disk: Path, clusters: Callable[..., ServeCluster], who: str
) -> None:
    """S6, S7. The log is compacted behind the one that led: it needs a snapshot then."""
    cluster = clusters(3, OFTEN if who == "leader" else ())
    node = cluster["n2"]
    others = [each for each in cluster.nodes if each is not node]
    node.data_dir = disk / node.id
    cluster.start_all()
    wanted = node if who == "leader" else others[0]

    def wanted_leads() -> bool:
        if cluster.leader() is wanted:
            return True
        run_cli("transfer", node.url, "--to", wanted.id)
        return False

    eventually(wanted_leads, f"{wanted.id} leads")
    writing = Writing(cluster)
    writing.do("before", 20, cluster.nodes)

    filler = fill(disk)
    for number in range(400):
        if not node.running:
            break
        writing.do(f"full-{number}", 1, others)
    assert "full" in has_ended(node)
    writing.do("without", 60, others)

    # Nothing was done about it: it says so once more, or, where the others have compacted what it
    # lacks, waits for room for a snapshot.
    said = node.output().count(NO_SPACE)
    cluster.start(node)
    eventually(
        lambda: not node.running or node.output().count(NO_SPACE) > said, "it says that it is full"
    )
    if not node.running:
        assert "full" in has_ended(node)
    writing.do("still-without", 5, others)

    filler.unlink()
    if not node.running:
        cluster.start(node)
    cluster.wait_until_whole()
    writing.do("again", 5, [node])
    assert_level(cluster, node, writing.acknowledged)
