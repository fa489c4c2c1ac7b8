"""hashicorp/raft's peers.json, both formats; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.peers_json import read_config_json
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID, Suffrage

# As in Consul's documentation.
OBJECTS = """[
  {"id": "adf4238a-882b-9ddc-4a9d-5b6758e4159e", "address": "10.1.0.1:8300", "non_voter": false},
  {"id": "8b6dda82-3103-11e7-93ae-92361f002671", "address": "10.1.0.2:8300"},
  {"ID": "97e17742-3103-11e7-93ae-92361f002671", "Address": "10.1.0.3:8300", "Non_Voter": true}
]
"""


def server(server_id: str, address: str, suffrage: Suffrage = Suffrage.VOTER) -> Server:
    return Server(ServerID(server_id), ServerAddress(address), suffrage)


def test_objects(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text("\ufeff" + OBJECTS)
    assert read_config_json(path) == Configuration(
        (
            server("adf4238a-882b-9ddc-4a9d-5b6758e4159e", "10.1.0.1:8300"),
            server("8b6dda82-3103-11e7-93ae-92361f002671", "10.1.0.2:8300"),
            server("97e17742-3103-11e7-93ae-92361f002671", "10.1.0.3:8300", Suffrage.NONVOTER),
        )
    )


def test_addresses_are_ids_too(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('["127.0.0.1:123", "127.0.0.2:123"]')
    assert read_config_json(str(path)) == Configuration(
        (server("127.0.0.1:123", "127.0.0.1:123"), server("127.0.0.2:123", "127.0.0.2:123"))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON: Expecting value in line 1, column 1"),
        ('[{"id": "n1",\n}]', "is not JSON: .* in line 2, column 1"),
        ("\x00\x01", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "must be an array of servers"),
        ('"n1"', "must be an array of servers"),
        ("[]", "has no voter"),
        ("[1]", r"\[0\] must be an object"),
        ('["a:1", null]', r"\[1\] must be an object"),
        ('["a:1", ""]', r"\[1\] is empty"),
        ('[{"address": "a:1"}]', r"\[0\]\.id is missing"),
        ('[{"id": null, "address": "a:1"}]', r"\[0\]\.id is missing"),
        ('["a:1", {"id": "n1"}]', r"\[1\]\.address is missing"),
        ('[{"id": "", "address": "a:1"}]', r"\[0\]\.id must be a text that is not empty"),
        ('[{"id": "n1", "address": 1}]', r"\[0\]\.address must be a text"),
        ('[{"id": "n1", "address": "a:1", "non_voter": "no"}]', r"\[0\]\.non_voter must be true"),
        ('[{"id": "n1", "address": "a:1", "nonvoter": true}]', r"\[0\]\.nonvoter is no field"),
        ('[{"id": "n1", "ID": "n2", "address": "a:1"}]', "the field 'ID' stands twice"),
        ('[{"id": "n1", "address": "a:1", "non_voter": true}]', "has no voter"),
        (
            '["b:1", {"id": "n1", "address": "a:1"}, {"id": "n1", "address": "c:1"}]',
            r"\[2\]\.id is 'n1', as \[1\]\.id is already",
        ),
        ('["b:1", {"id": "n1", "address": "b:1"}]', r"\[1\]\.address is 'b:1', as \[0\]\.address"),
        (" " * (1 << 20) + "[]", "too large"),
        (r'["a:1", "\ud800:1"]', r"\[1\] is no text: '\\ud800:1'"),
        (r'[{"id": "n\ud800", "address": "a:1"}]', r"\[0\]\.id is no text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"peers\.json: .*{says}"):
        read_config_json(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"cannot read .*: {says}"):
            read_config_json(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="is not text"):
        read_config_json(tmp_path / "binary")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "address", "non_voter", "ID", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=_json)
def test_nothing_else_is_raised(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("peers") / "peers.json"
    path.write_text(json.dumps(value))
    try:
        configuration = read_config_json(path)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert configuration.voters
