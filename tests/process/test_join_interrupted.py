"""A leader dies between a server's addition and its promotion: nobody is stranded."""

import json
import signal
import urllib.request
from collections.abc import Callable

import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually

pytestmark = pytest.mark.process

ClusterFactory = Callable[..., ServeCluster]


def suffrage(node: ServeProcess, of: ServeProcess) -> str | None:
    with urllib.request.urlopen(f"{node.url}/status", timeout=5) as answer:
        servers = json.load(answer)["servers"]
    return next((s["suffrage"] for s in servers if s["id"] == of.id), None)


def test_a_leader_killed_before_the_promotion_strands_nobody(clusters: ClusterFactory) -> None:
    """The log says that it is joining: the next leader promotes it, though nobody asks there.

    The joiner, which was told of the first leader only, is stopped (SIGSTOP) once it is added, so
    that the leader waits for it to catch up; then the leader is killed, and the joiner goes on.
    """
    cluster = clusters(4)
    n1, n2, n3, n4 = cluster.nodes
    cluster.start(n1, "--bootstrap")
    cluster.start(n2, "--join", n1.url)
    cluster.start(n3, "--join", n1.url)
    cluster.wait_until_whole()
    # Some megabytes to catch up with, so that there is a time between the two steps.
    for number in range(24):
        answer = cluster.http.put(f"{n1.url}/kv/big{number}", content=b"x" * (1 << 20), timeout=30)
        assert answer.status_code == 204

    cluster.start(n4, "--join", n1.url)
    eventually(lambda: suffrage(n1, n4) is not None or None, "n4 to be added")
    n4.send(signal.SIGSTOP)
    try:
        assert suffrage(n1, n4) == "staging", "it was promoted before it could be stopped"
        n1.kill()
        successor = cluster.leader()
        assert suffrage(successor, n4) in ("staging", None)
    finally:
        n4.send(signal.SIGCONT)
    eventually(lambda: suffrage(successor, n4) == "voter" or None, "n4 to be promoted", 60)
    # It is answered, too: it asks those whom the log has named since.
    eventually(lambda: "n4: a member of cluster" in n4.output() or None, "n4 to know of it")
    cluster.start(n1)
    cluster.wait_until_whole(60)
    assert cluster.http.get(f"{n4.url}/kv/big23", timeout=30).content == b"x" * (1 << 20)
