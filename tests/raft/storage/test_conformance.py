"""What every log and stable store must do, whatever is under it."""

from __future__ import annotations

import pytest

from rafthttp.raft.storage.protocols import LogStore, StableStore
from rafthttp.raft.types import LogBatch, LogWrite, Term
from rafthttp.testing.storage import DurableStore

ALL = 1 << 40


def batch(first: int, term: Term, count: int) -> LogBatch:
    return LogBatch(
        first, term, [b"%d/%d" % (index, term) for index in range(first, first + count)]
    )


def append(store: DurableStore, term: Term, count: int) -> None:
    store.write([LogWrite({}, batches=(batch(store.last_index() + 1, term, count),))])


def content(store: DurableStore) -> list[tuple[int, Term, bytes]]:
    """Everything in the log, read one by one and at once."""
    first, last = store.first_index(), store.last_index()
    if last < first:
        return []
    indexes = range(first, last + 1)
    records = store.get_records(first, last, ALL)
    assert records == [store.get_records(index, index, ALL)[0] for index in indexes]
    return [(i, store.term_at(i), record) for i, record in zip(indexes, records, strict=True)]


def expected(*runs: tuple[int, int, Term]) -> list[tuple[int, Term, bytes]]:
    """Entries `first..last` of a term, run after run."""
    return [
        (index, term, b"%d/%d" % (index, term))
        for first, last, term in runs
        for index in range(first, last + 1)
    ]


def test_is_both_protocols(store: DurableStore) -> None:
    assert isinstance(store, LogStore)
    assert isinstance(store, StableStore)


def test_a_fresh_log_is_empty_and_starts_at_one(store: DurableStore) -> None:
    assert (store.first_index(), store.last_index()) == (1, 0)
    assert store.get(b"CurrentTerm") is None


def test_appends_in_batches(store: DurableStore) -> None:
    append(store, 1, 3)
    append(store, 1, 1)
    append(store, 4, 5)
    assert (store.first_index(), store.last_index()) == (1, 9)
    assert content(store) == expected((1, 4, 1), (5, 9, 4))


def test_many_writes_are_one(store: DurableStore) -> None:
    store.write(
        [
            LogWrite({b"a": b"1", b"b": b"1"}, batches=(batch(1, 1, 2), batch(3, 1, 1))),
            LogWrite({b"b": None}, batches=(batch(4, 2, 3),)),
            LogWrite({b"c": b"3"}, batches=(batch(7, 2, 1),)),
        ]
    )
    assert content(store) == expected((1, 3, 1), (4, 7, 2))
    assert [store.get(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]


def test_a_batch_handed_in_is_not_changed(store: DurableStore) -> None:
    """Neighbours are joined to rows, but in lists of the store's own."""
    handed = [batch(1, 1, 2), batch(3, 1, 2), batch(5, 2, 1), batch(6, 2, 1), batch(5, 1, 1)]
    store.write(
        [
            LogWrite({}, batches=tuple(handed[:2])),
            LogWrite({}, truncate_from=4),
        ]
    )
    assert content(store) == expected((1, 3, 1))
    store.write(
        [
            LogWrite({}, reset_to=2, batches=(handed[1], *handed[2:4])),
            LogWrite({}, truncate_from=5, batches=(handed[4],)),
        ]
    )
    assert content(store) == expected((3, 5, 1))
    again = [batch(1, 1, 2), batch(3, 1, 2), batch(5, 2, 1), batch(6, 2, 1), batch(5, 1, 1)]
    assert handed == again


def test_empty_batches_and_writes_change_nothing(store: DurableStore) -> None:
    append(store, 1, 2)
    store.write([])
    store.write([LogWrite({}), LogWrite({}, batches=(LogBatch(3, 1, []),))])
    assert content(store) == expected((1, 2, 1))


@pytest.mark.parametrize("first", [0, 1, 5, 7, 100])
def test_a_batch_must_follow_the_log(store: DurableStore, first: int) -> None:
    append(store, 1, 5)
    with pytest.raises(ValueError, match="do not follow"):
        store.write([LogWrite({b"a": b"1"}, batches=(batch(first, 1, 3),))])
    assert content(store) == expected((1, 5, 1))
    assert store.get(b"a") is None
    append(store, 1, 1)
    assert content(store) == expected((1, 6, 1))


def test_a_refused_write_leaves_nothing_of_the_whole_call(store: DurableStore) -> None:
    append(store, 2, 3)
    for bad in (
        LogWrite({}, batches=(batch(9, 2, 1),)),
        LogWrite({}, batches=(batch(5, 1, 1),)),
        LogWrite({}, truncate_from=0),
        LogWrite({}, reset_to=-1),
        LogWrite({}, reset_to=1 << 63),
        LogWrite({}, batches=(batch(5, 1 << 63, 1),)),
    ):
        good = LogWrite({b"a": b"1"}, batches=(batch(4, 2, 1),))
        with pytest.raises(ValueError, match=r"."):
            store.write([good, bad])
        assert content(store) == expected((1, 3, 2))
        assert store.get(b"a") is None


@pytest.mark.parametrize("index", [1, 2, 3, 4, 5, 6, 7])
def test_truncation_at_every_place(store: DurableStore, index: int) -> None:
    append(store, 1, 3)
    append(store, 2, 4)
    store.write([LogWrite({}, truncate_from=index)])
    assert store.last_index() == index - 1
    kept = [entry for entry in expected((1, 3, 1), (4, 7, 2)) if entry[0] < index]
    assert content(store) == kept
    store.write([LogWrite({}, batches=(batch(index, 9, 2),))])
    assert content(store) == kept + expected((index, index + 1, 9))


def test_truncation_and_append_in_one_write(store: DurableStore) -> None:
    append(store, 1, 10)
    store.write([LogWrite({b"t": b"2"}, truncate_from=4, batches=(batch(4, 2, 2),))])
    assert content(store) == expected((1, 3, 1), (4, 5, 2))
    assert store.get(b"t") == b"2"


def test_truncation_of_what_the_same_call_appended(store: DurableStore) -> None:
    """A follower's conflict met while the write of the old tail is still queued."""
    append(store, 1, 2)
    store.write(
        [
            LogWrite({}, batches=(batch(3, 1, 2), batch(5, 2, 3))),
            LogWrite({}, truncate_from=6, batches=(batch(6, 3, 1),)),
            LogWrite({}, truncate_from=4, batches=(batch(4, 4, 1),)),
        ]
    )
    assert content(store) == expected((1, 3, 1), (4, 4, 4))
    store.write(
        [
            LogWrite({}, batches=(batch(5, 4, 2),)),
            LogWrite({}, truncate_from=2, batches=(batch(2, 5, 1),)),
        ]
    )
    assert content(store) == expected((1, 1, 1), (2, 2, 5))


def test_truncation_behind_the_end_changes_nothing(store: DurableStore) -> None:
    append(store, 1, 3)
    store.write([LogWrite({}, truncate_from=4)])
    store.write([LogWrite({}, truncate_from=50)])
    assert content(store) == expected((1, 3, 1))


def test_after_a_truncation_the_terms_that_went_do_not_count(store: DurableStore) -> None:
    """S12: nothing is remembered of a last entry that is gone."""
    append(store, 1, 2)
    append(store, 7, 2)
    store.write([LogWrite({}, truncate_from=3)])
    append(store, 3, 1)
    assert content(store) == expected((1, 2, 1), (3, 3, 3))
    with pytest.raises(ValueError, match="below the last"):
        append(store, 2, 1)


def test_reset_starts_the_log_anew(store: DurableStore) -> None:
    """After an installed snapshot (S38)."""
    append(store, 5, 7)
    store.write([LogWrite({b"snapshot": b"x"}, reset_to=100)])
    assert (store.first_index(), store.last_index()) == (101, 100)
    assert store.get(b"snapshot") == b"x"
    assert content(store) == []
    with pytest.raises(ValueError, match="do not follow"):
        store.write([LogWrite({}, batches=(batch(8, 5, 1),))])
    append(store, 3, 4)
    assert content(store) == expected((101, 104, 3))


def test_reset_backwards_and_to_the_start(store: DurableStore) -> None:
    store.write([LogWrite({}, reset_to=50, batches=(batch(51, 1, 3),))])
    assert content(store) == expected((51, 53, 1))
    store.write([LogWrite({}, reset_to=0)])
    assert (store.first_index(), store.last_index()) == (1, 0)


def test_reset_in_the_middle_of_a_call(store: DurableStore) -> None:
    append(store, 1, 3)
    store.write(
        [
            LogWrite({}, truncate_from=3, batches=(batch(3, 2, 5),)),
            LogWrite({}, reset_to=20, batches=(batch(21, 2, 5),)),
            LogWrite({}, truncate_from=23, batches=(batch(23, 3, 1),)),
        ]
    )
    assert content(store) == expected((21, 22, 2), (23, 23, 3))


def test_truncation_below_a_reset_is_refused(store: DurableStore) -> None:
    store.write([LogWrite({}, reset_to=20)])
    with pytest.raises(ValueError, match="below the log's first"):
        store.write([LogWrite({}, truncate_from=20)])


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4, 6, 9, 10])
def test_prefix_deletion_at_every_place(store: DurableStore, last: int) -> None:
    append(store, 1, 3)
    append(store, 1, 1)
    append(store, 2, 6)
    store.delete_prefix(last)
    assert (store.first_index(), store.last_index()) == (last + 1, 10)
    kept = [entry for entry in expected((1, 4, 1), (5, 10, 2)) if entry[0] > last]
    assert content(store) == kept
    append(store, 2, 2)
    assert content(store) == kept + expected((11, 12, 2))


def test_prefix_deletion_takes_at_most_what_is_held(store: DurableStore) -> None:
    append(store, 1, 3)
    store.delete_prefix(2)
    store.delete_prefix(1)
    assert store.first_index() == 3
    store.delete_prefix(50)
    assert (store.first_index(), store.last_index()) == (4, 3)
    store.delete_prefix(50)
    append(store, 1, 1)
    assert content(store) == expected((4, 4, 1))


@pytest.mark.parametrize("index", [5, 6, 9])
def test_truncation_of_a_row_whose_front_is_deleted(store: DurableStore, index: int) -> None:
    append(store, 1, 10)
    store.delete_prefix(4)
    store.write([LogWrite({}, truncate_from=index)])
    assert (store.first_index(), store.last_index()) == (5, index - 1)
    append(store, 2, 2)
    assert content(store) == expected((5, index - 1, 1), (index, index + 1, 2))
    with pytest.raises(ValueError, match="below the log's first"):
        store.write([LogWrite({}, truncate_from=4)])


def test_reset_of_a_log_whose_front_is_deleted(store: DurableStore) -> None:
    append(store, 1, 10)
    store.delete_prefix(4)
    store.write([LogWrite({}, reset_to=2, batches=(batch(3, 3, 2),))])
    assert content(store) == expected((3, 4, 3))


def test_stable_pairs(store: DurableStore) -> None:
    store.set({b"term": b"1", b"vote": b"n1", b"empty": b"", b"": b"key"})
    store.set({b"vote": None, b"never": None})
    store.set({})
    assert store.get(b"term") == b"1"
    assert store.get(b"vote") is None
    assert store.get(b"empty") == b""
    assert store.get(b"") == b"key"
    store.write([LogWrite({b"term": b"2", b"vote": b"n3"})])
    assert (store.get(b"term"), store.get(b"vote")) == (b"2", b"n3")


def test_stable_keys_are_the_callers_own(store: DurableStore) -> None:
    store.set({b"node_id": b"x", b"first_index": b"y", b"opened": b"z", b"stable/a": b"1"})
    append(store, 1, 2)
    assert store.first_index() == 1
    assert store.get(b"node_id") == b"x"
    assert store.get(b"a") is None


def test_stable_values_of_any_size(store: DurableStore) -> None:
    values = {b"%d" % size: b"\0\xff" * size for size in (1, 127, 4096, 300_000)}
    store.set(values)
    assert {key: store.get(key) for key in values} == values


@pytest.mark.parametrize(
    "sizes",
    [
        [0],
        [3 << 20],
        [1, 3 << 20, 1],
        [200_000] * 5,
        [0] * 10_000,
        [262_144, 1],
        [1, 262_143, 1],
        [65_536] * 4,
    ],
    ids=str,
)
def test_records_of_any_size(store: DurableStore, sizes: list[int]) -> None:
    records = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    store.write([LogWrite({}, batches=(LogBatch(1, 1, records),))])
    append(store, 1, 1)
    assert store.last_index() == len(sizes) + 1
    assert store.get_records(1, len(sizes), ALL) == records
    assert store.get_records(len(sizes), len(sizes), ALL) == records[-1:]
    middle = len(sizes) // 2
    store.write([LogWrite({}, truncate_from=middle + 1)])
    assert middle == 0 or store.get_records(1, middle, ALL) == records[:middle]


def test_get_records_is_bounded_by_bytes(store: DurableStore) -> None:
    store.write([LogWrite({}, batches=(LogBatch(1, 1, [b"x" * 10] * 5),))])
    store.write([LogWrite({}, batches=(LogBatch(6, 2, [b"y" * 10] * 5),))])
    counts = {size: len(store.get_records(2, 9, size)) for size in (0, 9, 10, 19, 20, 55, 79, 80)}
    assert counts == {0: 1, 9: 1, 10: 1, 19: 1, 20: 2, 55: 5, 79: 7, 80: 8}
    assert store.get_records(4, 7, 30) == [b"x" * 10, b"x" * 10, b"y" * 10]


@pytest.mark.parametrize(("first", "last"), [(2, 3), (3, 10), (9, 10), (5, 4), (10, 10), (0, 0)])
def test_what_is_not_held_is_an_index_error(store: DurableStore, first: int, last: int) -> None:
    append(store, 1, 9)
    store.delete_prefix(2)
    with pytest.raises(IndexError):
        store.get_records(first, last, ALL)
    with pytest.raises(IndexError):
        store.term_runs(first, last)
    if first == last or not 3 <= first <= 9:
        with pytest.raises(IndexError):
            store.term_at(first)


def test_an_empty_log_has_no_entries(store: DurableStore) -> None:
    for index in (0, 1):
        with pytest.raises(IndexError):
            store.term_at(index)
        with pytest.raises(IndexError):
            store.get_records(index, index, ALL)
        with pytest.raises(IndexError):
            store.term_runs(index, index)


def test_term_runs(store: DurableStore) -> None:
    lengths = [(1, 3), (1, 2), (2, 1), (5, 40), (5, 1), (6, 1), (7, 1), (7, 9), (20, 2)]
    for term, count in lengths:
        append(store, term, count)
    store.delete_prefix(1)
    terms = {index: store.term_at(index) for index in range(2, store.last_index() + 1)}
    for first in range(2, 61):
        for last in range(first, 61):
            naive = [i for i in range(first, last + 1) if i == first or terms[i] != terms[i - 1]]
            assert store.term_runs(first, last) == [(i, terms[i]) for i in naive]


def test_close_twice(store: DurableStore) -> None:
    store.close()
    store.close()
