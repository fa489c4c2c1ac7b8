"""Packing: bounds of rows, and look-ups by binary search counted."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.errors import CorruptLogError
from rafthttp.raft.storage import rows
from rafthttp.raft.types import LogBatch


@given(st.lists(st.integers(0, 3 * rows.ROW_SIZE_BYTES_MAX // 4), min_size=1, max_size=12))
def test_a_batch_becomes_as_few_rows_as_hold_it(sizes: list[int]) -> None:
    records = [bytes(size) for size in sizes]
    packed = rows.pack_batch(LogBatch(7, 3, records))
    assert [record for row in packed for record in rows.unpack(row)] == records
    assert [row.first for row in packed] == [7, *(row.last + 1 for row in packed[:-1])]
    for row, following in pairwise(packed):
        assert len(row.data) <= rows.ROW_SIZE_BYTES_MAX
        next_record = rows.unpack(following)[0]
        assert len(row.data) + len(next_record) > rows.ROW_SIZE_BYTES_MAX


def test_bounds_of_a_row() -> None:
    bound = rows.ROW_SIZE_BYTES_MAX
    for sizes, counts in (
        ([bound], [1]),
        ([5 * bound], [1]),
        ([1, 5 * bound, 1], [1, 1, 1]),
        ([bound - 1, 1], [2]),
        ([bound, 1], [1, 1]),
        ([0] * (rows.ROW_ENTRIES_MAX + 1), [rows.ROW_ENTRIES_MAX, 1]),
    ):
        packed = rows.pack_batch(LogBatch(1, 1, [bytes(size) for size in sizes]))
        assert [row.entries for row in packed] == counts


@given(st.dictionaries(st.binary(max_size=9), st.binary(max_size=300)))
def test_pairs(pairs: dict[bytes, bytes]) -> None:
    assert rows.unpack_pairs(rows.pack_pairs(pairs)) == pairs


@given(st.binary(max_size=40))
def test_pairs_that_are_none(packed: bytes) -> None:
    try:
        pairs = rows.unpack_pairs(packed)
    except CorruptLogError:
        return
    assert len(rows.pack_pairs(pairs)) <= len(packed)


def test_sizes_that_do_not_fit_the_records() -> None:
    row = rows.pack(1, 1, [b"one", b"two"])
    for sizes in (b"\3\0\0\0\2\0\0\0", b"\3\0\0\0\4\0\0\0"):
        fitting = crc32(row.data, crc32(sizes, row.head_crc))
        with pytest.raises(CorruptLogError, match="lost its shape"):
            rows.unpack(row._replace(sizes=sizes, data_crc=fitting))
    single = rows.pack(1, 1, [b"one"])
    fitting = crc32(single.data, crc32(b"\3\0\0\0", single.head_crc))
    with pytest.raises(CorruptLogError, match="lost its shape"):
        rows.unpack(single._replace(sizes=b"\3\0\0\0", data_crc=fitting))


@given(st.data())
def test_term_runs_cost_little(data: st.DataObject) -> None:
    """About terms x log(n) look-ups, counted."""
    size = data.draw(st.integers(1, 4000))
    term_starts = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=8)) | {0})
    looked_up = 0

    def head_at(index: int) -> rows.Head:
        nonlocal looked_up
        looked_up += 1
        return rows.Head(index, bisect_right(term_starts, index), 1, 0)

    found = list(rows.term_runs(head_at, 0, size - 1))
    assert found == [(start, number) for number, start in enumerate(term_starts, 1)]
    assert looked_up <= 2 + len(term_starts) * (math.ceil(math.log2(size)) + 1)


@pytest.mark.parametrize("terms", [[3, 1], [1, 1, 9, 1, 2, 2], [5, 1, 6]])
def test_terms_that_fall_on_the_way(terms: list[int]) -> None:
    def head_at(index: int) -> rows.Head:
        return rows.Head(index, terms[index], 1, 0)

    with pytest.raises(CorruptLogError, match="fall"):
        list(rows.term_runs(head_at, 0, len(terms) - 1))
