"""`rafthttp recover` in this process: what it says, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rafthttp import (
    Config,
    Configuration,
    FileSnapshotStore,
    Server,
    ServerAddress,
    ServerID,
    SessionFSM,
    SqliteStore,
    bootstrap_cluster,
    cli,
    get_configuration,
)
from rafthttp.kv.commands import Command, Operation, encode
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.raft.types import LogBatch, LogType, LogWrite
from rafthttp.raft.wire.entries import encode_log
from rafthttp.testing.processes import command

N1 = ServerID("n1")


def members(*ids: str) -> Configuration:
    return Configuration(
        tuple(Server(ServerID(i), ServerAddress(f"10.0.0.{i[1:]}:8101")) for i in ids)
    )


def stopped_node(data_dir: Path, *commands: bytes) -> None:
    """n1 of three, with these commands in its log."""
    store = SqliteStore.open(data_dir, N1)
    asyncio.run(bootstrap_cluster(Config(N1), store, store, None, members("n1", "n2", "n3")))
    records = [
        encode_log(index, 1, LogType.COMMAND, data, b"", time.time_ns())
        for index, data in enumerate(commands, 2)
    ]
    store.write([LogWrite({}, batches=(LogBatch(2, 1, records),))])
    store.close()


def put(key: str, value: bytes) -> bytes:
    return encode(Command(Operation.PUT, key, value))


def peers(path: Path, *servers: Any) -> str:
    path.write_text(json.dumps(servers))
    return str(path)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    stopped_node(tmp_path / "data", put("a", b"1"), put("b", b"2"), put("a", b"3"))
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run(["recover", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def state(data_dir: Path) -> tuple[Configuration, int]:
    store = SqliteStore.open(data_dir, None)
    try:
        snapshots = FileSnapshotStore(data_dir / "snapshots")
        return get_configuration(store, store, snapshots).configuration, len(snapshots.list())
    finally:
        store.close()


def data_of(data_dir: Path) -> dict[str, bytes | None]:
    """What the newest snapshot holds."""
    snapshots = FileSnapshotStore(data_dir / "snapshots")
    fsm = KVStateMachine()
    with snapshots.open(snapshots.list()[0].id)[1] as source:
        fsm.restore(source)
    return {info.key: fsm.get(info.key) for info in fsm.list(limit=10)}


def test_it_says_what_it_does(
    capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path
) -> None:
    file = peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    plan = (
        "n1's last entry is 4, of term 1. Its members were\n"
        "  n1  10.0.0.1:8101  voter\n"
        "  n2  10.0.0.2:8101  voter\n"
        "  n3  10.0.0.3:8101  voter\n"
        "and will be\n"
        "  n1  10.0.0.1:8101  voter\n"
        "Left out: n2, n3. Delete their data before they start again, if ever.\n"
    )
    code, out, err = run(capsys, "--data-dir", data_dir, "--servers", file, "--dry-run")
    assert (code, out) == (0, plan + "Dry run: nothing was changed.\n")
    assert err.startswith("rafthttp: warning: writes that only other nodes have are lost")
    assert state(data_dir) == (members("n1", "n2", "n3"), 0)

    code, out, _ = run(capsys, "--data-dir", data_dir, "--servers", file)
    assert code == 0
    assert out.startswith(plan + "Recovered: a snapshot at entry 4 (")
    assert out.endswith(" 4 entries replayed.\nStart it with `rafthttp serve` as before.\n")
    assert state(data_dir) == (members("n1"), 1)
    _, out, _ = run(capsys, "--data-dir", data_dir, "--servers", file, "--dry-run")
    assert out.startswith("n1's last entry is 4, of term 1. Its members were\n  n1  10.0.0.1")
    assert data_of(data_dir) == {"a": b"3", "b": b"2"}


def test_several_members(
    capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path
) -> None:
    file = peers(
        tmp_path / "peers.json",
        {"id": "n1", "address": "10.0.0.9:8101"},
        {"id": "n2", "address": "10.0.0.2:8101", "non_voter": True},
    )
    code, out, _ = run(capsys, "--data-dir", data_dir, "--servers", file)
    assert code == 0
    assert "and will be\n  n1  10.0.0.9:8101  voter\n  n2  10.0.0.2:8101  nonvoter\n" in out
    assert f"Do the same with {file} on the other members' data" in out
    assert "Left out: n3." in out


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ([{"id": "n1"}], "[0].address is missing"),
        ([{"id": "n1", "address": "10.0.0.1"}], "[0].address is '10.0.0.1'; it must be HOST:PORT"),
        (["10.0.0.1:8101"], "is the data of n1, which is not in"),
        ([{"id": "n2", "address": "10.0.0.2:8101"}], "is the data of n1, which is not in"),
        ([], "has no voter"),
    ],
)
def test_a_file_that_is_wrong(
    capsys: pytest.CaptureFixture[str],
    data_dir: Path,
    tmp_path: Path,
    servers: list[Any],
    says: str,
) -> None:
    file = peers(tmp_path / "peers.json", *servers)
    code, out, err = run(capsys, "--data-dir", data_dir, "--servers", file)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
    assert file in err
    assert state(data_dir) == (members("n1", "n2", "n3"), 0)


def test_a_directory_that_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    for name in ("missing", "."):
        code, out, err = run(capsys, "--data-dir", tmp_path / name, "--servers", file)
        assert (code, out) == (1, "")
        assert "has no server's data (raft.db)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]
    code, _, err = run(capsys, "--data-dir", tmp_path, "--servers", tmp_path / "none")
    assert (code, "cannot read" in err) == (1, True)
    SqliteStore.open(tmp_path / "new", N1).close()
    code, _, err = run(capsys, "--data-dir", tmp_path / "new", "--servers", file)
    assert (code, "there is no state to recover" in err) == (1, True)
    code, _, err = run(capsys, "--servers", file)
    assert (code, "--data-dir" in err) == (2, True)


def test_another_process_has_it(
    capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path
) -> None:
    """It was not stopped."""
    file = peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    store = SqliteStore.open(data_dir, N1)
    code, out, err = run(capsys, "--data-dir", data_dir, "--servers", file)
    store.close()
    assert (code, out) == (1, "")
    assert "in use by process" in err


def test_an_applications_data_are_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The key-value service would drop every command, and write an empty state over them."""
    stopped_node(tmp_path / "data", put("a", b"1"), b'{"op": "sell"}')
    file = peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    code, _, err = run(capsys, "--data-dir", tmp_path / "data", "--servers", file)
    assert code == 1
    assert "is not the key-value service's (entry 3: command version 123 is unknown" in err
    assert "recover_cluster with its own state machine. Nothing was changed" in err
    assert state(tmp_path / "data") == (members("n1", "n2", "n3"), 0)


def test_killed_at_random_moments(
    capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path
) -> None:
    """However often it is killed, it can be done again, and nothing is lost."""
    file = peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    arguments = ["--data-dir", str(data_dir), "--servers", file]
    chosen = random.Random(4)
    takes = 0.0
    for number in range(5):
        begin = time.monotonic()
        with subprocess.Popen(
            command("recover", *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(takes * chosen.uniform(0.7, 1.1) if number else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
        takes = takes or time.monotonic() - begin
    assert run(capsys, *arguments)[0] == 0
    assert state(data_dir)[0] == members("n1")
    assert data_of(data_dir) == {"a": b"3", "b": b"2"}


def test_the_program_in_the_docs(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "recover.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    peers(tmp_path / "peers.json", {"id": "n1", "address": "10.0.0.1:8101"})
    monkeypatch.chdir(tmp_path)
    exec(program, {"fsm": SessionFSM(KVStateMachine())})
    assert state(data_dir)[0] == members("n1")
    assert data_of(data_dir) == {"a": b"3", "b": b"2"}
