"""Garbage at the port of a real cluster: refused where it came, and nothing changes elsewhere.

Each test runs against the same three nodes, with the default access and with a token; `calm` holds
the cluster to what it was before: leader, term, answers, memory, processor.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from rafthttp.raft.types import Log, LogType, ServerAddress, ServerID
from rafthttp.raft.wire.entries import encode_log
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
from rafthttp.raft.wire.rpc import encode_request
from rafthttp.testing.hostile import (
    connect,
    cpu_seconds,
    descriptors,
    exchange,
    open_stream,
    read_to_end,
    resident_bytes,
)
from rafthttp.testing.processes import ServeCluster, ServeProcess, eventually, serve_cluster

pytestmark = pytest.mark.process

TOKEN = "right"
GROWTH_BYTES_MAX = 10 << 20
ADDRESS = ServerAddress("127.0.0.1:9")
HEAD = b"GET /raft HTTP/1.1\r\nHost: h\r\n"


@dataclass(slots=True)
class Target:
    """A cluster under attack, and the follower that is attacked."""

    cluster: ServeCluster
    victim: ServeProcess
    token: str | None

    @property
    def pid(self) -> int:
        assert self.victim.process is not None
        return self.victim.process.pid

    @property
    def authorization(self) -> bytes:
        return b"" if self.token is None else f"Authorization: Bearer {self.token}\r\n".encode()

    def stream(self) -> socket.socket:
        return open_stream(self.victim.address, token=self.token)

    def place(self) -> list[tuple[str, int, str]]:
        """Of each node: its id, its term, its leader."""
        pages = [self.cluster.status(node) for node in self.cluster.nodes]
        return [(p["id"], p["term"], (p["leader"] or {}).get("id")) if p else None for p in pages]  # type: ignore[misc]  # None is compared only

    @contextmanager
    def calm(self) -> Generator[None]:
        """Whatever happens inside changes nothing that lasts."""
        place, memory, files = self.place(), resident_bytes(self.pid), descriptors(self.pid)
        with self.stream() as other:
            yield
            ask_who(other)  # a stream of before goes on
        assert self.place() == place
        for node in self.cluster.nodes:
            assert self.cluster.http.put(f"{node.url}/kv/calm", content=b"v").status_code == 204
        eventually(lambda: descriptors(self.pid) <= files + 3, "descriptors are given back")
        eventually(
            lambda: resident_bytes(self.pid) < memory + GROWTH_BYTES_MAX, "memory is given back"
        )
        eventually(lambda: processor_share(self.pid) < 0.5, "the processor is idle")
        assert self.place() == place
        assert "Traceback" not in self.victim.output()


def processor_share(pid: int) -> float:
    begin, used = time.monotonic(), cpu_seconds(pid)
    eventually(lambda: time.monotonic() - begin > 0.2, "a window to measure in")
    return (cpu_seconds(pid) - used) / (time.monotonic() - begin)


def ask_who(stream: socket.socket) -> None:
    """A pre-vote of term 0 on an open stream is answered (and changes nothing)."""
    stream.sendall(encode_request(RequestPreVoteRequest(RPCHeader(3), 0, 0, 0)))
    assert b"ProtocolVersion" in stream.recv(4096)


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["loopback", "token"])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    token: str | None = request.param
    directory = tmp_path_factory.mktemp("attacked")
    options = ["--timeout", "2"]
    headers: dict[str, str] = {}
    if token is not None:
        (directory / "token").write_text(token)
        options += ["--token-file", str(directory / "token")]
        headers["Authorization"] = f"Bearer {token}"
    with serve_cluster(directory / "cluster", 3, options, headers) as cluster:
        leader = cluster.start_all()
        victim = next(node for node in cluster.nodes if node is not leader)
        yield Target(cluster, victim, token)


# -- requests


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split(b" ", 2)[1])


UPGRADES = {
    "no upgrade": HEAD,
    "another upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "an empty upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: \r\n",
    "a version": HEAD + b"Connection: Upgrade\r\nUpgrade: raft/2\r\n",
    "a suffix": HEAD + b"Connection: Upgrade\r\nUpgrade: raftx\r\n",
    "connection: close": HEAD + b"Connection: close\r\nUpgrade: raft\r\n",
    "a body": HEAD + b"Connection: Upgrade\r\nUpgrade: raft\r\nContent-Length: 3\r\n",
    "a chunked body": HEAD
    + b"Connection: Upgrade\r\nUpgrade: raft\r\nTransfer-Encoding: chunked\r\n",
    "HTTP/1.0": b"GET /raft HTTP/1.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raft\r\n",
}


def test_malformed_upgrades(target: Target) -> None:
    with target.calm():
        for name, head in UPGRADES.items():
            tail = b"abc" if b"Content-Length" in head else b""
            tail = b"0\r\n\r\n" if b"chunked" in head else tail
            end = b"" if b"Connection" in head else b"Connection: close\r\n"
            answer = exchange(
                target.victim.address, head + end + target.authorization + b"\r\n" + tail
            )
            assert status_of(answer) == 400, (name, answer)
            sentence = answer.partition(b"\r\n\r\n")[2].decode()
            assert len(sentence.split()) > 3, (name, answer)


def test_what_is_no_http(target: Target) -> None:
    with target.calm():
        for request in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
            bytes(range(256)) * 4,
            b"\r\n" * 3 + b"raft\r\n\r\n",
            b"GET /raft\r\n\r\n",
            b"GET /raft HTTP/9.9\r\n\r\n",
            b"GET /raft HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /raft HTTP/1.1\r\nUpgrade: raft\r\nX: a\x00b\r\n\r\n",
            b"\x00\x89\xa4Addr" + bytes(100),  # an RPC without a handshake
        ):
            # What can be read after all is asked for its token first.
            assert status_of(exchange(target.victim.address, request)) in (400, 401), request


def test_wrong_methods(target: Target) -> None:
    with target.calm():
        for method in (b"PATCH", b"OPTIONS", b"HEAD", b"TRACE"):
            answer = exchange(
                target.victim.address,
                method
                + b" /raft HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                + target.authorization
                + b"\r\n",
            )
            assert status_of(answer) == 405, answer
            assert b"allow: GET, POST, DELETE, PUT" in answer.replace(b"Allow", b"allow")


NAMES = ["", "a\r\nb", "a\nb", "a\0b", "a&b", "a b", "é\u202e", "x" * 1000, "x" * (1 << 20)]
ADDRESSES = [
    "",
    "127.0.0.1",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:x",
    "h\r\nX: y:1",
    "h\0:1",
    "a&id=n1:1",
    "[::1:80",
    "x" * (1 << 20) + ":1",
]


def test_ids_and_addresses_against_the_grammar(target: Target) -> None:
    with target.calm():
        queries = [f"id={quote(name, safe='')}&address={ADDRESS}" for name in NAMES]
        queries += [f"id=n9&address={quote(text, safe='')}" for text in ADDRESSES]
        queries += ["id=n9&id=n8&address=127.0.0.1:9", "id=%ff&address=127.0.0.1:9", "id=a%zz"]
        queries += ["&" * 100, "address=127.0.0.1:9"]
        for query in queries:
            for method in ("POST", "DELETE"):
                if method == "DELETE" and query.startswith("id=n9&address"):
                    continue
                answer = exchange(
                    target.victim.address,
                    f"{method} /raft?{query} HTTP/1.1\r\nHost: h\r\n".encode()
                    + target.authorization
                    + b"Connection: close\r\n\r\n",
                )
                assert status_of(answer) == 400, (method, query[:80], answer[:200])
        assert "X: y" not in target.victim.output()


@pytest.mark.parametrize("target", [None], indirect=True, ids=["loopback"])
def test_silent_and_slow_peers_meet_the_deadline_of_the_handshake(target: Target) -> None:
    """Nobody holds a socket for longer than the ten seconds a head may take."""
    begin = time.monotonic()
    with target.calm(), ExitStack() as stack:
        silent = stack.enter_context(connect(target.victim.address, 30))
        half = stack.enter_context(connect(target.victim.address, 30))
        half.sendall(HEAD + b"Upgr")
        slow = stack.enter_context(connect(target.victim.address, 30))
        slow.settimeout(0.5)
        sent = iter(HEAD + b"X: " + b"a" * 100)
        closed = False
        while not closed and time.monotonic() - begin < 15:
            try:
                slow.sendall(bytes([next(sent)]))
                closed = slow.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
        assert closed, "a byte each half second is read for ever"
        for waiting in (silent, half):
            assert read_to_end(waiting) == b""
        assert time.monotonic() - begin < 15


# -- behind the 101


def header(server_id: str = "stranger") -> RPCHeader:
    return RPCHeader(3, ServerID(server_id), ADDRESS)


def append(
    term: int, prev: int = 0, prev_term: int = 0, commit: int = 0, server_id: str = "stranger"
) -> AppendEntriesRequest:
    return AppendEntriesRequest(
        header(server_id),
        term,
        ADDRESS,
        prev,
        prev_term,
        Entries(prev + 1, [], [], [], []),
        commit,
    )


def vote(term: int, last: int = 0, last_term: int = 0) -> RequestVoteRequest:
    return RequestVoteRequest(header(), term, ADDRESS, last, last_term, False)


def with_entry(kind: LogType, data: bytes, term: int = 1) -> AppendEntriesRequest:
    record = encode_log(1, term, kind, data, b"", None)
    return append(9)._replace(entries=Entries(1, [term], [Log(1, term, kind, data)], [record], []))


def snapshot(configuration: bytes, size: int = 0, term: int = 1) -> InstallSnapshotRequest:
    return InstallSnapshotRequest(header(), 1, term, ADDRESS, 5, 1, None, configuration, 1, size)


def field(request: Request, name: bytes, value: bytes) -> bytes:
    """The request with a field of the value nil, or 90, replaced by other bytes."""
    frame = encode_request(request)
    key = bytes([0xA0 | len(name)]) + name
    at = frame.index(key) + len(key)
    return frame[:at] + value + frame[at + 1 :]


HUGE = 1 << 63
GARBAGE = {
    "an unknown rpc": b"\x09\x80",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no map": b"\x00\xc3",
    "a string for a term": field(vote(1), b"Term", b"\xa1x"),
    "a negative term": field(vote(1), b"Term", b"\xff"),
    "entries: a map": field(append(1), b"Entries", b"\x81\xa1a\xa1b"),
    "entries: nil in a list": field(append(1), b"Entries", b"\x91\xc0"),
    "a 4 GiB id": field(vote(1), b"ID", b"\xdb\xff\xff\xff\xff"),
    "a 4 GiB unknown field": b"\x00\x81\xa5Other\xdb\xff\xff\xff\xff" + bytes(1 << 20),
    "2**32 - 1 entries": field(append(1), b"Entries", b"\xdd\xff\xff\xff\xff"),
    "10 million arrays": b"\x01\x81\xa5Other\xdd\x00\x98\x96\x80" + b"\x90" * 10_000_000,
    "deep nesting": b"\x01\x81\xa5Other" + b"\x91" * 1000,
    "a garbage configuration": encode_request(with_entry(LogType.CONFIGURATION, b"\xc1garbage")),
    "a snapshot of garbage": encode_request(snapshot(b"\x93\xc0\xc0\xc0")),
    "a snapshot of a negative size": field(snapshot(b""), b"Size", b"\xff"),
    "a vote in term 2**63": encode_request(vote(HUGE)),
    "a vote in term 2**64 - 1": encode_request(vote(2**64 - 1, 2**64 - 1, 2**64 - 1)),
    "a pre-vote in term 2**63": encode_request(RequestPreVoteRequest(header(), HUGE, 1, 1)),
    "a vote at index 2**63": encode_request(vote(1, HUGE, 1)),
    "a heartbeat in term 2**63": encode_request(append(HUGE)),
    "a heartbeat in term 2**63 - 2": encode_request(append(HUGE - 2)),
    "an append behind 2**63": encode_request(append(9, HUGE, 1)),
    "an append behind 2**64 - 1": encode_request(append(9, 2**64 - 1, 1)),
    "a commit of 2**64 - 1": encode_request(append(9, 0, 0, 2**64 - 1)),
    "an entry of term 2**64 - 1": encode_request(with_entry(LogType.COMMAND, b"", 2**64 - 1)),
    "a snapshot in term 2**63": encode_request(snapshot(b"", term=HUGE)),
}


def test_garbage_behind_a_101_closes_its_connection_only(target: Target) -> None:
    """It is logged once, with the socket address of who sent it."""
    with target.calm():
        for name, frame in GARBAGE.items():
            with target.stream() as stream:
                host, port = stream.getsockname()
                try:
                    stream.sendall(frame)
                    rest = stream.recv(100)
                except ConnectionError:
                    rest = b""
                assert rest == b"", (name, rest)
            lines = [
                line
                for line in target.victim.output().splitlines()
                if f"{host}:{port}:" in line and "closing the stream" in line
            ]
            assert len(lines) == 1, (name, lines)


def test_truncated_rpcs(target: Target) -> None:
    frame = encode_request(vote(1))
    with target.calm():
        for end in range(1, len(frame), 7):
            with target.stream() as stream:
                stream.sendall(frame[:end])
        with target.stream() as stream:  # 200 MiB that would be allowed, and never come whole
            stream.sendall(b"\x01\x81\xa5Other\xdb\x0c\x80\x00\x00" + bytes(1 << 20))
        with target.stream() as stream:
            stream.sendall(encode_request(snapshot(b"", 1 << 40)) + bytes(1 << 20))


# -- a well-formed liar


def terms_of(frames: list[Request], target: Target) -> None:
    for frame in frames:
        with target.stream() as stream:
            stream.settimeout(2)
            try:
                stream.sendall(encode_request(frame))
                stream.recv(4096)
            except (ConnectionError, TimeoutError):
                continue


def test_a_stranger_unseats_no_leader_by_votes(target: Target) -> None:
    """Whatever log and term it claims, transfer or not: a live leader stays, the term too."""
    ahead = RequestVoteRequest(header(), 1 << 30, ADDRESS, 1 << 30, 1 << 30, True)
    with target.calm():
        terms_of(
            [
                ahead,
                ahead._replace(leadership_transfer=False),
                RequestPreVoteRequest(header(), 1 << 30, 1 << 30, 1 << 30),
                TimeoutNowRequest(header()),
            ],
            target,
        )


def test_a_liar_that_speaks_as_leader_or_member_loses_no_acknowledged_write(
    target: Target,
) -> None:
    """What an authorised liar can do, and what it cannot.

    Raft trusts its members, and who gets a stream counts as one. A liar can raise the term by at
    most 2**40 a message, and with it cause an election; it can claim to lead, and the follower
    believes it until the next election timeout or the next word from a real leader; as the leader's
    id it can send TimeoutNow. With entries of its own in a term above all others it could replace
    what is not committed, and append what a client never sent: access to streams is access to the
    data, which is why only the own host has it without a token. It cannot use up the terms, change
    a committed entry, or stop a node.
    """
    cluster = target.cluster
    keys = [f"kept-{number}" for number in range(20)]
    for key in keys:
        url = f"{cluster.nodes[0].url}/kv/{key}"
        assert cluster.http.put(url, content=key.encode()).status_code == 204
    leader = cluster.leader()
    term = max(place[1] for place in target.place())
    terms_of(
        [
            append(term + 1000),
            TimeoutNowRequest(header()),
            append(term + 2000, server_id=leader.id),
            TimeoutNowRequest(header(leader.id)),
            RequestVoteRequest(header(leader.id), term + 5000, ADDRESS, 1 << 40, term + 4000, True),
            RequestVoteRequest(header("n9"), term + 9000, ADDRESS, 1 << 40, term + 9000, True),
        ],
        target,
    )
    cluster.wait_until_whole()
    for node in cluster.nodes:
        assert node.running
        for key in keys:
            assert cluster.http.get(f"{node.url}/kv/{key}").text == key
        assert cluster.http.put(f"{node.url}/kv/after", content=b"v").status_code == 204
