"""Both forms of `Log.AppendedAt`."""

from __future__ import annotations

import datetime as dt

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.wire.appended_at import ZERO_TIME, decode_time, encode_time, is_time

_NS = 1_714_979_289_123_456_789
_GO = bytes.fromhex("010000000eddca78d9075bcd15ffff")
_GO_NEW = bytes.fromhex("1d6f3454663881d9")
_YEARS_10000_NS = 253_402_300_800 * 10**9


def test_the_golden_instant_in_both_forms() -> None:
    assert encode_time(_NS) == _GO
    assert encode_time(_NS, new_format=True) == _GO_NEW
    assert decode_time(_GO) == decode_time(_GO_NEW) == _NS
    at = dt.datetime.fromtimestamp(_NS // 10**9, dt.UTC)
    assert at.isoformat() == "2024-05-06T07:08:09+00:00"


def test_zero_time_is_none() -> None:
    assert ZERO_TIME.hex() == "01000000000000000000000000ffff"
    assert decode_time(ZERO_TIME) is None
    assert encode_time(None) == ZERO_TIME
    assert decode_time(encode_time(None, new_format=True)) is None


def test_the_zone_is_dropped_and_the_instant_kept() -> None:
    """+02:00 is 120 minutes; version 2 has a byte of seconds behind them."""
    assert decode_time(_GO[:13] + (120).to_bytes(2, "big")) == _NS
    assert decode_time(b"\x02" + _GO[1:13] + (-90).to_bytes(2, "big", signed=True) + b"\x1e") == _NS


@given(st.integers(-62_135_596_800 * 10**9 + 1, _YEARS_10000_NS), st.booleans())
def test_round_trip(ns: int, new_format: bool) -> None:
    raw = encode_time(ns, new_format=new_format)
    assert is_time(raw)
    assert decode_time(raw) == ns


@given(st.integers(-(2**62), 2**62))
def test_new_form_is_msgpack_timestamp(ns: int) -> None:
    assert encode_time(ns, new_format=True) == msgpack.Timestamp.from_unix_nano(ns).to_bytes()


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"2024-05-06T07:08:09Z", b"\x02" + _GO[1:], b"\x01" + bytes(15), b"\x03" * 15],
)
def test_what_is_no_time(raw: bytes) -> None:
    assert not is_time(raw)
    with pytest.raises(ProtocolError, match="AppendedAt"):
        decode_time(raw)
