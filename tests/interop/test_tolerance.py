"""The same odd bytes to a real hashicorp/raft server and to ours: both take them, or neither.

What crashes a Go process is not sent to it here; ours gets that in `tests/raft/wire`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rafthttp.testing.interop import MixedCluster, mixed_cluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.interop_tapped import complaints
from rafthttp.testing.processes import eventually
from rafthttp.testing.wirecheck import KINDS

pytestmark = pytest.mark.interop

APPEND, VOTE, INSTALL, NOW, PRE_VOTE = range(5)
_THEIR_OWN = {b"Addr", b"ID", b"Granted"}
ADDRESS = b"127.0.0.1:1"
TIME = bytes.fromhex("010000000eddca78d9075bcd15ffff")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedCluster]:
    """One server of each kind, each alone and without a configuration: nothing here is stored."""
    directory: Path = tmp_path_factory.mktemp("pair")
    with mixed_cluster(directory, "gp", durable=False) as cluster:
        for member in cluster.members:
            member.start()
        for member in cluster.members:
            member.wait_serving()
        yield cluster
        for member in cluster.members:
            assert member.wait_serving()["last_index"] == 0


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
    # Ours grants nothing while it has no configuration.
    return error, {key: value for key, value in fields.items() if key not in _THEIR_OWN}


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
}

# Ours takes these, and writes them as Go can read them.
KILLS_ONLY_GO = {
    "a time in bin8": pack(APPEND, append(entry())).replace(b"\xaf" + TIME, b"\xc4\x0f" + TIME),
    "a time in str8": pack(APPEND, append(entry())).replace(b"\xaf" + TIME, b"\xd9\x0f" + TIME),
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
    assert go[0] == b""
    assert ours == go


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
