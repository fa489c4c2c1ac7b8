"""Real input: Python's standard library through the cluster, the leader killed half-way."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from rafthttp.kv.files import tree_digests
from rafthttp.testing.processes import ServeCluster, command, eventually, run_cli

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
EXCLUDE = ("__pycache__", "site-packages", "dist-packages", "config-*")


def exclude_options() -> list[str]:
    return [option for name in EXCLUDE for option in ("--exclude", name)]


def test_import_survives_the_leaders_death_and_every_node_exports_the_same(
    cluster: ServeCluster, tmp_path: Path
) -> None:
    expected = tree_digests(LIBRARY, EXCLUDE)
    assert len(expected) > 500

    leader = cluster.leader()
    through = next(node for node in cluster.nodes[1:] if node is not leader)
    importing = subprocess.Popen(
        command("kv", "import", str(LIBRARY), "--url", through.url, *exclude_options()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def half_way() -> bool:
            status = cluster.status(through)
            return status is not None and status["keys"] >= len(expected) // 2

        eventually(half_way, "half of the files are stored", 120)
        assert importing.poll() is None, "killed too late to prove anything"
        leader.kill()
        output, _ = importing.communicate(timeout=120)
    finally:
        importing.kill()
        importing.wait()
    assert importing.returncode == 0, output
    assert f"stored {len(expected)} files" in output

    cluster.start(leader)  # a restart needs neither --bootstrap nor --join
    cluster.wait_until_whole()
    for node in cluster.nodes:
        target = tmp_path / f"from-{node.id}"
        exported = run_cli("kv", "export", str(target), "--url", node.url, "--only-urls")
        assert exported.returncode == 0, exported.stderr
        assert tree_digests(target) == expected
