"""The table before the inner snapshot: bytes, damage, and data from before there was a table."""

import io
import zlib
from typing import Any, BinaryIO

import msgpack
import pytest

from rafthttp import SessionFormatError, SessionFSM, SessionRequest
from rafthttp.sessions import envelope

ID = b"a" * 16
INNER = msgpack.packb([b"\x01", b"\x02", b"raise"])


class _Dribble(io.BytesIO):
    """A source that gives one byte at a time, as a raw one may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size, 1) if size and size > 0 else size)


@pytest.fixture
def image(replica: Any) -> bytes:
    second = 10**9
    replica.apply(envelope.opening(ID))
    replica.apply(envelope.numbered(SessionRequest(ID, 9, 7), b"\x01"), at=1)
    replica.apply(envelope.numbered(SessionRequest(ID, 8, 7), b"\x02"), at=2)
    replica.apply(envelope.once("key", b"payload", b"raise"), at=4)
    assert replica.fsm._table.clock_ns == 4 * second
    image: bytes = replica.image()
    return image


def test_it_is_laid_out_as_documented(image: bytes) -> None:
    last = (1_700_000_004 * 10**9).to_bytes(8, "big")
    text = b"KeyError: 'raise'"
    once = envelope.once("key", b"payload", b"")
    expected = b"".join(
        (
            bytes.fromhex("f75248534553 01 ff"),
            (4 * 10**9).to_bytes(8, "big"),
            last,
            (1).to_bytes(8, "big"),
            (1).to_bytes(8, "big"),
            ID,
            (2 * 10**9).to_bytes(8, "big"),
            (7).to_bytes(8, "big"),
            (2).to_bytes(8, "big"),
            (8).to_bytes(8, "big") + bytes.fromhex("00 00000001 02"),
            (9).to_bytes(8, "big") + bytes.fromhex("00 00000001 01"),
            once[8:24],
            once[32:40],
            (4 * 10**9).to_bytes(8, "big"),
            b"\x01" + len(text).to_bytes(4, "big") + text,
        )
    )
    assert image == expected + zlib.crc32(expected).to_bytes(4, "big") + INNER


def test_a_restored_replica_remembers(image: bytes, restored: Any) -> None:
    replica = restored(image)
    assert replica.image() == image
    assert replica.apply(envelope.numbered(SessionRequest(ID, 9, 7), b"\x05"), at=5) == 1
    assert str(replica.apply(envelope.once("key", None, b"\x05"), at=5)) == "KeyError: 'raise'"
    assert replica.inner.commands == [b"\x01", b"\x02", b"raise"]


def test_a_source_may_give_less_than_is_asked_for(image: bytes, replica: Any) -> None:
    replica.fsm.restore(_Dribble(image))
    assert replica.image() == image


def test_without_envelopes_the_snapshot_is_the_inner_one(replica: Any, restored: Any) -> None:
    replica.apply(b"\x01")
    image = replica.image()
    assert image == msgpack.packb([b"\x01"])
    again = restored(image)
    assert again.inner.commands == [b"\x01"]
    assert again.image() == image


@pytest.mark.parametrize("inner", [b"", b"\xf7", envelope.MAGIC, b"short", b"exactly8"])
def test_a_snapshot_from_before_is_the_inner_ones(replica: Any, inner: bytes) -> None:
    got: list[bytes] = []

    def restore(source: BinaryIO) -> None:
        got.append(source.read())

    replica.inner.restore = restore
    replica.fsm.restore(io.BytesIO(inner))
    assert got == [inner]


def test_every_cut_and_every_flipped_bit_of_the_table_is_refused(
    image: bytes, replica: Any
) -> None:
    table = len(image) - len(INNER)
    replica.apply(envelope.opening(b"b" * 16))
    before = replica.image()
    for end in range(8, table):
        with pytest.raises(SessionFormatError):
            replica.fsm.restore(io.BytesIO(image[:end]))
    for position in range(8, table):
        damaged = bytearray(image)
        damaged[position] ^= 0x10
        with pytest.raises(SessionFormatError):
            replica.fsm.restore(io.BytesIO(bytes(damaged)))
    assert replica.image() == before


def test_a_newer_table_is_refused(image: bytes, replica: Any) -> None:
    with pytest.raises(SessionFormatError, match="version 2 is unknown here"):
        replica.fsm.restore(io.BytesIO(image[:6] + b"\x02" + image[7:]))


def test_an_inner_snapshot_that_cannot_be_read_leaves_all_as_it_was(
    image: bytes, replica: Any
) -> None:
    replica.apply(envelope.opening(b"b" * 16))
    before = replica.image()
    with pytest.raises(ValueError, match="incomplete input"):
        replica.fsm.restore(io.BytesIO(image[: len(image) - len(INNER)]))
    assert replica.image() == before


def test_a_snapshot_is_of_its_time(image: bytes, replica: Any) -> None:
    snapshot = replica.fsm.snapshot()
    replica.apply(envelope.numbered(SessionRequest(ID, 10, 10), b"\x03"), at=9)
    replica.apply(envelope.once("later", None, b"\x03"), at=9)
    sink = io.BytesIO()
    snapshot.persist(sink)
    snapshot.release()
    assert sink.getvalue() == image


def test_the_table_alone_is_restored_where_the_inner_one_keeps_its_state(
    image: bytes, replica: Any, new_replica: Any
) -> None:
    """Through a wrapper in a wrapper too; and what cannot be read changes nothing."""
    other = new_replica()
    other.fsm.restore_own(io.BytesIO(image))
    assert other.inner.commands == []
    other.inner.commands = replica.inner.commands
    assert other.image() == image
    with pytest.raises(SessionFormatError):
        other.fsm.restore_own(io.BytesIO(image[:60]))
    assert other.image() == image
    outer = SessionFSM(replica.fsm)
    replica.apply(envelope.opening(b"b" * 16))
    outer.restore_own(io.BytesIO(image))  # the outer table; behind it, the inner one has none
    assert replica.image() == INNER
