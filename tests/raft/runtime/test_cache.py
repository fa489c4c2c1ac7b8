"""The cache keeps what is not durable or not applied, and bounds the rest."""

from __future__ import annotations

from rafthttp.raft.runtime.cache import LogCache
from rafthttp.raft.types import Log, LogType


def logs(first: int, count: int) -> list[Log]:
    return [Log(index, 1, LogType.COMMAND, b"%d" % index) for index in range(first, first + count)]


def append(cache: LogCache, records: list[bytes]) -> None:
    cache.append(records, logs(cache.last + 1, len(records)))


def replace_from(cache: LogCache, index: int, records: list[bytes]) -> None:
    cache.replace_from(index, records, logs(index, len(records)))


def test_begins_behind_the_log_on_disk() -> None:
    cache = LogCache(41)
    assert cache.first == 42
    assert cache.last == 41
    assert cache.holds(42)
    assert not cache.holds(41)


def test_append_and_get_are_inclusive() -> None:
    cache = LogCache(0)
    append(cache, [b"1", b"2", b"3"])
    assert cache.last == 3
    assert cache.get(2, 3) == [b"2", b"3"]
    assert cache.get(4, 3) == []


def test_replace_drops_the_tail() -> None:
    cache = LogCache(0)
    append(cache, [b"1", b"2", b"3"])
    replace_from(cache, 2, [b"two"])
    assert cache.last == 2
    assert cache.get(1, 2) == [b"1", b"two"]


def test_replace_behind_the_end_appends() -> None:
    cache = LogCache(5)
    replace_from(cache, 6, [b"6", b"7"])
    assert cache.get(6, 7) == [b"6", b"7"]


def test_replace_below_the_first_starts_anew() -> None:
    """A truncation that reaches below what is held: the rest of the log is on disk."""
    cache = LogCache(10)
    append(cache, [b"11"])
    replace_from(cache, 8, [b"8", b"9"])
    assert cache.first == 8
    assert cache.last == 9


def test_trim_keeps_what_is_still_needed() -> None:
    cache = LogCache(0, retained_bytes_max=1000)
    append(cache, [b"x" * 100] * 100)
    cache.trim(to=50)
    assert cache.first == 51  # over the bound, but 51.. are not applied yet
    cache.trim(to=100)
    assert cache.first > 90
    assert cache.last == 100
    assert cache.get(100, 100) == [b"x" * 100]


def test_trim_does_nothing_below_the_bound() -> None:
    cache = LogCache(0, retained_bytes_max=1000)
    append(cache, [b"x" * 100] * 10)
    cache.trim(to=10)
    assert cache.first == 1


def test_bytes_are_counted_across_truncation() -> None:
    """A cache that forgot to subtract would trim (or never trim) after truncations."""
    cache = LogCache(0, retained_bytes_max=1000)
    for _ in range(100):
        replace_from(cache, 1, [b"x" * 100] * 5)
    cache.trim(to=5)
    assert cache.first == 1


def test_logs_are_taken_once_in_order() -> None:
    cache = LogCache(0)
    append(cache, [b""] * 5)
    assert cache.take_logs(1, 2) == logs(1, 2)
    assert cache.take_logs(3, 3) == logs(3, 1)
    append(cache, [b""])
    assert cache.take_logs(4, 6) == logs(4, 3)
    assert cache.get(1, 6) == [b""] * 6


def test_logs_before_those_taken_are_let_go() -> None:
    """A snapshot that came meanwhile holds them."""
    cache = LogCache(0)
    append(cache, [b""] * 5)
    assert cache.take_logs(4, 4) == logs(4, 1)
    assert cache.take_logs(5, 5) == logs(5, 1)


def test_logs_of_a_tail_that_was_replaced_are_the_new_ones() -> None:
    cache = LogCache(0)
    append(cache, [b""] * 5)
    assert cache.take_logs(1, 2) == logs(1, 2)
    new = [Log(4, 2, LogType.COMMAND, b"new")]
    cache.replace_from(4, [b""], new)
    assert cache.take_logs(3, 4) == [*logs(3, 1), *new]
