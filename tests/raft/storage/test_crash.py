"""A process that is killed while it writes: every acknowledged write is there, no write by half.

Run as a script, this file is the process that is killed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import LogBatch, LogWrite, ServerID
from rafthttp.testing.storage import DurableStore

ROUNDS = 30
SECONDS_MAX = 60  # measured 4 s; the rest is for a busy machine


def operation(store: DurableStore, number: int) -> None:
    """The `number`-th operation on a store: the same for equal stores, in every process."""
    chosen = random.Random(number)
    first, last = store.first_index(), store.last_index()
    held = last >= first
    term = number // 10
    if held and last - first > 400 and chosen.random() < 0.5:
        store.delete_prefix(first + chosen.randrange(300))
        return
    if chosen.random() < 0.1:
        # Term and vote change together, and never without each other (S2).
        store.set({b"term": b"%d" % number, b"vote": b"%d" % number})
        return
    reset_to = last + chosen.randrange(50) if chosen.random() < 0.01 else None
    truncate_from = None
    if reset_to is not None:
        last = reset_to
    elif held and chosen.random() < 0.1:
        truncate_from = max(first, last - chosen.randrange(20))
        last = truncate_from - 1
    records = [
        b"%d/%d " % (number, i) * chosen.choice([1, 10, 500])
        for i in range(chosen.choice([1, 1, 2, 30]))
    ]
    stable: dict[bytes, bytes | None] = {}
    if chosen.random() < 0.2:
        stable = {b"term": b"%d" % number, b"vote": b"%d" % number}
    batches = (LogBatch(last + 1, term, records),)
    store.write([LogWrite(stable, truncate_from, batches, reset_to)])


def state(store: DurableStore) -> object:
    """All there is to know of a store."""
    first, last = store.first_index(), store.last_index()
    records = store.get_records(first, last, 1 << 40) if last >= first else []
    terms = [store.term_at(index) for index in range(first, last + 1)]
    return first, last, terms, records, store.get(b"term"), store.get(b"vote")


def child(data_dir: Path, number: int) -> None:
    """Do operation after operation from `number` on; acknowledge each by its number."""
    store = SqliteStore.open(data_dir, ServerID("n1"))
    while True:
        operation(store, number)
        os.write(1, b"%d\n" % number)
        number += 1


def acknowledged(data_dir: Path, number: int, kill_after: int) -> int:
    """Let a child run until it has acknowledged some operations, kill it; the last acknowledged."""
    command = [sys.executable, __file__, str(data_dir), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(kill_after):
            assert process.stdout.readline(), "the child ended by itself"
        process.kill()
        # What it acknowledged between our decision and its death; a torn last line is no ack.
        rest = process.stdout.read().decode().rpartition("\n")[0].splitlines()
    return int(rest[-1]) if rest else number + kill_after - 1


def test_kill_at_random_moments(tmp_path: Path) -> None:
    """S1, S2, S3, S5, S8."""
    chosen = random.Random(5)
    model = MemoryStore()
    number = 0
    outcomes = {"acknowledged": 0, "one more": 0}
    start = time.monotonic()
    for round_number in range(ROUNDS):
        assert time.monotonic() - start < SECONDS_MAX
        last_acked = acknowledged(tmp_path / "data", number, chosen.choice([1, 2, 10, 100, 300]))
        while number <= last_acked:
            operation(model, number)
            number += 1
        # Every other time a copy is looked at, and the next child meets what this one left.
        data_dir = tmp_path / "data"
        if round_number % 2:
            data_dir = shutil.copytree(data_dir, tmp_path / str(round_number))
        store = SqliteStore.open(data_dir, ServerID("n1"))
        found = state(store)
        if found == state(model):
            outcomes["acknowledged"] += 1
        else:
            # The operation under way when the process died may be there, but as a whole.
            operation(model, number)
            number += 1
            assert found == state(model)
            outcomes["one more"] += 1
        store.close()
    assert model.last_index() > 1000
    assert outcomes["acknowledged"], outcomes


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
