"""What single requests are answered, byte by byte, by a real hashicorp/raft and by ours."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    Entries,
    InstallSnapshotRequest,
    Request,
    RequestPreVoteRequest,
    RequestVoteRequest,
    RPCHeader,
    TimeoutNowRequest,
)
from rafthttp.raft.wire.rpc import encode_failure, encode_request
from rafthttp.testing.interop import MixedCluster, mixed_cluster
from rafthttp.testing.interop_member import Member, RefusedError

pytestmark = pytest.mark.interop

ADDRESS = ServerAddress("127.0.0.1:1")
NO_ENTRIES = Entries(0, [], [], [], [])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedCluster]:
    """One server of each kind, each alone and without a configuration: it takes no part."""
    directory: Path = tmp_path_factory.mktemp("pair")
    with mixed_cluster(directory, "gp", durable=False) as cluster:
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            member.wait_serving()
        yield cluster


@contextmanager
def stream(member: Member) -> Generator[socket.socket]:
    """An upgraded connection."""
    host, _, port = member.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"GET /raft HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield connection


def ask(member: Member, request: bytes, size: int) -> bytes:
    """The first `size` bytes of the answer; fewer where the connection ends before."""
    with stream(member) as connection:
        connection.sendall(request)
        answer = b""
        while len(answer) < size and (more := connection.recv(size - len(answer))):
            answer += more
        return answer


def requests(version: int) -> dict[str, Request]:
    """One of each kind that changes no state: their term is past."""
    header = RPCHeader(version, ServerID("stranger"), ADDRESS)
    return {
        "AppendEntries": AppendEntriesRequest(header, 0, ADDRESS, 9, 9, NO_ENTRIES, 0),
        "RequestVote": RequestVoteRequest(header, 0, ADDRESS, 9, 9, False),
        "RequestPreVote": RequestPreVoteRequest(header, 0, 9, 9),
        "InstallSnapshot": InstallSnapshotRequest(
            header, 1, 0, ADDRESS, 9, 9, None, b"\x81\xa7Servers\x90", 1, 0
        ),
        "TimeoutNow": TimeoutNowRequest(header),
    }


@pytest.mark.parametrize("version", [0, 1, 4])
@pytest.mark.parametrize("kind", list(requests(3)))
def test_a_strange_version_is_refused_as_go_does(
    pair: MixedCluster, kind: str, version: int
) -> None:
    """Go's own text and a nil body, the same bytes from both."""
    request = encode_request(requests(version)[kind])
    expected = encode_failure("operation not supported with current protocol version")
    assert expected.endswith(b"\xc0")
    for member in pair.members:
        assert ask(member, request, len(expected)) == expected, member.id
        assert member.wait_serving()["term"] == 0


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", ["AppendEntries", "RequestVote", "RequestPreVote"])
def test_versions_2_and_3_are_accepted(pair: MixedCluster, kind: str, version: int) -> None:
    """No error text, and the response itself. Only the names of who answers differ.

    InstallSnapshot and TimeoutNow change less only in another term: see `test_tolerance.py`.
    """
    request = encode_request(requests(version)[kind])
    answers: set[bytes] = set()
    for member in pair.members:
        answer = ask(member, request, 1)
        assert answer == b"\xa0", member.id
        answers.add(answer)


ClusterFactory = Callable[..., MixedCluster]


@pytest.mark.parametrize("leads", ["go", "python"])
def test_a_member_that_speaks_protocol_2(make_cluster: ClusterFactory, leads: str) -> None:
    """A Go server configured for protocol 2 (its id is its address) with one of ours."""
    cluster = make_cluster("g" if leads == "go" else "p")
    old = cluster.members[0] if leads == "go" else cluster.add("g")
    old.id = old.address
    old.options["protocol_version"] = 2
    if leads == "go":
        cluster.add("p")
    cluster.start_all()
    for number in range(5):
        cluster.apply(b"%d" % number)
    assert cluster.wait_level()["applied"] == 5
    cluster.assert_logs_equal()
    assert old.wait_serving()["raft"]["protocol_version"] == "2"


@pytest.mark.parametrize("leader", ["g1", "p1"])
def test_the_new_time_format(make_cluster: ClusterFactory, leader: str) -> None:
    """`MsgpackUseNewTimeFormat` on the wire and in bolt: the same instants everywhere."""
    shape = "gpg" if leader == "g1" else "pgg"
    cluster = make_cluster(shape, go={"new_time_format": True})
    cluster.start_all()
    for number in range(20):
        cluster.apply(b"%d" % number)
    cluster.wait_level()
    cluster.assert_logs_equal()
    stamps = [entry["appended_at"] for entry in cluster["p1"].log() if entry["type"] == 0]
    assert len(stamps) == 20
    assert stamps == sorted(stamps)
    assert all(stamps)


def test_nothing_is_forwarded_to_a_leader_in_go(make_cluster: ClusterFactory) -> None:
    """raft-http answers 405: definite, for a command and for a linearizable read of a follower."""
    cluster = make_cluster("gp")
    cluster.start_all()
    member = cluster["p1"]
    for call in ("forward", "read"):
        with pytest.raises(RefusedError, match="takes no forwarded") as refused:
            member.post(call, b"x", timeout=0.5)
        assert refused.value.outcome == "definite"
    cluster.leader().post("transfer", id=member.id, address=member.address)
    cluster.wait_leader([member])
    assert member.post("forward", b"x")["response"] == 1
    assert member.post("read")["index"] > 1


@pytest.mark.parametrize("language", ["g", "p"])
def test_what_else_the_admin_api_does(make_cluster: ClusterFactory, language: str) -> None:
    """Both kinds answer in the same shape."""
    cluster = make_cluster(language, durable=False)
    leader = cluster.start_all()
    assert leader.post("barrier") == leader.post("verify") == {}
    bench = leader.post("bench", clients=4, seconds=0.1, size=100)
    assert bench["errors"] == 0
    assert bench["applied"] == leader.wait_serving()["fsm"]["applied"] > 4
    assert 0 < bench["p50_ms"] <= bench["p99_ms"]
    assert {len(entry["sha256"]) for entry in leader.log()} == {64}
    assert {entry["size"] for entry in leader.log() if entry["type"] == 0} == {100}
    with pytest.raises(RefusedError):
        leader.get("log", first="x")
