"""The same odd bytes to a real hashicorp/raft server and to ours: both take them, or neither.

What crashes a Go process is not sent to it here; ours gets that in `tests/raft/wire`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgpack
import pytest

from rafthttp.testing.interop import MixedCluster, mixed_cluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.interop_tapped import complaints
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import eventually
from rafthttp.testing.wirecheck import KINDS

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

APPEND, VOTE, INSTALL, NOW, PRE_VOTE = range(5)
_THEIR_OWN = {b"Addr", b"ID", b"Granted"}
_HEADER = {b"ProtocolVersion"}
ADDRESS = b"127.0.0.1:1"
TIME = bytes.fromhex("010000000eddca78d9075bcd15ffff")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedCluster]:
    """One server of each kind, each alone, without a configuration, and in term 1.

    Nothing here is stored: term 0 is past, and no log has what comes before an entry.
    """
    with started(tmp_path_factory.mktemp("pair")) as cluster:
        for member in cluster.members:
            assert ask(member, TOLERATED["as Go writes it"]) is not None
        yield cluster
        for member in cluster.members:
            seen = member.wait_serving()
            assert (seen["last_index"], seen["term"]) == (0, 1)


@pytest.fixture(scope="module")
def voters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedCluster]:
    """One server of each kind, each a voter beside `x`, which `lead` speaks for."""
    with started(tmp_path_factory.mktemp("voters")) as cluster:
        for member in cluster.members:
            servers = [(member.address.encode(), member.id.encode()), (ADDRESS, b"x")]
            data = configuration(*servers)
            first = entry(Index=1, Type=5, Data=data)
            request = append(first, PrevLogEntry=0, PrevLogTerm=0)
            assert ask(member, pack(APPEND, request))[1][b"Success"] is True
        yield cluster


@contextmanager
def started(directory: Path) -> Generator[MixedCluster]:
    with mixed_cluster(directory, "gp", durable=False) as cluster:
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            member.wait_serving()
        yield cluster


def ask(member: Member, request: bytes, piece: int = 0) -> Any:
    """What is answered, without who answers; None where the connection is ended instead."""
    host, _, port = member.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(
            b"GET /raft HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: raft\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        for begin in range(0, len(request), piece or len(request)):
            connection.sendall(request[begin : begin + (piece or len(request))])
        stream = msgpack.Unpacker(raw=True)
        objects: list[Any] = []
        while len(objects) < 2:
            try:
                data = connection.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            stream.feed(data)
            objects.extend(stream)
    error, body = objects
    fields: dict[bytes, Any] = body or {}
    # Ours grants nothing while it has no configuration. Go's header may be empty, ours never is.
    own = _THEIR_OWN | _HEADER if request[0] in {INSTALL, NOW} else _THEIR_OWN
    return error, {key: value for key, value in fields.items() if key not in own}


def entry(**changes: Any) -> dict[str, Any]:
    usual = {"AppendedAt": TIME, "Data": b"x", "Extensions": None, "Index": 10, "Term": 1}
    return usual | {"Type": 0} | changes


def append(*entries: Any, **changes: Any) -> dict[str, Any]:
    """Behind an entry that no log has: never stored."""
    usual = {"Addr": ADDRESS, "Entries": list(entries), "ID": b"x", "Leader": ADDRESS}
    numbers = {"LeaderCommitIndex": 0, "PrevLogEntry": 9, "PrevLogTerm": 1, "ProtocolVersion": 3}
    return usual | numbers | {"Term": 1} | changes


def vote(**changes: Any) -> dict[str, Any]:
    usual = {"Addr": ADDRESS, "Candidate": ADDRESS, "ID": b"x", "LastLogIndex": 0}
    return (
        usual
        | {"LastLogTerm": 0, "LeadershipTransfer": False, "ProtocolVersion": 3, "Term": 0}
        | changes
    )


def pre_vote(**changes: Any) -> dict[str, Any]:
    usual = {"Addr": ADDRESS, "ID": b"x", "LastLogIndex": 0, "LastLogTerm": 0}
    return usual | {"ProtocolVersion": 3, "Term": 0} | changes


def configuration(*servers: tuple[bytes, bytes]) -> bytes:
    """Of voters: address and id of each."""
    listed = [{"Address": address, "ID": name, "Suffrage": 0} for address, name in servers]
    return pack(0, {"Servers": listed})[1:]


def install(**changes: Any) -> dict[str, Any]:
    """A snapshot of three bytes, of a term that is past."""
    usual = {"Addr": ADDRESS, "Configuration": configuration((ADDRESS, b"x")), "ID": b"x"}
    numbers = {"ConfigurationIndex": 1, "LastLogIndex": 9, "LastLogTerm": 1, "Peers": None}
    more = {"Leader": ADDRESS, "ProtocolVersion": 3, "Size": 3, "SnapshotVersion": 1, "Term": 0}
    return usual | numbers | more | changes


def timeout_now(**changes: Any) -> dict[str, Any]:
    return {"Addr": ADDRESS, "ID": b"x", "ProtocolVersion": 3} | changes


def pack(rpc: int, value: Any, *, new: bool = False) -> bytes:
    packed = msgpack.packb(value, use_bin_type=new)
    assert packed is not None
    return bytes([rpc]) + packed


def reverse(value: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(value.items()))


TOLERATED = {
    "as Go writes it": pack(APPEND, append(entry())),
    "many": pack(APPEND, append(*(entry(Index=10 + number) for number in range(100)))),
    "str8 and bin8": pack(APPEND, append(entry()), new=True).replace(b"\xc4\x0f", b"\xaf"),
    "any order": pack(APPEND, reverse(append(reverse(entry())))),
    "unknown fields": pack(
        APPEND,
        append(
            entry(New={"a": [1.5, None, [True]]}),
            More=[{}, "x", -1, 2**63],
            Empty={},
            Nil=None,
            Big=b"x" * 70_000,
        ),
    ),
    "a key twice": b"\x00\x8a\xa4Term\x09" + pack(APPEND, append(entry()))[2:],
    "map16 and array16": b"\x00\xde\x00\x09"
    + pack(APPEND, append(entry()))[2:].replace(b"\x91\x86", b"\xdc\x00\x01\xde\x00\x06"),
    "map32 and array32": b"\x00\xdf\x00\x00\x00\x09"
    + pack(APPEND, append(entry()))[2:].replace(
        b"\x91\x86", b"\xdd\x00\x00\x00\x01\xdf\x00\x00\x00\x06"
    ),
    "long strings": pack(APPEND, append(entry()))
    .replace(b"\xa4Data\xa1", b"\xdb\x00\x00\x00\x04Data\xda\x00\x01")
    .replace(b"\xa2ID\xa1", b"\xda\x00\x02ID\xdb\x00\x00\x00\x01")
    .replace(b"\xa6Leader\xab", b"\xd9\x06Leader\xc6\x00\x00\x00\x0b"),
    "wide integers": pack(APPEND, append(entry()))
    .replace(b"PrevLogEntry\x09", b"PrevLogEntry\xcf" + (9).to_bytes(8, "big"))
    .replace(b"\xa4Type\x00", b"\xa4Type\xcd\x00\x00")
    .replace(b"PrevLogTerm\x01", b"PrevLogTerm\xd2\x00\x00\x00\x01")
    .replace(b"ProtocolVersion\x03", b"ProtocolVersion\xcc\x03"),
    "a time with a zone": pack(APPEND, append(entry(AppendedAt=TIME[:13] + b"\x00\x78"))),
    "a time with seconds in its zone": pack(
        APPEND, append(entry(AppendedAt=b"\x02" + TIME[1:] + b"\x1e"))
    ),
    "no time": pack(APPEND, append(entry(AppendedAt=None))),
    "nil for all of an entry": pack(
        APPEND, append(dict.fromkeys(entry()) | {"Index": 10, "Term": 1})
    ),
    "nil for names": pack(APPEND, append(Addr=None, ID=None, Leader=None)),
    "nil for entries": pack(APPEND, append(Entries=None)),
    "an empty map for entries": pack(APPEND, append(Entries={})),
    "missing fields": pack(APPEND, {"ProtocolVersion": 3, "PrevLogEntry": 9, "PrevLogTerm": 1}),
    "a vote": pack(VOTE, vote()),
    "a vote with nil for all": pack(VOTE, dict.fromkeys(vote()) | {"ProtocolVersion": 3}),
    "a vote with 0 for a flag": pack(VOTE, vote(LeadershipTransfer=0)),
    "a pre-vote in any order": pack(PRE_VOTE, reverse(pre_vote())),
    "a pre-vote as bin": pack(PRE_VOTE, pre_vote(), new=True),
    "a snapshot": pack(INSTALL, install()) + b"abc",
    "a snapshot of protocol 2": pack(INSTALL, install(ProtocolVersion=2)) + b"abc",
    "a snapshot in any order": pack(INSTALL, reverse(install())) + b"abc",
    "a snapshot as bin": pack(INSTALL, install(), new=True) + b"abc",
    "a snapshot with unknown fields": pack(INSTALL, install(New=[1.5, {}], More=None)) + b"abc",
    "a snapshot with a wide size": pack(INSTALL, install()).replace(
        b"Size\x03", b"Size\xd3" + (3).to_bytes(8, "big")
    )
    + b"abc",
    "a snapshot with an unsigned size": pack(INSTALL, install()).replace(
        b"Size\x03", b"Size\xcf" + (3).to_bytes(8, "big")
    )
    + b"abc",
    "a snapshot with peers": pack(INSTALL, install(Peers=b"\x90")) + b"abc",
    "an empty snapshot with nil for the most": pack(
        INSTALL,
        dict.fromkeys(install())
        | {name: install()[name] for name in ("Configuration", "LastLogIndex")}
        | {"ProtocolVersion": 3, "SnapshotVersion": 1},
    ),
    **{f"nil for the whole of {KINDS[rpc]}": bytes((rpc, 0xC0)) for rpc in range(5)},
    **{f"an empty {KINDS[rpc]}": bytes((rpc, 0x80)) for rpc in range(5)},
}
# They say no version: that is what is refused, and the connection goes on.
NO_VERSION = b"operation not supported with current protocol version"

TOLERATED_NOW = {
    "as Go writes it": pack(NOW, timeout_now()),
    "of protocol 2": pack(NOW, timeout_now(ProtocolVersion=2)),
    "any order": pack(NOW, reverse(timeout_now())),
    "str8 and bin8": pack(NOW, timeout_now(), new=True),
    "unknown fields": pack(NOW, timeout_now(Term=9, More=[{}, None])),
    "a key twice": b"\x03\x84\xa2ID\xa1y" + pack(NOW, timeout_now())[2:],
    "a wide version": pack(NOW, timeout_now()).replace(
        b"Version\x03", b"Version\xd2\x00\x00\x00\x03"
    ),
    "no address": pack(NOW, timeout_now(Addr=None)),
}

KILLS = {
    "unknown RPC": b"\x05\x80",
    "a string for the map": b"\x04\xa1x",
    "a negative term": pack(PRE_VOTE, pre_vote(Term=-1)),
    "a float for a term": pack(PRE_VOTE, pre_vote(Term=0.5)),
    "a string for a term": pack(PRE_VOTE, pre_vote(Term="1")),
    "a bool for a term": pack(PRE_VOTE, pre_vote(Term=True)),
    "an array for a term": pack(PRE_VOTE, pre_vote(Term=[])),
    "a string for a flag": pack(VOTE, vote(LeadershipTransfer="x")),
    "entries as a map": pack(APPEND, append(Entries={"x": entry()})),
    "entries as a string": pack(APPEND, append(Entries="x")),
    "an integer for an entry": pack(APPEND, append(7)),
    "a type over 255": pack(APPEND, append(entry(Type=256))),
    "an integer for a time": pack(APPEND, append(entry(AppendedAt=1))),
    "a float for a time": pack(APPEND, append(entry(AppendedAt=1.5))),
    "a text for a time": pack(APPEND, append(entry(AppendedAt="2024-05-06T07:08:09Z"))),
    "an empty time": pack(APPEND, append(entry(AppendedAt=b""))),
    "a time of version 3": pack(APPEND, append(entry(AppendedAt=b"\x03" + TIME[1:]))),
    "a float for a size": pack(INSTALL, install(Size=3.0)) + b"abc",
    "a string for a size": pack(INSTALL, install(Size="3")) + b"abc",
    "a negative term of a snapshot": pack(INSTALL, install(Term=-1)) + b"abc",
    "an integer for a configuration": pack(INSTALL, install(Configuration=1)) + b"abc",
    "a string for a version": pack(NOW, timeout_now(ProtocolVersion="3")),
    "an integer for an address": pack(NOW, timeout_now(Addr=1)),
}

# Ours takes these, and writes them as Go can read them.
KILLS_ONLY_GO = {
    f"a time in {name}": pack(APPEND, append(entry())).replace(b"\xaf" + TIME, head + TIME)
    for name, head in {
        "bin8": b"\xc4\x0f",
        "bin16": b"\xc5\x00\x0f",
        "bin32": b"\xc6\x00\x00\x00\x0f",
        "str8": b"\xd9\x0f",
        "str16": b"\xda\x00\x0f",
        "str32": b"\xdb\x00\x00\x00\x0f",
    }.items()
}

# Nobody sends these: no encoder writes bytes or a struct so, and no cluster is without a voter.
KILLS_ONLY_OURS = {
    "a struct as an array": b"\x00\x90",
    "bytes as an array": pack(INSTALL, install(Peers=[1, 2])) + b"abc",
    "a snapshot of a negative size": pack(INSTALL, install(Size=-1)),
    "a snapshot without a voter": pack(INSTALL, install(Configuration=configuration())) + b"abc",
    "a snapshot with garbage for a configuration": pack(INSTALL, install(Configuration=b"x"))
    + b"abc",
}


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("case", TOLERATED)
def test_what_go_takes_we_take(pair: MixedCluster, case: str, piece: int) -> None:
    """Whole and byte by byte; the same answer but for the name of who answers."""
    request = TOLERATED[case]
    if piece and len(request) > 1000:
        piece = 1000
    go, ours = (ask(member, request, piece) for member in pair.members)
    assert go is not None, KINDS[request[0]]
    assert go[0] == (NO_VERSION if len(request) == 2 else b"")
    assert ours == go


@pytest.mark.parametrize("case", TOLERATED_NOW)
def test_what_makes_go_campaign_makes_ours(voters: MixedCluster, case: str) -> None:
    """A TimeoutNow of the leader, to a voter."""
    answers: list[Any] = []
    for member in voters.members:
        term = lead(member)
        answers.append(ask(member, TOLERATED_NOW[case]))
        eventually(lambda: member.wait_serving()["term"] > term, f"{member.id} campaigns")  # noqa: B023 - called in this turn
    assert answers == [(b"", {})] * 2


def lead(member: Member) -> int:
    """Word of `x`, in a term above what campaigns have come to; returns the term.

    No heartbeat: that goes by a way of its own in Go, past the loop that takes a TimeoutNow.
    """
    term = int(member.wait_serving()["term"]) + 5
    word = append(Entries=None, PrevLogEntry=1, PrevLogTerm=1, Term=term)
    assert ask(member, pack(APPEND, word))[1][b"Success"] is True
    return term


@pytest.mark.parametrize("case", KILLS)
def test_what_ends_a_connection_to_go_ends_ours(pair: MixedCluster, case: str) -> None:
    go, ours = (ask(member, KILLS[case]) for member in pair.members)
    assert go is None
    assert ours is None


def test_go_complains_of_what_it_cannot_read(pair: MixedCluster) -> None:
    """So that no complaint of it, after a long run, tells that it could read all."""
    before = len(complaints(pair))
    assert ask(pair["g1"], KILLS["a negative term"]) is None
    eventually(lambda: len(complaints(pair)) > before, "the Go server complains")


@pytest.mark.parametrize("case", KILLS_ONLY_GO)
def test_what_ours_takes_though_go_does_not(pair: MixedCluster, case: str) -> None:
    go, ours = (ask(member, KILLS_ONLY_GO[case]) for member in pair.members)
    assert go is None
    assert ours[0] == b""


@pytest.mark.parametrize("case", KILLS_ONLY_OURS)
def test_what_go_takes_though_ours_does_not(pair: MixedCluster, case: str) -> None:
    go, ours = (ask(member, KILLS_ONLY_OURS[case]) for member in pair.members)
    assert go is not None
    assert ours is None


# -- answers


class OddVoter:
    """A voter that grants and accepts all it is asked, in the bytes that `odd` makes of an answer.

    Args:
        odd: of the type byte and the fields, the whole answer.
    """

    def __init__(self, odd: Callable[[dict[str, Any]], bytes]) -> None:
        self._odd = odd
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: set[str] = set()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n") and (more := connection.recv(1)):
                head += more
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raft\r\n\r\n")
            stream = msgpack.Unpacker(raw=True, max_buffer_size=1 << 24)
            rpc: int | None = None
            while data := connection.recv(1 << 16):
                stream.feed(data)
                for value in stream:
                    if rpc is None:
                        rpc = value
                    else:
                        self.asked.add(KINDS[rpc])
                        connection.sendall(self._odd(answer(rpc, value)))
                        rpc = None


def answer(rpc: int, request: dict[bytes, Any]) -> dict[str, Any]:
    """Yes, as Go says it."""
    header = {"Addr": ADDRESS, "ID": b"odd", "ProtocolVersion": 3, "Term": request[b"Term"]}
    if rpc == APPEND:
        last = request[b"PrevLogEntry"] + len(request[b"Entries"] or ())
        return header | {"LastLog": last, "NoRetryBackoff": False, "Success": True}
    granted = header | {"Granted": True}
    return granted | {"Peers": None} if rpc == VOTE else granted


ODD_ANSWERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "nil for the error text": lambda fields: b"\xc0" + pack(0, fields)[1:],
    "the error text in bin8": lambda fields: b"\xc4\x00" + pack(0, fields)[1:],
    "the error text in str8": lambda fields: b"\xd9\x00" + pack(0, fields)[1:],
    "the error text in raw32": lambda fields: b"\xdb\x00\x00\x00\x00" + pack(0, fields)[1:],
    "all in bin8 and str8, backwards, with more": lambda fields: (
        b"\xc5\x00\x00" + pack(0, reverse(fields | {"New": [1.5, None]}), new=True)[1:]
    ),
    "nil and nothing for names": lambda fields: (
        b"\xa0"
        + pack(0, {name: fields[name] for name in fields if name != "ID"} | {"Addr": None})[1:]
    ),
}


@pytest.mark.parametrize("case", ODD_ANSWERS)
@pytest.mark.parametrize("language", ["g", "p"])
def test_odd_answers_are_taken(make_cluster: ClusterFactory, language: str, case: str) -> None:
    """A candidate wins by the votes of one that answers so, and commits by what it accepts."""
    with OddVoter(ODD_ANSWERS[case]) as odd:
        cluster = make_cluster(language)
        candidate = cluster.start_all()
        candidate.post("addvoter", id="odd", address=odd.address)
        term = candidate.wait_serving()["term"]
        candidate.kill()
        odd.asked.clear()
        candidate.start()
        candidate.wait_serving()
        assert cluster.wait_leader() is candidate
        assert candidate.apply(command("by its word"))["response"] == 1
        assert candidate.wait_serving()["term"] == term + 1
        assert odd.asked == {"RequestPreVote", "RequestVote", "AppendEntries"}
