"""What the power losses of a test may leave."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.testing.powerloss import KINDS, Write, sectors, surviving

_WRITES = st.builds(
    Write, st.sampled_from("ab"), st.integers(0, 10_000), st.binary(min_size=1, max_size=3000)
)
_SIZES = st.sampled_from([512, 4096])


@given(_WRITES, _SIZES)
def test_a_write_is_cut_where_sectors_of_the_file_begin(write: Write, size: int) -> None:
    pieces = sectors(write, size)
    assert b"".join(piece.data for piece in pieces) == write.data
    assert all(piece.data for piece in pieces)
    assert pieces[0].offset == write.offset
    assert all(piece.offset % size == 0 for piece in pieces[1:])
    assert {(p.offset + len(p.data) - 1) // size for p in pieces} == {
        at // size for at in range(write.offset, write.offset + len(write.data))
    }
    assert len({piece.offset // size for piece in pieces}) == len(pieces)


@given(st.lists(_WRITES, max_size=6), st.sampled_from(KINDS), st.integers())
def test_what_is_left_was_written(later: list[Write], kind: str, seed: int) -> None:
    left = surviving(later, kind, random.Random(seed))
    assert left == surviving(later, kind, random.Random(seed)), "the same chance, the same loss"
    if kind == "lost":
        assert left == []
    elif kind == "kept":
        assert left == later
    elif kind == "prefix":
        for name in "ab":
            of_this = [write for write in left if write.name == name]
            assert of_this == [write for write in later if write.name == name][: len(of_this)]
    else:
        places = [
            (w.name, w.offset <= piece.offset and end(piece) <= end(w), bytes_of(w, piece))
            for piece in left
            for w in later
        ]
        for piece in left:
            same = (piece.name, True, piece.data)
            garbage = kind.startswith("garbage")
            assert same in places or (garbage and (piece.name, True) in [p[:2] for p in places])


def end(write: Write) -> int:
    return write.offset + len(write.data)


def bytes_of(write: Write, piece: Write) -> bytes:
    """What it has in a piece's place."""
    begin = piece.offset - write.offset
    return write.data[begin : begin + len(piece.data)] if begin >= 0 else b""


def test_a_torn_write_is_there_in_part() -> None:
    """The last one, each time; with garbage, a whole sector of it has other bytes."""
    write = Write("a", 100, bytes(range(256)) * 8)  # sectors: 412 bytes, three of 512, 100
    for seed in range(200):
        torn = surviving([write], "torn 512", random.Random(seed))
        assert 0 < len(torn) < 5
        assert all(piece in sectors(write, 512) for piece in torn)
        *whole, broken = surviving([write], "garbage 512", random.Random(seed))
        assert all(piece in sectors(write, 512) for piece in whole)
        assert broken.data not in {piece.data for piece in sectors(write, 512)}
        assert (broken.offset, len(broken.data)) in {
            (piece.offset, len(piece.data)) for piece in sectors(write, 512)
        }


def test_no_such_kind() -> None:
    with pytest.raises(ValueError, match="no kind"):
        surviving([], "melted", random.Random(1))
