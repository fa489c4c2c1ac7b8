"""Encoding of single values, against go-msgpack's own."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.wire import dialect

_INDEX = (Path(__file__).parent / "testdata" / "INDEX.txt").read_text()
_ROWS = [
    (int(value), bytes.fromhex(octets))
    for value, octets in re.findall(r"^int encoding (\d+): ([0-9a-f]+)$", _INDEX, re.MULTILINE)
]


def test_the_index_lists_integer_rows() -> None:
    assert [value for value, _ in _ROWS] == [
        *(0, 127, 128, 255, 32767, 32768, 65535, 2147483648, 8589934592)
    ]


@pytest.mark.parametrize(("value", "octets"), _ROWS)
def test_integers_are_encoded_as_go_does(value: int, octets: bytes) -> None:
    """A struct of a signed `Size` and an unsigned `U`."""
    encoded = b"".join(
        (
            dialect.map_head(2),
            dialect.pack_raw(b"Size"),
            dialect.pack_int(value),
            dialect.pack_raw(b"U"),
            dialect.pack_uint(value),
        )
    )
    assert encoded == octets


@given(st.integers(0, 2**64 - 1))
def test_unsigned_is_the_shortest_form(value: int) -> None:
    assert dialect.pack_uint(value) == msgpack.packb(value)


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_is_msgpack_and_never_unsigned(value: int) -> None:
    packed = dialect.pack_int(value)
    assert msgpack.unpackb(packed) == value
    assert not 0xCC <= packed[0] <= 0xCF


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536])
def test_bytes_are_the_old_raw_types(size: int) -> None:
    data = b"x" * size
    assert dialect.pack_raw(data) == msgpack.packb(data, use_bin_type=False)


def test_nil_empty_and_names() -> None:
    assert dialect.pack_raw(None) == b"\xc0"
    assert dialect.pack_raw(b"") == b"\xa0"
    assert dialect.pack_name("") == b"\xc0"
    assert dialect.pack_name("é") == b"\xa2\xc3\xa9"
    assert dialect.pack_name("\udcff") == b"\xa1\xff"
    assert dialect.pack_bool(True) == b"\xc3"
    assert dialect.pack_bool(False) == b"\xc2"


@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536])
def test_array_heads(count: int) -> None:
    packed = msgpack.packb([0] * count)
    assert packed is not None
    assert packed.startswith(dialect.array_head(count))
    assert len(packed) == len(dialect.array_head(count)) + count
