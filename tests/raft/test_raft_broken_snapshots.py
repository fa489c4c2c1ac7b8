"""A snapshot that breaks on the disk of a server: at a restart, and while it leads (S9)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from rafthttp.raft.errors import CorruptLogError
from rafthttp.raft.storage import reserve
from rafthttp.raft.storage.snapshot_files import META_FILE, STATE_FILE, FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.types import ServerID
from rafthttp.testing.cluster import Cluster, Recorder, fast_config, until

N1, N2 = ServerID("n1"), ServerID("n2")


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESERVE_SIZE_BYTES", 64 << 10)


def alone(directory: Path, trailing: int) -> Cluster:
    return Cluster(
        1,
        config=replace(fast_config("any"), trailing_logs=trailing),
        make_store=lambda i: SqliteStore.open(directory / i, i),
        make_snapshots=lambda i: FileSnapshotStore(directory / i / "snapshots"),
    )


def recorded(cluster: Cluster, server_id: ServerID) -> list[bytes]:
    return cast("Recorder", cluster.fsms[server_id]).data


def break_state(path: Path) -> None:
    data = (path / STATE_FILE).read_bytes()
    (path / STATE_FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def break_meta(path: Path) -> None:
    (path / META_FILE).write_bytes(b"")


def newest(cluster: Cluster, directory: Path) -> Path:
    return directory / N1 / "snapshots" / cluster.snapshots[N1].list()[0].id


async def with_two_snapshots(cluster: Cluster) -> list[bytes]:
    leader = await cluster.leader()
    commands = [b"%d" % number for number in range(10)]
    for command in commands:
        await leader.apply(command)
        if command in {b"4", b"9"}:
            await leader.snapshot()
    return commands


@pytest.mark.parametrize("damage", [break_state, break_meta])
def test_a_restart_uses_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    async def run(trailing: int) -> list[bytes]:
        directory = tmp_path / str(trailing)
        async with alone(directory, trailing) as cluster:
            commands = await with_two_snapshots(cluster)
            damage(newest(cluster, directory))
            await cluster.stop(N1)
            cluster.stores[N1] = SqliteStore.open(directory / N1, N1)
            cluster.snapshots[N1] = FileSnapshotStore(directory / N1 / "snapshots")
            try:
                raft = await cluster.start(N1)
            except CorruptLogError:
                cluster.stores[N1].close()
                raise
            await until(lambda: recorded(cluster, N1) == commands)
            await until(lambda: raft.leader_with_id() is not None)
            await raft.apply(b"more")
            await raft.snapshot()
            assert newest(cluster, directory).name.endswith("0000000003")
            return recorded(cluster, N1)

    assert asyncio.run(run(trailing=100))[-1] == b"more"
    with pytest.raises(CorruptLogError, match="entries between them are missing"):
        asyncio.run(run(trailing=0))


@pytest.mark.parametrize("damage", [break_state, break_meta])
def test_a_leader_takes_another_when_it_cannot_send_the_newest(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is of no use to a peer where the log does not reach back to it.

    1. The log begins behind the newest snapshot, with nothing applied since.
    2. That snapshot breaks; a member without anything needs one.
    3. Sent the older one, it would ask for the entries behind it, and get it again, for ever.
    4. So none is sent; the leader, whose state is whole, takes another, and that goes.
    """
    caplog.set_level(logging.INFO, "rafthttp.raft.snapshots")

    async def run() -> None:
        async with alone(tmp_path, trailing=0) as cluster:
            leader = await cluster.leader()
            await leader.add_nonvoter(N2, cluster.address(N2))
            commands = await with_two_snapshots(cluster)
            damage(newest(cluster, tmp_path))
            await cluster.start(N2)
            await until(lambda: recorded(cluster, N2) == commands)
            await leader.apply(b"more")
            await until(lambda: recorded(cluster, N2) == [*commands, b"more"])

    asyncio.run(run())
    sent = [r for r in caplog.records if "goes to n2" in r.getMessage()]
    assert 1 <= len(sent) <= 3
    assert "cannot be used any more" in caplog.text


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with (path / STATE_FILE).open("r+b") as file:
            file.seek(at, 0 if at >= 0 else 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))

    return damage


@pytest.mark.parametrize("at", [100, 1 << 20, -1])
def test_a_large_one_with_a_flipped_bit_is_not_installed_anywhere(
    tmp_path: Path,
    at: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most of it has gone over the wire by then; its end does not, and the one before goes."""
    caplog.set_level(logging.INFO, "rafthttp.raft.snapshots")
    published: list[str] = []
    real_publish = FileSnapshotStore._publish

    def publish(store: FileSnapshotStore, partial: Path) -> None:
        published.append(f"{partial.parent.parent.name} {partial.stem}")
        real_publish(store, partial)

    async def run() -> None:
        # The log goes on from the older snapshot, and begins too late for an empty member.
        async with alone(tmp_path, trailing=6) as cluster:
            leader = await cluster.leader()
            await leader.add_nonvoter(N2, cluster.address(N2))
            commands = [bytes([number]) * (256 << 10) for number in range(10)]
            for number, command in enumerate(commands):
                await leader.apply(command)
                if number in {4, 9}:
                    await leader.snapshot()
            old, new = reversed([meta.id for meta in cluster.snapshots[N1].list()])
            flip(at)(tmp_path / N1 / "snapshots" / new)
            monkeypatch.setattr(FileSnapshotStore, "_publish", publish)
            await cluster.start(N2)
            await until(lambda: recorded(cluster, N2) == commands)
            assert [meta.id for meta in cluster.snapshots[N1].list()] == [old]
            assert [meta.index for meta in cluster.snapshots[N2].list()] == [int(old[21:41])]
            assert [name.partition(" ")[0] for name in published] == [N2]
            assert published[0].split()[1][:41] == old[:41]

    asyncio.run(run())
    assert "wrong checksum" in caplog.text
    assert "ended early" in caplog.text
