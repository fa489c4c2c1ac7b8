"""A process that is gone for good is replaced, and removed by itself."""

from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.testing.processes import ServeCluster, eventually, run_cli

pytestmark = pytest.mark.process

ClusterFactory = Callable[..., ServeCluster]


def test_a_dead_process_is_shown_then_removed_once_a_replacement_has_joined(
    clusters: ClusterFactory,
) -> None:
    cluster = clusters(4, ("--cleanup-dead-servers", "--dead-server-last-contact-threshold", "2.5"))
    n1, n2, n3, n4 = cluster.nodes
    cluster.start(n1, "--bootstrap")
    for node in (n2, n3):
        cluster.start(node, "--join", n1.address)
    cluster.wait_until_whole()
    n3.kill()

    def silent() -> float:
        servers: list[dict[str, Any]] = (cluster.status(n1) or {})["health"]["servers"]
        return max(float(server["silent_for"]) for server in servers)

    eventually(lambda: silent() >= 2.5, "n3 is dead")
    told = run_cli("status", n2.url).stdout
    (line,) = [line for line in told.splitlines() if line.startswith("n3  ")]
    assert "no answer" in line
    assert "silent for" in line
    assert n3.id in members(cluster), "of three none can be spared"

    cluster.start(n4, "--join", n1.address)
    eventually(lambda: members(cluster) == {"n1", "n2", "n4"}, "n3 is removed")
    assert cluster.http.put(f"{n4.url}/kv/k", content=b"v").status_code == 204
    assert "autopilot removes n3" in n1.output()

    cluster.start(n3, "--join", n2.address)  # it has its state, and comes back like any other
    cluster.wait_until_whole()
    assert cluster.http.get(f"{n3.url}/kv/k").text == "v"


def members(cluster: ServeCluster) -> set[str]:
    status = cluster.status(cluster["n1"])
    return {server["id"] for server in status["servers"]} if status else set()
