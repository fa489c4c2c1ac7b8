"""System calls of a real store, seen by strace: one flush a write, and one before anything is told.

Run as a script, this file is the process that is watched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID


def say(text: str) -> None:
    os.write(1, text.encode())


def watched(data_dir: Path) -> None:
    """Open, report, write in several ways, and die."""
    store = SqliteStore.open(data_dir, ServerID("n1"))
    say(f"opened {store.last_index()}")
    first = store.last_index() + 1
    store.write([LogWrite({b"vote": b"n2"}, batches=(LogBatch(first, 1, [b"x"] * 5),))])
    say("appended")
    store.write([LogWrite({}, batches=(LogBatch(first + 5 + i, 1, [b"x"]),)) for i in range(20)])
    say("appended twenty")
    store.write([LogWrite({}, first + 3, (LogBatch(first + 3, 1, [b"y"]),))])
    say("truncated")
    store.set({b"vote": b"n3", b"term": b"2"})
    say("set")
    os.kill(os.getpid(), signal.SIGKILL)


def trace(data_dir: Path, log: Path) -> list[str]:
    """What the process did: `flush` for each flush of the wal, and what it said, in order."""
    command = ["strace", "-f", "-y", "-s", "64", "-e", "trace=fsync,fdatasync,write"]
    subprocess.run(
        [*command, "-o", log, sys.executable, __file__, data_dir],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    events: list[str] = []
    for line in log.read_text().splitlines():
        if re.search(r"f(data)?sync\(\d+<[^>]*-wal>\) += 0", line):
            events.append("flush")
        elif said := re.search(r'write\(1<[^>]*>, "([a-z0-9 ]+)"', line):
            events.append(said.group(1))
    return events


def cannot_run(why: str) -> NoReturn:
    if os.environ.get("RAFTHTTP_REQUIRE_STRACE") == "1":
        pytest.fail(why)
    pytest.skip(f"{why} (.ci/run installs it)")


def test_one_flush_a_write_and_one_before_the_last_index_is_told(tmp_path: Path) -> None:
    """Guard 2: what a killed process left in the page cache is durable before it is reported."""
    if shutil.which("strace") is None:
        cannot_run("needs strace")
    writes = ["flush", "appended", "flush", "appended twenty", "flush", "truncated", "flush", "set"]
    created = trace(tmp_path / "data", tmp_path / "first")
    if not created:
        cannot_run("needs the right to trace")
    # Creating flushes more often: the header of a new wal, the schema, the first commit.
    assert "flush" in created[: created.index("opened 0")]
    assert created[created.index("opened 0") + 1 :] == writes
    assert trace(tmp_path / "data", tmp_path / "second") == ["flush", "opened 4", *writes]


if __name__ == "__main__":
    watched(Path(sys.argv[1]))
