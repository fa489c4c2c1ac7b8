"""The cache keeps what is not durable or not applied, and bounds the rest."""

from __future__ import annotations

from rafthttp.raft.runtime.cache import LogCache


def test_begins_behind_the_log_on_disk() -> None:
    cache = LogCache(41)
    assert cache.first == 42
    assert cache.last == 41
    assert cache.holds(42)
    assert not cache.holds(41)


def test_append_and_get_are_inclusive() -> None:
    cache = LogCache(0)
    cache.append([b"1", b"2", b"3"])
    assert cache.last == 3
    assert cache.get(2, 3) == [b"2", b"3"]
    assert cache.get(4, 3) == []


def test_replace_drops_the_tail() -> None:
    cache = LogCache(0)
    cache.append([b"1", b"2", b"3"])
    cache.replace_from(2, [b"two"])
    assert cache.last == 2
    assert cache.get(1, 2) == [b"1", b"two"]


def test_replace_behind_the_end_appends() -> None:
    cache = LogCache(5)
    cache.replace_from(6, [b"6", b"7"])
    assert cache.get(6, 7) == [b"6", b"7"]


def test_replace_below_the_first_starts_anew() -> None:
    """A truncation that reaches below what is held: the rest of the log is on disk."""
    cache = LogCache(10)
    cache.append([b"11"])
    cache.replace_from(8, [b"8", b"9"])
    assert cache.first == 8
    assert cache.last == 9


def test_trim_keeps_what_is_still_needed() -> None:
    cache = LogCache(0, retained_bytes_max=1000)
    cache.append([b"x" * 100] * 100)
    cache.trim(to=50)
    assert cache.first == 51  # over the bound, but 51.. are not applied yet
    cache.trim(to=100)
    assert cache.first > 90
    assert cache.last == 100
    assert cache.get(100, 100) == [b"x" * 100]


def test_trim_does_nothing_below_the_bound() -> None:
    cache = LogCache(0, retained_bytes_max=1000)
    cache.append([b"x" * 100] * 10)
    cache.trim(to=10)
    assert cache.first == 1


def test_bytes_are_counted_across_truncation() -> None:
    """A cache that forgot to subtract would trim (or never trim) after truncations."""
    cache = LogCache(0, retained_bytes_max=1000)
    for _ in range(100):
        cache.replace_from(1, [b"x" * 100] * 5)
    cache.trim(to=5)
    assert cache.first == 1
