"""Ids, addresses, paths, cluster ids: what passes and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.http import grammar
from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import LogPosition


@pytest.mark.parametrize(
    "text", ["n1", "a" * 255, "10.0.0.1:8000", "[::1]:80", "a.b-c_d~e@f+g/h=i"]
)
def test_ids_that_pass(text: str) -> None:
    assert grammar.parse_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 256,
        "a" * (1 << 20),
        "a\r\nb",
        "a\n",
        "a\0",
        "a&address=evil",
        "a b",
        "ä",
        "a%20",
        '"',
    ],
)
def test_ids_that_do_not(text: str) -> None:
    with pytest.raises(ValueError, match="server ID"):
        grammar.parse_id(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:80", "::1", 80),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
        ("node-1.example.org:8000", "node-1.example.org", 8000),
        ("node_1:8000", "node_1", 8000),
        ("example.org.:80", "example.org.", 80),
    ],
)
def test_addresses_that_pass(text: str, host: str, port: int) -> None:
    assert grammar.split_address(text) == (host, port)
    assert grammar.parse_address(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:0",
        "host:080",
        "host:65536",
        "host:99999999999",
        "host:8a",
        "host:\uff18\uff10",
        "::1:80",
        "[::1]",
        "[::1%eth0]:80",
        "[nonsense]:80",
        "a..b:80",
        "-a:80",
        "a@b:80",
        "http://a:80",
        "a/b:80",
        "a:80/",
        "a:80\n",
        "a\r\nX: y:80",
        "a\0:80",
        "a&b:80",
        "a b:80",
        "a" * 64 + ":80",
        "a." * (1 << 19) + "a:80",
    ],
)
def test_addresses_that_do_not(text: str) -> None:
    with pytest.raises(ValueError, match="server address"):
        grammar.parse_address(text)


@given(st.text())
def test_what_passes_is_safe_in_urls_and_headers(text: str) -> None:
    for parse in (grammar.parse_id, grammar.parse_address):
        try:
            parsed = parse(text)
        except ValueError:
            continue
        assert parsed.isascii()
        assert parsed.isprintable()
        assert not set(parsed) & set(" &\"'<>\\?#%")


@pytest.mark.parametrize("text", ["", "a" * 65, "a b", "a\n", "ä"])
def test_cluster_ids_that_do_not_pass(text: str) -> None:
    with pytest.raises(ValueError, match="cluster id"):
        grammar.parse_cluster_id(text)


@pytest.mark.parametrize("text", ["", "raft", "/ra ft", "/raft?x", "/raft#x", "/r\n", "//\x7f"])
def test_paths_that_do_not_pass(text: str) -> None:
    with pytest.raises(ConfigError, match="path"):
        grammar.parse_path(text)


@pytest.mark.parametrize("text", ["", ".a", "a b", "a&b", "a" * 65, "a\n"])
def test_operations_that_do_not_pass(text: str) -> None:
    with pytest.raises(ValueError, match="operation"):
        grammar.parse_operation(text)


def test_positions() -> None:
    assert grammar.parse_position("3/17") == LogPosition(3, 17)


@pytest.mark.parametrize(
    "text",
    ["", "3", "3/", "/3", "0/1", "1/0", "03/1", "-1/2", "1/2/3", "1/2\n", "²/1", "1/" + "9" * 19],
)
def test_positions_that_do_not_pass(text: str) -> None:
    with pytest.raises(ValueError, match="TERM/INDEX"):
        grammar.parse_position(text)
