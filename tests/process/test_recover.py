"""The page `recover.md`, done: a cluster loses two of three nodes for good and goes on."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rafthttp.testing.processes import ServeCluster, eventually, run_cli

pytestmark = pytest.mark.process

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "recover.md").read_text("utf-8")


def block(language: str, number: int = 0) -> str:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
    indent, text = found[number]
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def commands(cluster: ServeCluster, peers: Path) -> list[list[str]]:
    """The page's command lines, with this cluster's addresses and files."""
    n1, n2 = cluster["n1"], cluster["n2"]
    made: list[list[str]] = []
    for line in re.findall(r"^ *\$ rafthttp (.*)$", PAGE, re.MULTILINE):
        data = n2.data_dir if "--id n2" in line else n1.data_dir
        words = [word.replace("10.0.0.1:8101", n1.address) for word in shlex.split(line)]
        words = [word.replace("10.0.0.2:8101", n2.address) for word in words]
        known = {"data": str(data), "peers.json": str(peers)}
        made.append([known.get(word, word) for word in words])
    return made


@pytest.fixture
def cluster(clusters: Callable[..., ServeCluster]) -> ServeCluster:
    made = clusters(3)
    made.start_all()
    return made


def lose_two(cluster: ServeCluster) -> dict[str, str]:
    """n1 has some keys; n2 and n3 are gone with their data."""
    wanted = {f"k{number}": f"v{number}" for number in range(20)}
    for key, value in wanted.items():
        answer = cluster.http.put(f"{cluster['n1'].url}/kv/{key}", content=value)
        assert answer.status_code == 204
    last = "k19"
    eventually(
        lambda: cluster.http.get(f"{cluster['n1'].url}/kv/{last}?consistency=stale").is_success,
        "n1 has it all",
    )
    for node_id in ("n2", "n3"):
        cluster[node_id].kill()
        shutil.rmtree(cluster[node_id].data_dir)
    return wanted


def test_the_page(cluster: ServeCluster, tmp_path: Path) -> None:
    wanted = lose_two(cluster)
    n1, n2 = cluster["n1"], cluster["n2"]
    peers = tmp_path / "peers.json"
    peers.write_text(block("json").replace("10.0.0.1:8101", n1.address))
    dry_run, recover, restart, join = commands(cluster, peers)

    refused = run_cli(*recover)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"in use by process {n1.process.pid if n1.process else 0}" in refused.stderr
    n1.kill()

    said = run_cli(*dry_run)
    assert said.returncode == 0, said.stderr
    shown = block("console").splitlines()[1:]
    for ours, page in zip(said.stdout.splitlines(), shown, strict=True):
        pattern = re.escape(page)
        for number in (1, 2, 3):
            address = re.escape(cluster[f"n{number}"].address)
            pattern = pattern.replace(re.escape(f"10.0.0.{number}:8101"), address)
        pattern = re.sub(r"is\\ 57,\\ of\\ term\\ 3", r"is \\d+, of term \\d+", pattern)
        assert re.fullmatch(pattern, ours), (page, ours)

    done = run_cli(*recover)
    assert done.returncode == 0, done.stderr
    arguments = ["serve", "--id", "n1", "--listen", n1.address, "--data-dir", str(n1.data_dir)]
    assert restart == arguments
    cluster.start(n1)
    assert cluster.leader() is n1
    for key, value in wanted.items():
        assert cluster.http.get(f"{n1.url}/kv/{key}").text == value
    assert cluster.http.put(f"{n1.url}/kv/alone", content="yes").status_code == 204

    arguments = ["serve", "--id", "n2", "--listen", n2.address, "--data-dir", str(n2.data_dir)]
    assert join == [*arguments, "--join", n1.url]
    cluster.start(n2, "--join", n1.url)
    cluster.wait_until_whole()
    wanted["alone"] = "yes"
    for key, value in wanted.items():
        assert cluster.http.get(f"{n2.url}/kv/{key}").text == value
    status = cluster.status(n1) or {}
    assert {server["id"] for server in status["servers"]} == {"n1", "n2"}
