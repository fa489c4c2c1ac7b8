"""Commands: what stands in the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.kv.commands import (
    KEY_SIZE_BYTES_MAX,
    Command,
    CommandError,
    Operation,
    command_overhead,
    decode,
    encode,
)


def test_the_bytes_of_a_put_and_a_delete_are_fixed() -> None:
    # They stand in logs on disk: these literals never change within version 1.
    assert encode(Command(Operation.PUT, "a/b", b"\x00v")) == b"\x01\x01\x00\x03a/b\x00v"
    assert encode(Command(Operation.DELETE, "ä")) == b"\x01\x02\x00\x02\xc3\xa4"


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300),
    value=st.binary(max_size=300),
)
def test_what_is_encoded_decodes_to_the_same(key: str, value: bytes) -> None:
    put = Command(Operation.PUT, key, value)
    assert decode(encode(put)) == put
    assert len(encode(put)) == command_overhead(key) + len(value)


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_raise_a_command_error(data: bytes) -> None:
    try:
        command = decode(data)
    except CommandError:
        return
    assert encode(command) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too short"),
        (b"\x01\x01\x00", "too short"),
        (b"\x02\x01\x00\x01a", "version 2 is unknown"),
        (b"\x01\x09\x00\x01a", "operation 9"),
        (b"\x01\x01\x00\x00", "length"),
        (b"\x01\x01\x00\x02a", "length"),
        (b"\x01\x01\x00\x01\xff", "UTF-8"),
        (b"\x01\x02\x00\x01av", "carries a value"),
    ],
)
def test_what_is_no_command_says_why(data: bytes, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        decode(data)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "empty"),
        ("ä" * (KEY_SIZE_BYTES_MAX // 2) + "a", "at most 4096"),
        ("\udc80", "UTF-8"),
    ],
)
def test_keys_nobody_may_use(key: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        encode(Command(Operation.PUT, key))


def test_the_longest_key_is_allowed() -> None:
    key = "k" * KEY_SIZE_BYTES_MAX
    assert decode(encode(Command(Operation.DELETE, key))).key == key
