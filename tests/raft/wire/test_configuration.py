"""Configurations: Go's bytes, tolerance, garbage."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage
from rafthttp.raft.wire.configuration import decode_configuration, encode_configuration

_GOLDEN = bytes.fromhex((Path(__file__).parent / "testdata" / "configuration.hex").read_text())


def _server(number: int, suffrage: Suffrage = Suffrage.VOTER) -> Server:
    return Server(ServerID(f"n{number}"), ServerAddress(f"127.0.0.1:1730{number}"), suffrage)


_EXPECTED = Configuration((_server(1), _server(2), _server(3, Suffrage.NONVOTER)))


def test_golden() -> None:
    assert decode_configuration(_GOLDEN) == _EXPECTED
    assert encode_configuration(_EXPECTED) == _GOLDEN


def test_staging_stays_staging_and_has_no_vote() -> None:
    staging = Configuration((_server(1), _server(2, Suffrage.STAGING)))
    decoded = decode_configuration(encode_configuration(staging))
    assert decoded == staging
    assert [server.id for server in decoded.voters] == [_server(1).id]


def test_what_go_tolerates() -> None:
    data = msgpack.packb(
        {
            "Later": {"deep": [1, [2.5, None]]},
            "Servers": [
                {"Suffrage": None, "ID": b"n1", "Address": "127.0.0.1:17301", "New": True},
                {"ID": "n2", "Suffrage": 1, "Address": b"127.0.0.1:17302"},
            ],
        }
    )
    assert data is not None
    assert decode_configuration(data) == Configuration((_server(1), _server(2, Suffrage.NONVOTER)))
    assert decode_configuration(b"\xc0") == Configuration()
    assert decode_configuration(b"\x81\xa7Servers\xc0") == Configuration()
    # Go reads one value and leaves the rest.
    assert decode_configuration(_GOLDEN + b"rest") == _EXPECTED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x81",
        _GOLDEN[:-1],
        b"\x90",
        b"\x81\xa7Servers\x01",
        b"\x81\xa7Servers\x91\xc0",
        b"\x81\xa7Servers\xdd\xff\xff\xff\xff",
        b"\x81\xa7Servers\x91\x83\xa2ID\xa2n1\xa7Address\xa1a\xa8Suffrage\x03",
        b"\x81\xa7Servers\x91\x83\xa2ID\xa2n1\xa7Address\xa1a\xa8Suffrage\xa1v",
        encode_configuration(Configuration((_server(1),)))[:-1] + b"\xc1",
    ],
)
def test_garbage(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_configuration(data)


def test_one_id_twice() -> None:
    twice = _GOLDEN.replace(b"\xa2n2", b"\xa2n1")
    with pytest.raises(ProtocolError, match="twice"):
        decode_configuration(twice)


@given(st.binary(max_size=200))
def test_random_bytes_give_a_value_or_the_typed_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_configuration(data)


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(min_size=1), st.sampled_from([0, 1])),
        unique_by=(lambda s: s[0], lambda s: s[1]),
        max_size=20,
    )
)
def test_round_trip(servers: list[tuple[str, str, int]]) -> None:
    configuration = Configuration(
        tuple(Server(ServerID(i), ServerAddress(a), Suffrage(s)) for i, a, s in servers)
    )
    assert decode_configuration(encode_configuration(configuration)) == configuration
