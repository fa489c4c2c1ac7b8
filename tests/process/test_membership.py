"""Members come and go: through a follower, by leaving, under another leader, with a token."""

import http.client
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually, run_cli

pytestmark = pytest.mark.process

ClusterFactory = Callable[..., ServeCluster]


def raw(method: str, url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """One request, redirects not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=15)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


def members(cluster: ServeCluster, node: ServeProcess) -> set[str]:
    status = cluster.status(node)
    return {server["id"] for server in status["servers"]} if status else set()


def put(cluster: ServeCluster, node: ServeProcess, key: str, **options: Any) -> int:
    return cluster.http.put(f"{node.url}/kv/{key}", content=key.encode(), **options).status_code


def test_n3_joined_through_a_follower_which_redirects_to_the_leader(cluster: ServeCluster) -> None:
    n1, n2, n3 = cluster.nodes
    assert cluster.leader() is n1
    # What n3's own request met while n2 was a follower.
    assert "could not join server n3: server n1 leads" in n2.output()
    answer = raw("POST", f"{n2.url}/raft?id=n3&address={n3.address}")
    assert answer.status == 308
    assert answer.getheader("location") == f"{n1.url}/raft?id=n3&address={n3.address}"


def test_a_follower_leaves_and_comes_back(cluster: ServeCluster) -> None:
    n3 = cluster["n3"]
    assert put(cluster, n3, "before") == 204
    left = run_cli("leave", n3.url)
    assert (left.returncode, left.stdout) == (0, "n3 has left its cluster and stops\n"), left.stderr
    assert n3.process is not None
    assert n3.process.wait(5) == 0
    assert "n3 has left its cluster" in n3.output()
    assert cluster.leader().id in members(cluster, cluster["n1"]) == {"n1", "n2"}
    assert put(cluster, cluster["n1"], "meanwhile") == 204

    cluster.start(n3, "--join", cluster["n1"].url)
    cluster.wait_until_whole()
    for key in ("before", "meanwhile"):
        assert cluster.http.get(f"{n3.url}/kv/{key}").text == key


def test_the_leader_leaves_itself_and_comes_back(cluster: ServeCluster) -> None:
    leader = cluster.leader()
    assert put(cluster, leader, "before") == 204
    left = run_cli("leave", leader.url)
    assert left.returncode == 0, left.stderr
    assert leader.process is not None
    assert leader.process.wait(5) == 0
    assert "Traceback" not in leader.output()

    successor = cluster.wait_until_whole()
    assert leader.id not in members(cluster, successor)
    assert put(cluster, successor, "after") == 204
    cluster.start(leader, "--join", successor.url)
    cluster.wait_until_whole()
    assert len(members(cluster, leader)) == 3
    assert cluster.http.get(f"{leader.url}/kv/after").text == "after"


def test_one_that_left_and_restarts_without_join_stays_out_and_harms_nobody(
    cluster: ServeCluster,
) -> None:
    """S53: a removed server does not disturb."""
    n3 = cluster["n3"]
    assert run_cli("leave", n3.url).returncode == 0
    assert n3.process is not None
    n3.process.wait(5)
    term = (cluster.status(cluster["n1"]) or {})["term"]
    cluster.start(n3)
    eventually(lambda: cluster.status(n3), "n3 serves")
    for number in range(20):
        assert put(cluster, cluster["n2"], f"calm-{number}") == 204
    assert members(cluster, cluster["n1"]) == {"n1", "n2"}
    assert (cluster.status(cluster["n1"]) or {})["term"] == term
    assert "n3 left its cluster, or was removed: only joining brings it back" in n3.output()
    assert (cluster.status(n3) or {})["member"] is False
    told = run_cli("status", n3.url).stdout
    assert "n3 is no member of a cluster now: started with --join it is one again" in told


def test_status_tells_of_every_member_and_marks_who_does_not_answer(cluster: ServeCluster) -> None:
    n1, n2, n3 = cluster.nodes
    n3.kill()
    told = run_cli("status", n2.address, timeout=20)  # http is understood
    assert (told.returncode, told.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines()[2:]}
    index = str((cluster.status(n1) or {})["last_index"])
    assert rows["n1"][:4] == [n1.address, "voter", "leader", index]
    assert rows["n2"][:4] == [n2.address, "voter", "follower", index]
    assert rows["n3"][:3] == ["does", "not", "answer:"]
    assert f"n3  {n3.address}  voter     no answer" in told.stdout
    assert "cannot connect: connection refused" in told.stdout


def test_a_joiner_killed_at_once_takes_the_join_up_again_without_the_flag(
    clusters: ClusterFactory,
) -> None:
    cluster = clusters(2, ("--timeout", "1"))
    n1, n2 = cluster.nodes
    # n1 is not there yet: n2 is killed in the middle of joining.
    cluster.start(n2, "--join", n1.url)
    eventually(lambda: (cluster.status(n2) or {}).get("join_error"), "n2 tries to join")
    n2.kill()
    cluster.start(n1, "--bootstrap")
    eventually(lambda: (cluster.status(n1) or {}).get("state") == "leader", "n1 leads")
    cluster.start(n2)
    cluster.wait_until_whole()
    assert members(cluster, n1) == {"n1", "n2"}


@pytest.fixture
def guarded(clusters: ClusterFactory, tmp_path: Path) -> ServeCluster:
    token = tmp_path / "token"
    token.write_text("right\n")
    cluster = clusters(2, ("--token-file", str(token)), {"Authorization": "Bearer right"})
    cluster.start_all()
    return cluster


def test_the_token_guards_everything_but_healthz(guarded: ServeCluster, tmp_path: Path) -> None:
    n1, n2 = guarded.nodes
    assert put(guarded, n2, "secret") == 204
    wrong: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}]
    for headers in wrong:
        for node in (n1, n2):
            for method, path in (
                ("GET", "/kv/secret"),
                ("PUT", "/kv/secret"),
                ("DELETE", "/kv/secret"),
                ("GET", "/kv"),
                ("GET", "/status"),
                ("POST", "/leave"),
                ("POST", "/raft?id=n9&address=127.0.0.1:9"),
                ("DELETE", "/raft?id=n1"),
                ("PUT", "/raft?op=apply"),
            ):
                answer = raw(method, f"{node.url}{path}", headers)
                assert answer.status == 401, (method, path, headers)
                assert answer.getheader("www-authenticate") == "Bearer"
            upgrade = {"Upgrade": "raft", "Connection": "Upgrade", **headers}
            assert raw("GET", f"{node.url}/raft", upgrade).status == 401
            assert raw("GET", f"{node.url}/healthz", headers).status == 200
    assert guarded.http.get(f"{n1.url}/kv/secret").text == "secret"

    right = tmp_path / "token"
    bad = tmp_path / "bad"
    bad.write_text("wrong")
    for option, code in (
        (("--token-file", str(right)), 0),
        (("--token-file", str(bad)), 1),
        ((), 1),
    ):
        done = run_cli("kv", "get", "secret", "--url", n2.url, *option)
        assert done.returncode == code
        assert done.stdout == ("secret" if code == 0 else "")
        assert len(done.stderr.splitlines()) == code


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_joiner_without_the_token_is_refused_and_the_cluster_unchanged(
    guarded: ServeCluster, tmp_path: Path, token: str | None
) -> None:
    n1 = guarded.nodes[0]
    with_token: tuple[str, ...] = ()
    if token is not None:
        (tmp_path / "other").write_text(token)
        with_token = ("--token-file", str(tmp_path / "other"))
    stranger = ServeCluster(tmp_path / "stranger", 1, with_token)
    try:
        node = stranger.nodes[0]
        node.id = "n9"
        stranger.start(node, "--join", n1.url)
        eventually(lambda: "401" in node.output(), "the refusal is logged")
        assert members(guarded, n1) == {"n1", "n2"}
        node.terminate()
    finally:
        stranger.close()
