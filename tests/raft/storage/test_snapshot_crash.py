"""Processes that die while they take snapshots: old or new, whole (S49). And full disks.

Run as a script, this file is the process that dies.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from rafthttp.raft.errors import StorageError
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.snapshots import open_newest
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

CONFIGURATION = Configuration((Server(ServerID("n1"), ServerAddress("127.0.0.1:8101")),))
RETAIN = 2
ROUNDS = 8
STEPS_MAX = 60  # there are fewer


def pieces(index: int) -> Iterator[bytes]:
    """The state at an index: the same in every process, of all sizes up to a megabyte."""
    chosen = random.Random(index)
    for _ in range(chosen.choice([0, 1, 3, 30])):
        yield hashlib.sha256(b"%d" % index).digest() * chosen.choice([1, 10, 1000])


def take(store: FileSnapshotStore, index: int) -> None:
    sink = store.create(index, 1, CONFIGURATION, 1)
    for piece in pieces(index):
        sink.write(piece)
    sink.close()


def check(directory: Path, *newest: int) -> int:
    """Open what a dead process left; its newest snapshot is one of these, and all are whole."""
    store = FileSnapshotStore(directory, RETAIN)
    metas = store.list()
    assert sorted(os.listdir(directory), reverse=True) == [meta.id for meta in metas]
    assert RETAIN <= len(metas) <= RETAIN + 1
    for meta in metas:
        with store.open(meta.id)[1] as source:
            assert source.read() == b"".join(pieces(meta.index))
    assert metas[0].index in newest
    return metas[0].index


# -- killed at any moment


def child_takes(directory: Path, index: int) -> None:
    """Snapshot after snapshot from `index` on; each third one is cancelled."""
    store = FileSnapshotStore(directory, RETAIN)
    while True:
        cancelled = store.create(index + 1000, 1, CONFIGURATION, 1)
        cancelled.write(b"x" * random.Random(index).choice([1, 1 << 20]))
        take(store, index)
        os.write(1, b"%d\n" % index)
        cancelled.cancel()
        index += 1


def killed_at_random(directory: Path, rounds: int, seed: int) -> int:
    chosen = random.Random(seed)
    store = FileSnapshotStore(directory, RETAIN)
    for index in range(1, RETAIN + 1):
        take(store, index)
    newest = RETAIN
    for _ in range(rounds):
        command = [sys.executable, __file__, "take", str(directory), str(newest + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(chosen.choice([1, 2, 10, 30])):
                newest = int(process.stdout.readline())
            # Somewhere in the next one, whose few milliseconds are spent in all of its steps.
            for _ in range(chosen.randrange(20_000)):
                pass
            process.kill()
            rest = process.stdout.read().decode().rpartition("\n")[0].splitlines()
        newest = int(rest[-1]) if rest else newest
        newest = check(directory, newest, newest + 1)
    return newest


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """S41, S49: what was acknowledged is there, and nothing partial is left after an open."""
    assert killed_at_random(tmp_path, ROUNDS, seed=11) > ROUNDS


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_moments_for_long(tmp_path: Path, seed: int) -> None:
    killed_at_random(tmp_path, 200, seed)


# -- killed before each step


def child_dies(directory: Path, step: int) -> None:
    """Take one snapshot, and die before its `step`-th system call that has to do with a name."""
    store = FileSnapshotStore(directory, RETAIN)
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir"}:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    take(store, RETAIN + 1)


def test_killed_before_every_step(tmp_path: Path) -> None:
    """S49. Each step's directory is made by a fork of one process; looked at here."""
    command = [sys.executable, __file__, "die", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = [
        check(tmp_path / str(step), RETAIN, RETAIN + 1) for step in range(1, int(done.stdout) + 1)
    ]
    assert outcomes == sorted(outcomes)
    assert outcomes.count(RETAIN) > 4, "before the rename"
    assert outcomes.count(RETAIN + 1) > 4, "and behind it, while the oldest is removed"


def fork_and_die(tmp_path: Path) -> None:
    for step in range(1, STEPS_MAX):
        directory = tmp_path / str(step)
        store = FileSnapshotStore(directory, RETAIN)
        for index in range(1, RETAIN + 1):
            take(store, index)
        child = os.fork()
        if child == 0:
            child_dies(directory, step)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(step)
            return
    raise AssertionError("the snapshot never ends")


# -- a full disk


@pytest.fixture
def disk(tmp_path: Path, cannot_mount: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A small file system of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=24", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        cannot_mount("A FULL DISK IS NOT TESTED for snapshots: needs the right to mount tmpfs")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def state_is(store: FileSnapshotStore, index: int, state: bytes) -> None:
    newest = open_newest(store)
    assert newest is not None
    with newest[1] as source:
        assert (newest[0].index, source.read()) == (index, state)


def attempt(store: FileSnapshotStore, index: int, size: int) -> bool:
    """Take a snapshot; False where the disk has no room for it."""
    try:
        sink = store.create(index, 1, CONFIGURATION, 1)
    except StorageError as error:
        assert "No space left on device" in str(error)  # noqa: PT017 - either outcome is right
        return False
    try:
        for _ in range(size >> 10):
            sink.write(b"x" * 1024)
        sink.close()
    except StorageError as error:
        assert "No space left on device" in str(error)  # noqa: PT017 - likewise
        with pytest.raises(StorageError, match="No space left on device"):
            sink.write(b"x" * (1 << 20))
        with pytest.raises(StorageError, match="No space left on device"):
            sink.close()
        sink.cancel()
        return False
    return True


def test_a_full_disk_leaves_the_old_one(disk: Path) -> None:
    """With every amount of space up to what is needed, in blocks: state, then meta, then fits."""
    store = FileSnapshotStore(disk / "snapshots", 1)
    assert attempt(store, 1, 1024)
    filler = disk / "filler"
    outcomes: list[bool] = []
    block_bytes = os.statvfs(disk).f_frsize
    for blocks in range(8):
        filler.write_bytes(b"x" * (os.statvfs(disk).f_bavail - blocks) * block_bytes)
        before = store.list()
        done = attempt(store, 2 + blocks, 4 * block_bytes)
        outcomes.append(done)
        if not done:
            assert store.list() == before
            assert os.listdir(disk / "snapshots") == [before[0].id]
            state_is(store, 1, b"x" * 1024)
        filler.unlink()
    assert outcomes == [False] * 5 + [True] * 3
    state_is(store, 9, b"x" * (4 * block_bytes))


def test_no_inodes_left(disk: Path) -> None:
    store = FileSnapshotStore(disk / "snapshots", 1)
    assert attempt(store, 1, 1024)
    outcomes: list[bool] = []
    for free in range(5):
        files = [disk / str(number) for number in range(os.statvfs(disk).f_favail - free)]
        for file in files:
            file.touch()
        done = attempt(store, 2 + free, 1024)
        outcomes.append(done)
        assert len(os.listdir(disk / "snapshots")) == 1
        for file in files:
            file.unlink()
    assert outcomes == [False] * 3 + [True] * 2


@pytest.mark.parametrize("size", [10, 1000, 1 << 20])
def test_a_file_that_may_not_grow(tmp_path: Path, size: int) -> None:
    """EFBIG in the middle of a write: of the meta, of the state at its end, and on the way."""
    store = FileSnapshotStore(tmp_path / "snapshots", 1)
    assert attempt(store, 1, 1024)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        sink = store.create(2, 1, CONFIGURATION, 1)
        with pytest.raises(StorageError, match="File too large"):  # noqa: PT012 - one of the two
            sink.write(b"x" * size)
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir(tmp_path / "snapshots")) == 1
    state_is(store, 1, b"x" * 1024)
    shutil.rmtree(tmp_path / "snapshots")


if __name__ == "__main__":
    if sys.argv[1] == "take":
        child_takes(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        fork_and_die(Path(sys.argv[2]))
