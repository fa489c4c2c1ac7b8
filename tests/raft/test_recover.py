"""Recovery of a cluster without a quorum: on stopped servers' stores, which are then started."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from rafthttp.raft.core.ready import HardState
from rafthttp.raft.errors import (
    CantRecoverError,
    ConfigError,
    CorruptLogError,
    RaftHttpError,
    StorageError,
)
from rafthttp.raft.fsm import FSMSnapshot
from rafthttp.raft.recover import Recovered, get_configuration, recover_cluster
from rafthttp.raft.runtime import restart
from rafthttp.raft.storage import reserve
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore
from rafthttp.raft.storage.snapshot_files import STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import (
    Configuration,
    Index,
    Log,
    LogBatch,
    LogType,
    LogWrite,
    Server,
    ServerAddress,
    ServerID,
    Suffrage,
)
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import encode_log
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, in_loop, until
from rafthttp.testing.storage import FaultyStore

N1, N2, N3, N4, N5 = (ServerID(f"n{number}") for number in range(1, 6))


def members(*ids: ServerID, nonvoters: tuple[ServerID, ...] = ()) -> Configuration:
    return Configuration(
        tuple(Server(i, ServerAddress(f"{i}:1")) for i in ids)
        + tuple(Server(i, ServerAddress(f"{i}:1"), Suffrage.NONVOTER) for i in nonvoters)
    )


def cluster_of(size: int, directory: Path | None) -> Cluster:
    if directory is None:
        return Cluster(size)
    return Cluster(
        size,
        make_store=lambda i: SqliteStore.open(directory / i, i),
        make_snapshots=lambda i: FileSnapshotStore(directory / i / "snapshots"),
    )


async def stop_all(cluster: Cluster, directory: Path | None = None) -> None:
    """Stop every server; its files are opened again."""
    for server_id in tuple(cluster.rafts):
        await cluster.stop(server_id)
        if directory is not None:
            cluster.stores[server_id] = SqliteStore.open(directory / server_id, server_id)
            cluster.snapshots[server_id] = FileSnapshotStore(directory / server_id / "snapshots")


async def recover(cluster: Cluster, server_id: ServerID, to: Configuration) -> Recovered:
    store = cluster.stores[server_id]
    return await recover_cluster(
        cluster.config(server_id), Recorder(), store, store, cluster.snapshots[server_id], to
    )


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens of stores are made here: 16 MiB each would be slow."""
    monkeypatch.setattr(reserve, "RESERVE_SIZE_BYTES", 64 << 10)


# -- what it is for


@pytest.mark.parametrize("stores", ["memory", "disk"])
@pytest.mark.parametrize("snapshots", [0, 1, 2])
def test_one_of_three_goes_on_alone(tmp_path: Path, stores: str, snapshots: int) -> None:
    asyncio.run(one_of_three(tmp_path, stores, snapshots))


async def one_of_three(tmp_path: Path, stores: str, snapshots: int) -> None:
    directory = tmp_path if stores == "disk" else None
    async with cluster_of(3, directory) as cluster:
        leader = await cluster.leader()
        for number in range(3):
            await asyncio.gather(*(leader.apply(b"%d/%d" % (number, i)) for i in range(20)))
            if number < snapshots:
                await cluster.converged()
                await cluster.rafts[N1].snapshot()
        await cluster.converged()
        wanted, last = recorded(cluster, N1), cluster.rafts[N1].last_index
        await stop_all(cluster, directory)
        store = cluster.stores[N1]
        assert get_configuration(store, store, cluster.snapshots[N1]).configuration == members(
            N1, N2, N3
        )

        done = await recover(cluster, N1, members(N1))
        assert (done.index, done.term) == (last, cluster.snapshots[N1].list()[0].term)
        assert done.replayed == last if snapshots == 0 else done.replayed < last
        latest = get_configuration(store, store, cluster.snapshots[N1])
        assert (latest.configuration, latest.index) == (members(N1), last)
        assert (store.first_index(), store.last_index()) == (last + 1, last)
        again = await recover(cluster, N1, members(N1))
        assert (again.index, again.replayed) == (last, 0), "twice is as good as once"

        raft = await cluster.start(N1)
        await until(lambda: raft.leader_with_id() is not None)
        await raft.apply(b"alone")
        assert recorded(cluster, N1) == [*wanted, b"alone"]

        # A new member has to get the snapshot: there is no log before it.
        await cluster.start(N4)
        await raft.add_voter(N4, cluster.address(N4))
        await until(lambda: recorded(cluster, N4) == [*wanted, b"alone"])
        await raft.apply(b"two")
        await until(lambda: recorded(cluster, N4)[-1] == b"two")
        await stop_all(cluster, directory)


def test_two_of_five_with_logs_that_differ(tmp_path: Path) -> None:
    """What was never committed counts, too: the longest log leads, the other gets all of it."""
    asyncio.run(two_of_five(tmp_path))


async def two_of_five(tmp_path: Path) -> None:
    async with cluster_of(5, tmp_path) as cluster:
        leader = await cluster.leader()
        other = next(i for i in cluster.ids if i != leader.id)
        await leader.apply(b"acknowledged")
        await cluster.converged()
        last = leader.last_index
        cluster.isolate(leader.id)
        pending = asyncio.create_task(leader.apply(b"pending"))
        await until(lambda: cluster.stores[leader.id].last_index() > last)
        await stop_all(cluster, tmp_path)
        with pytest.raises(RaftHttpError):
            await pending
        cluster.rejoin(leader.id)

        to = members(leader.id, other)
        longer, shorter = [await recover(cluster, i, to) for i in (leader.id, other)]
        assert longer.index > shorter.index
        for server_id in (leader.id, other):
            await cluster.start(server_id)
        found = await cluster.leader(among=[leader.id, other])
        assert found.id == leader.id
        await found.apply(b"together")
        await cluster.converged()
        wanted = [b"acknowledged", b"pending", b"together"]
        assert [recorded(cluster, i) for i in (leader.id, other)] == [wanted, wanted]
        await stop_all(cluster)


@in_loop
async def test_a_member_without_a_vote_and_another_address() -> None:
    async with Cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"data")
        await cluster.converged()
        await stop_all(cluster)
        to = members(N1, nonvoters=(N2,))
        for server_id in (N1, N2):
            await recover(cluster, server_id, to)
            await cluster.start(server_id)
        raft = cluster.rafts[N1]
        await until(lambda: raft.leader_with_id() is not None)
        await raft.apply(b"more")
        await until(lambda: recorded(cluster, N2) == [b"data", b"more"])
        assert raft.get_configuration().configuration == to


# -- refusals


def stopped_server() -> tuple[MemoryStore, MemorySnapshotStore]:
    """Log of n1, n2, n3 with two commands behind the configuration."""
    store = MemoryStore()
    restart.bootstrap(store, store, None, members(N1, N2, N3), 0)
    records = [encode_log(i, 1, LogType.COMMAND, b"%d" % i, b"", 0) for i in (2, 3)]
    store.write([LogWrite({}, batches=(LogBatch(2, 1, records),))])
    return store, MemorySnapshotStore()


def try_recover(
    store: Any, snapshots: Any, to: Configuration, fsm: Recorder | None = None
) -> Recovered:
    return asyncio.run(
        recover_cluster(fast_config(N1), fsm or Recorder(), store, store, snapshots, to)
    )


def test_nothing_to_recover() -> None:
    empty = MemoryStore()
    with pytest.raises(CantRecoverError, match="no state to recover"):
        try_recover(empty, MemorySnapshotStore(), members(N1))
    assert get_configuration(empty, empty, None).configuration == Configuration()
    empty.set({restart.HARD_STATE: restart.encode_hard_state(HardState(3, N2))})
    with pytest.raises(CantRecoverError, match="no entry"):
        try_recover(empty, MemorySnapshotStore(), members(N1))


@pytest.mark.parametrize(
    ("to", "says"),
    [
        (Configuration(), "no voter"),
        (members(nonvoters=(N1,)), "no voter"),
        (members(N2), "local_id 'n1' is not in the configuration"),
    ],
)
def test_a_configuration_that_cannot_be(to: Configuration, says: str) -> None:
    store, snapshots = stopped_server()
    with pytest.raises(ConfigError, match=says):
        try_recover(store, snapshots, to)
    assert (store.last_index(), snapshots.list()) == (3, [])


def test_two_stores() -> None:
    """Log and stable store apart, as hashicorp/raft allows."""
    log_store, snapshots = stopped_server()
    stable = MemoryStore()
    stable.set({k: log_store.get(k) for k in (restart.HARD_STATE, restart.CONFIGURATIONS)})
    fsm = Recorder()
    asyncio.run(recover_cluster(fast_config(N1), fsm, log_store, stable, snapshots, members(N1)))
    assert fsm.data == [b"2", b"3"]
    assert get_configuration(log_store, stable, snapshots).configuration == members(N1)


# -- damage (S9, S10)


def on_disk(directory: Path, *, keep_log: bool) -> tuple[SqliteStore, FileSnapshotStore]:
    """A log of 1 to 6 with snapshots at 3 and 5; without `keep_log` it begins at 6."""
    store = SqliteStore.open(directory, N1)
    restart.bootstrap(store, store, None, members(N1, N2, N3), 0)
    snapshots = FileSnapshotStore(directory / "snapshots")
    fsm = Recorder()
    for index in range(2, 7):
        log = Log(index, 1, LogType.COMMAND, b"%d" % index)
        record = encode_log(index, 1, log.type, log.data, b"", 0)
        store.write([LogWrite({}, batches=(LogBatch(index, 1, [record]),))])
        fsm.apply(log)
        if index in {3, 5}:
            sink = snapshots.create(index, 1, members(N1, N2, N3), 1)
            fsm.snapshot().persist(cast("BinaryIO", sink))
            sink.close()
    if not keep_log:
        store.delete_prefix(5)
    return store, snapshots


def break_newest(snapshots: FileSnapshotStore) -> None:
    path = snapshots._directory / snapshots.list()[0].id / STATE_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_the_newest_snapshot_is_broken(tmp_path: Path) -> None:
    """S9: the one before it, and the log behind that."""
    store, snapshots = on_disk(tmp_path, keep_log=True)
    break_newest(snapshots)
    fsm = Recorder()
    done = try_recover(store, snapshots, members(N1), fsm)
    assert fsm.data == [b"2", b"3", b"4", b"5", b"6"]
    assert (done.index, done.replayed) == (6, 3)
    assert get_configuration(store, store, snapshots).configuration == members(N1)
    store.close()


def test_the_newest_snapshot_is_broken_and_the_log_begins_behind_it(tmp_path: Path) -> None:
    """S10: never a state with a hole."""
    store, snapshots = on_disk(tmp_path, keep_log=False)
    break_newest(snapshots)
    for look in (
        lambda: try_recover(store, snapshots, members(N1)),
        lambda: get_configuration(store, store, snapshots),
    ):
        with pytest.raises(CorruptLogError, match=r"begins at 6, .* ends at 3"):
            look()
    assert (store.first_index(), store.last_index()) == (6, 6)
    store.close()


def test_no_snapshot_is_whole(tmp_path: Path) -> None:
    store, snapshots = on_disk(tmp_path, keep_log=True)
    for meta in snapshots.list():
        (snapshots._directory / meta.id / STATE_FILE).write_bytes(b"?" * meta.size)
    with pytest.raises(StorageError, match="no snapshot can be used"):
        try_recover(store, snapshots, members(N1))
    store.close()


# -- failures and crashes


class FailingSnapshot:
    def persist(self, sink: BinaryIO) -> None:
        sink.write(b"partial")
        raise OSError(28, "No space left on device")

    def release(self) -> None:
        pass


class Failing(Recorder):
    def snapshot(self) -> FSMSnapshot:
        return FailingSnapshot()


def state_on_disk(directory: Path) -> tuple[Configuration, list[bytes], Index]:
    """What a server that is started there would begin with."""
    store = SqliteStore.open(directory, N1)
    snapshots = FileSnapshotStore(directory / "snapshots")
    try:
        configuration = get_configuration(store, store, snapshots).configuration
        fsm = Recorder()
        # A recovery to the same members shows the data, and finishes what was begun.
        done = try_recover(store, snapshots, configuration, fsm)
        return configuration, fsm.data, done.index
    finally:
        store.close()


OLD = (members(N1, N2, N3), [b"2", b"3", b"4", b"5", b"6"], 6)
NEW = (members(N1), OLD[1], 6)


def test_a_failure_leaves_the_old_state(tmp_path: Path) -> None:
    store, snapshots = on_disk(tmp_path, keep_log=True)
    before = snapshots.list()
    with pytest.raises(OSError, match="No space left"):
        try_recover(store, snapshots, members(N1), Failing())
    assert snapshots.list() == before
    store.close()
    assert state_on_disk(tmp_path) == OLD


def test_a_failure_behind_the_snapshot_leaves_the_new_state(tmp_path: Path) -> None:
    """The log could not be emptied: what it holds is in the snapshot, and does not count."""
    store, snapshots = on_disk(tmp_path, keep_log=True)
    faulty = FaultyStore(store)
    faulty.fail_write()
    with pytest.raises(StorageError, match="injected"):
        try_recover(faulty, snapshots, members(N1))
    assert store.first_index() == 1
    store.close()
    assert state_on_disk(tmp_path) == NEW


def dies(directory: Path, step: int) -> None:
    """Recover, and die before the `step`-th system call that has to do with a name."""
    store = SqliteStore.open(directory, N1)
    snapshots = FileSnapshotStore(directory / "snapshots")
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try_recover(store, snapshots, members(N1))
    store.close()


def fork_and_die(tmp_path: Path) -> None:
    reserve.RESERVE_SIZE_BYTES = 64 << 10  # type: ignore[misc] # as in the fixture
    on_disk(tmp_path / "0", keep_log=True)[0].close()
    for step in range(1, 100):
        directory = shutil.copytree(tmp_path / "0", tmp_path / str(step))
        child = os.fork()
        if child == 0:
            dies(directory, step)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(step)
            return
    raise AssertionError("it never ends")


def test_killed_before_every_step(tmp_path: Path) -> None:
    """S49: old or new, whole; and a second try completes either."""
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = [state_on_disk(tmp_path / str(step)) for step in range(1, int(done.stdout) + 1)]
    assert found == [OLD] * found.count(OLD) + [NEW] * found.count(NEW)
    assert found.count(OLD) > 5
    assert found.count(NEW) > 3


def test_cancelled_it_is_waited_for() -> None:
    """The thread uses the stores to its end; who closes them must not come before it."""
    store, snapshots = stopped_server()
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def apply(self, log: Log) -> int:
            entered.set()
            assert go_on.wait(10)
            return super().apply(log)

    async def run() -> None:
        work = asyncio.create_task(
            recover_cluster(fast_config(N1), Slow(), store, store, snapshots, members(N1))
        )
        await until(entered.is_set)
        work.cancel()
        done, _ = await asyncio.wait({work}, timeout=0.05)
        assert not done
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(run())
    assert snapshots.list()[0].configuration == members(N1)
    assert store.first_index() == 4


# -- what the state machine is told


def test_a_configuration_store_learns_the_new_configuration() -> None:
    class Keeper(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[tuple[Index, Configuration]] = []

        def store_configuration(self, index: Index, configuration: Configuration) -> None:
            self.told.append((index, configuration))

    store, snapshots = stopped_server()
    record = encode_log(4, 1, LogType.CONFIGURATION, encode_configuration(members(N1, N2)), b"", 0)
    store.write([LogWrite({}, batches=(LogBatch(4, 1, [record]),))])
    fsm = Keeper()
    try_recover(store, snapshots, members(N1), fsm)
    assert fsm.told == [(1, members(N1, N2, N3)), (4, members(N1, N2)), (4, members(N1))]


def test_a_long_log_is_read_in_pieces() -> None:
    store, snapshots = stopped_server()
    records = [encode_log(i, 1, LogType.COMMAND, b"%d" % i, b"", 0) for i in range(4, 5004)]
    records.append(encode_log(5004, 1, LogType.COMMAND, b"x" * (5 << 20), b"", 0))
    store.write([LogWrite({}, batches=(LogBatch(4, 1, records),))])
    fsm = Recorder()
    done = try_recover(store, snapshots, members(N1), fsm)
    assert (done.index, done.replayed, len(fsm.data)) == (5004, 5004, 5003)
    assert done.size > 5 << 20


if __name__ == "__main__":
    fork_and_die(Path(sys.argv[1]))
