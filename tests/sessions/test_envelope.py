"""The envelope, byte by byte as docs/reference/sessions.md has it."""

import hashlib

import pytest

from rafthttp import ConfigError, SessionRequest
from rafthttp.sessions import envelope

ID = bytes(range(16))


def test_a_request_is_laid_out_as_documented() -> None:
    data = envelope.numbered(SessionRequest(ID, 0x0102, 0x0101), b"command")
    assert (
        data
        == bytes.fromhex(
            "f75248534553 01 02 000102030405060708090a0b0c0d0e0f 0000000000000102 0000000000000101"
        )
        + b"command"
    )


def test_an_opening_has_no_command_and_no_numbers() -> None:
    assert envelope.opening(ID) == bytes.fromhex("f75248534553 01 01") + ID + bytes(16)


@pytest.mark.parametrize("key", ["a-key", b"a-key"])
def test_a_key_and_the_payload_are_digests(key: str | bytes) -> None:
    data = envelope.once(key, b"payload", b"command")
    assert data[:8] == bytes.fromhex("f75248534553 01 03")
    assert data[8:24] == hashlib.sha256(b"a-key").digest()[:16]
    assert data[24:32] == bytes(8)
    assert data[32:40] == hashlib.sha256(b"payload").digest()[:8]
    assert data[40:] == b"command"
    assert envelope.once(key, None, b"")[32:] == bytes(8)


def test_a_command_that_looks_like_an_envelope_is_put_into_one() -> None:
    for command in (b"", b"x", envelope.MAGIC[:-1]):
        assert envelope.plain(command) == command
    odd = envelope.MAGIC + b"whatever"
    assert envelope.plain(odd) == bytes.fromhex("f75248534553 01 00") + bytes(32) + odd


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (SessionRequest(b"short", 1, 1), "a session's id has 5 bytes; it must have 16"),
        (SessionRequest(ID, 1, 2), "0 <= lowest <= sequence"),
        (SessionRequest(ID, 1 << 64, 1), "0 <= lowest <= sequence"),
        (SessionRequest(ID, 1, -1), "0 <= lowest <= sequence"),
    ],
)
def test_what_does_not_fit_is_refused(request_: SessionRequest, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        envelope.numbered(request_, b"")


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="request_id is empty"):
        envelope.once("", None, b"")
