"""The command line in this process: options, refusals, and a cluster member asked for real."""

import io
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from rafthttp import IS_COMPILED, cli
from rafthttp.cli.output import explained
from rafthttp.kv.client import ServiceError
from rafthttp.testing.nodes import address_of, loopback_listener
from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually, serve_cluster

LISTEN = ("--id", "n1", "--listen", "127.0.0.1:1")  # nothing here gets as far as the port
MEMORY = ("--in-memory", "--bootstrap")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a command is refused with."""
    assert cli.run(list(arguments)) in {1, 2}
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("rafthttp: ")
    return line.removeprefix("rafthttp: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--id", "n1", "--listen", "0.0.0.0:1", *MEMORY), "--advertise"),
        (
            ("--id", "n1", "--listen", "0.0.0.0:1", "--advertise", "h:1", *MEMORY),
            "give --token-file, --allow or --tls-ca, or --insecure",
        ),
        (("--id", "n1", "--listen", "192.0.2.1:1", *MEMORY), "from other machines"),
        (("--id", "n1", "--listen", "[2001:db8::1]:1", *MEMORY), "from other machines"),
        (("--id", "n1", "--listen", "example.org:1", *MEMORY), "from other machines"),
        (("--id", "n1", "--listen", "127.0.0.1", *MEMORY), "HOST:PORT"),
        (("--id", "n1", "--listen", "127.0.0.1:0", *MEMORY), "HOST:PORT"),
        (("--id", "n1", "--listen", "127.0.0.1:65536", *MEMORY), "HOST:PORT"),
        ((*LISTEN, "--advertise", "nonsense", *MEMORY), "--advertise"),
        (LISTEN, "--data-dir DIR and --in-memory"),
        ((*LISTEN, "--data-dir", "/tmp/x", *MEMORY), "--data-dir DIR and --in-memory"),
        ((*LISTEN, *MEMORY, "--join", "http://127.0.0.1:2"), "give only one"),
        ((*LISTEN, *MEMORY, "--timeout", "0"), "--timeout is 0"),
        ((*LISTEN, *MEMORY, "--timeout", "-1.5"), "--timeout is -1.5"),
        ((*LISTEN, *MEMORY, "--timeout", "nan"), "--timeout is nan"),
        ((*LISTEN, *MEMORY, "--timeout", "soon"), "--timeout"),
        ((*LISTEN, *MEMORY, "--allow", "10.0.0.0/99"), "no network"),
        ((*LISTEN, *MEMORY, "--token-file", "/does/not/exist"), "cannot read the token file"),
        ((*LISTEN, "--advertise", "0.0.0.0:1", *MEMORY), "--advertise 0.0.0.0:1 names no host"),
        ((*LISTEN, "--advertise", "[::]:1", *MEMORY), "--advertise [::]:1 names no host"),
        (
            ("--id", "n1", "--listen", "0.0.0.0:1", *MEMORY),
            "where the other nodes reach this one; and 0.0.0.0:1 can be reached",
        ),
        ((*LISTEN, *MEMORY, "--insecure", "--allow", "10.0.0.0/8"), "give only one"),
        ((*LISTEN, *MEMORY, "--insecure", "--tls-ca", "f"), "give only one"),
        ((*LISTEN, *MEMORY, "--path", "/kv"), "--path /kv: /kv is the key-value service's own"),
        ((*LISTEN, *MEMORY, "--path", "/kv/raft"), "/kv is the key-value service's own"),
        ((*LISTEN, *MEMORY, "--path", "/status"), "/status is the key-value service's own"),
        ((*LISTEN, *MEMORY, "--nonsense"), "(see `rafthttp serve --help`)"),
        (("--listen", "127.0.0.1:1", *MEMORY), "--id"),
        (("--id", "n1", *MEMORY), "--listen"),
        ((*LISTEN, *MEMORY, "--nonsense"), "--nonsense"),
    ],
)
def test_serve_refuses_options_that_cannot_be(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(capsys, "serve", *arguments)


def test_an_empty_token_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(" \n")
    line = refused(capsys, "serve", *LISTEN, *MEMORY, "--token-file", str(token))
    assert "is empty" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status",), "URL"),
        (("status", "ftp://127.0.0.1:1"), "is not http[s]://HOST:PORT"),
        (("status", "127.0.0.1:1", "--timeout", "0.1"), "cannot connect: connection refused"),
        (("status", "http://127.0.0.1:1", "--timeout", "0"), "--timeout is 0"),
        (("status", "http://127.0.0.1:1", "--timeout", "0.1"), "cannot connect"),
        (("leave", "http://127.0.0.1:1"), "cannot connect"),
        (("kv", "get", "k", "--url", "http://127.0.0.1:1", "--timeout", "0.1"), "cannot connect"),
        (("kv", "get", "", "--url", "http://127.0.0.1:1"), "key is empty"),
        (("kv", "get", "k", "--url", "non sense"), "is not http[s]://HOST:PORT"),
        (("kv", "get", "k", "--timeout", "-1"), "--timeout is -1"),
        (("kv", "put", "k", "v", "--file", "f"), "not both"),
        (("kv", "put", "k", "--file", "/does/not/exist"), "cannot read"),
        (("kv", "import", "/does/not/exist"), "is not a directory"),
        (("kv", "export", "/proc/nowhere"), "cannot write to /proc/nowhere"),
        (("cluster", "--nodes", "0"), "--nodes"),
        (("cluster", "--port", "65535"), "no 3 ports"),
        (("cluster", "--data-dir", "/proc/nowhere"), "cannot write to /proc/nowhere"),
        (("nonsense",), "(see `rafthttp --help`)"),
        (("kv", "get"), "(see `rafthttp kv get --help`)"),
    ],
)
def test_other_commands_refuse_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("-h",), ("kv", "-h"), ("serve", "-h"), ("serve", "--help")]
)
def test_help_names_the_commands(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code = cli.run(list(arguments))
    assert code == (0 if arguments else 2)
    assert "rafthttp" in capsys.readouterr().out


def test_an_id_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with loopback_listener() as listener:
        address = address_of(listener)
    line = refused(capsys, "serve", "--id", "a b", "--listen", address, *MEMORY)
    assert "'a b' has a character that is not allowed: only letters, digits and" in line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    compiled = " (compiled)" if IS_COMPILED else ""
    assert capsys.readouterr().out == f"rafthttp {version('raft-http')}{compiled}\n"


def test_a_token_that_is_missing_or_wrong(tmp_path: Path) -> None:
    error = ServiceError("a bearer token is needed", status=401)
    assert explained(error, None) == "the service asks for a token: give --token-file FILE"
    assert "the token is wrong" in explained(error, tmp_path)
    assert explained(ServiceError("no", status=403), None) == "no"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serve_cluster(tmp_path_factory.mktemp("one"), 1) as cluster:
        yield cluster.start_all()


def test_put_get_delete(capsysbinary: pytest.CaptureFixture[bytes], node: ServeProcess) -> None:
    at = ("--url", node.url)
    assert cli.run(["kv", "put", "a/b c", "väl\udcff", *at]) == 0
    assert cli.run(["kv", "get", "a/b c", *at]) == 0
    assert capsysbinary.readouterr().out == "väl".encode() + b"\xff"
    assert cli.run(["kv", "get", "a/b c", "--stale", *at]) == 0
    capsysbinary.readouterr()
    assert cli.run(["kv", "delete", "a/b c", *at]) == 0
    assert cli.run(["kv", "get", "a/b c", *at]) == 1
    assert capsysbinary.readouterr() == (b"", b"rafthttp: there is no key 'a/b c'\n")


def test_put_from_a_file_and_from_stdin(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    node: ServeProcess,
    tmp_path: Path,
) -> None:
    at = ("--url", node.url)
    data = bytes(range(256))
    (tmp_path / "file").write_bytes(data)
    assert cli.run(["kv", "put", "k", "--file", str(tmp_path / "file"), *at]) == 0
    assert cli.run(["kv", "get", "k", *at]) == 0
    assert capsysbinary.readouterr().out == data
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data[::-1])))
    assert cli.run(["kv", "put", "k", *at]) == 0
    assert cli.run(["kv", "get", "k", *at]) == 0
    assert capsysbinary.readouterr().out == data[::-1]


def test_status(capsys: pytest.CaptureFixture[str], node: ServeProcess) -> None:
    assert cli.run(["status", node.url]) == 0
    text = capsys.readouterr().out
    assert f"n1 at {node.address}: leader in term" in text
    assert "voter" in text
    assert cli.run(["status", node.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "leader"


def test_import_and_export(
    capsys: pytest.CaptureFixture[str], node: ServeProcess, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "ä b%20#?.txt").write_bytes(b"odd")
    (source / "empty").write_bytes(b"")
    (source / "skipped").mkdir()
    (source / "skipped" / "x").write_bytes(b"x")
    options = ("--url", node.url, "--prefix", "tree/")
    assert cli.run(["kv", "import", str(source), "--exclude", "skip*", *options]) == 0
    assert capsys.readouterr().out == "stored 2 files, 3 B\n"
    assert cli.run(["kv", "export", str(tmp_path / "out"), *options]) == 0
    assert capsys.readouterr().out == "wrote and checked 2 files, 3 B\n"
    assert (tmp_path / "out" / "deep" / "er" / "ä b%20#?.txt").read_bytes() == b"odd"
    assert (tmp_path / "out" / "empty").read_bytes() == b""


def test_an_import_names_what_failed_and_ends_with_an_error(
    capsys: pytest.CaptureFixture[str], node: ServeProcess, tmp_path: Path
) -> None:
    (tmp_path / "fine").write_bytes(b"1")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert cli.run(["kv", "import", str(tmp_path), "--prefix", "f/", "--url", node.url]) == 1
    captured = capsys.readouterr()
    assert captured.out == "stored 1 file, 1 B\n"
    assert "huge: the value is over" in captured.err
    assert captured.err.splitlines()[-1] == "rafthttp: 1 of 2 files failed"


def test_the_only_voter_cannot_leave(
    capsys: pytest.CaptureFixture[str], node: ServeProcess
) -> None:
    assert cli.run(["leave", node.url]) == 1
    assert "n1 is the last voter of its cluster: just stop it" in capsys.readouterr().err
    assert node.running


def test_every_harness_process_is_gone_afterwards(tmp_path: Path) -> None:
    with serve_cluster(tmp_path, 1) as cluster:
        assert isinstance(cluster, ServeCluster)
        started = cluster.start_all()
        eventually(lambda: cluster.status(started), "it serves")
    assert not started.running
