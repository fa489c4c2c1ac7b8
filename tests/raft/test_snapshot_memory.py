"""A snapshot many times larger than the memory it may take, between two processes over sockets.

Both read and write in chunks: what a server holds of a snapshot does not grow with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from rafthttp.testing.ports import free_ports

_PROGRAM: Final = '''
import asyncio, hashlib, random, sys
from pathlib import Path
from rafthttp import (
    FSM, Config, Configuration, FileSnapshotStore, NetworkTransport, Raft, Server, SqliteStore,
    TCPStreamLayer, bootstrap_cluster,
)

ID, OWN, OTHER, DIRECTORY, MIB = sys.argv[1:]
BLOCK = random.Random(1).randbytes(1 << 20)

class Large(FSM):
    """As large as it is told to be; remembers only the digest of what it was restored from."""

    def __init__(self):
        self.digest = None

    def apply(self, log):
        return log.index

    def snapshot(self):
        return self

    def persist(self, sink):
        digest = hashlib.sha256()
        for number in range(int(MIB)):
            piece = number.to_bytes(8, "big") + BLOCK[8:]
            digest.update(piece)
            sink.write(piece)
        self.digest = digest.hexdigest()

    def release(self):
        pass

    def restore(self, source):
        digest = hashlib.sha256()
        while piece := source.read(1 << 16):
            digest.update(piece)
        self.digest = digest.hexdigest()

def memory(field):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) >> 10

async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    fsm = Large()
    store = SqliteStore.open(Path(DIRECTORY), ID)
    config = Config(ID, trailing_logs=0)
    if ID == "n1":
        await bootstrap_cluster(config, store, store, None, Configuration((Server(ID, OWN),)))
    layer = await TCPStreamLayer.listen("127.0.0.1", int(OWN.split(":")[1]))
    raft = await Raft.start(
        config, fsm, store, store, FileSnapshotStore(DIRECTORY + "/snapshots"),
        NetworkTransport(layer),
    )
    if ID == "n1":
        while raft.state.value != "leader":
            await asyncio.sleep(0.01)
        for number in range(10):
            await raft.apply(b"x")
        await raft.snapshot()
    print("ready", flush=True)
    await lines.readline()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak counts from here
    before, worst, sending = memory("VmRSS"), 0.0, 0
    if ID == "n1":
        await raft.add_nonvoter("n2", OTHER)
    while raft.last_index < 12 or raft.applied_index < raft.last_index:
        last = loop.time()
        await asyncio.sleep(0.01)
        worst = max(worst, loop.time() - last)
    if ID == "n1":
        while not (peer := raft.peer_progress("n2")) or peer.match_index < raft.last_index:
            sending = max(sending, raft.stats()["snapshot_sending_bytes"] or 0)
            last = loop.time()
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - last)
    extra = memory("VmHWM") - before
    print(extra, fsm.digest, raft.current_term, f"{worst:.3f}", sending, flush=True)
    await lines.readline()
    await raft.shutdown()

asyncio.run(main())
'''


@contextmanager
def member(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """A process of the program; gone at the end."""
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.process
@pytest.mark.parametrize(
    ("size_mib", "extra_mib_max"), [(64, 32), pytest.param(256, 64, marks=pytest.mark.soak)]
)
def test_a_large_snapshot_takes_bounded_memory_on_both_sides(
    tmp_path: Path, size_mib: int, extra_mib_max: int
) -> None:
    """And costs no term: heartbeats go on; and the leader says how far it is."""
    one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
    with ExitStack() as stack:
        leader = stack.enter_context(member("n1", one, two, str(tmp_path / "n1"), str(size_mib)))
        other = stack.enter_context(member("n2", two, one, str(tmp_path / "n2"), str(size_mib)))
        assert [line_of(leader), line_of(other)] == ["ready", "ready"]
        tell(other)
        tell(leader)
        sent, taken = line_of(leader).split(), line_of(other).split()
        tell(leader)
        tell(other)
        assert leader.wait(30) == other.wait(30) == 0
    print(f"{size_mib} MiB: extra MiB {sent[0]} sending, {taken[0]} taking; {sent} {taken}")
    assert taken[1] == sent[1], "what the state machine got is what the other one wrote"
    assert int(sent[0]) <= extra_mib_max
    assert int(taken[0]) <= extra_mib_max
    assert sent[2] == taken[2] == "2"
    assert 0 < int(sent[4]) <= size_mib << 20
