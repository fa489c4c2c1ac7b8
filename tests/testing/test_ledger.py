"""The ledger: what is applied once, and the snapshot that a Go program reads too."""

from __future__ import annotations

import io
import tracemalloc

import pytest

from rafthttp import Log, LogType
from rafthttp.testing.interop_admin import rfc3339_nano
from rafthttp.testing.ledger import Ledger, LedgerFormatError, command


def applied(*commands: bytes) -> Ledger:
    ledger = Ledger()
    for index, data in enumerate(commands, 1):
        ledger.apply(Log(index, 1, LogType.COMMAND, data))
    return ledger


def snapshot_of(ledger: Ledger) -> bytes:
    sink = io.BytesIO()
    ledger.snapshot().persist(sink)
    return sink.getvalue()


class Trickle(io.BytesIO):
    """Gives a byte at a time, as a socket may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 if size else 0)


def test_an_id_counts_once() -> None:
    ledger = applied(command("a", b"1"), command("b"), command("a", b"2"), b"bare")
    assert ledger.ids(1, 10) == ["a", "b", "bare"]
    assert ledger.ids(2, 1) == ["b"]
    assert ledger.stats()["twice"] == ["a"]
    assert ledger.apply(Log(5, 1, LogType.COMMAND, b"bare")) == 3


def test_the_digest_tells_order_and_bounds() -> None:
    digests = {
        applied(*commands).digest
        for commands in [
            (b"a", b"b"),
            (b"b", b"a"),
            (b"ab",),
            (b"a\0b",),
            (b"a\0", b"b"),
        ]
    }
    assert len(digests) == 4  # an empty value and none are the same


def test_the_bytes_of_a_snapshot() -> None:
    """As interop/README.md has them, whole."""
    assert snapshot_of(applied(command("id", b"value"), b"id")) == (
        b"ledger 1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\2id\0\0\0\5value\0\0\0\2id"
    )


def test_a_snapshot_brings_all_back() -> None:
    old = applied(*(command(f"{n}", b"v" * n) for n in range(300)), b"7")
    new = applied(b"something else")
    new.restore(Trickle(snapshot_of(old)))
    assert (new.entries, new.twice, new.digest) == (old.entries, old.twice, old.digest)
    assert new.apply(Log(9, 1, LogType.COMMAND, b"next")) == 301


def test_a_damaged_snapshot_changes_nothing() -> None:
    whole = snapshot_of(applied(command("a", b"1"), command("b", b"2"), b"a"))
    ledger = applied(b"mine")
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole + b"x", b"L" + whole[1:], whole[:24] + b"\xff" * 4 + whole[28:]]
    for data in damaged:
        with pytest.raises(LedgerFormatError):
            ledger.restore(io.BytesIO(data))
        assert ledger.ids(1, 9) == ["mine"]


def test_a_snapshot_is_what_was_then() -> None:
    ledger = applied(b"a")
    taken = ledger.snapshot()
    ledger.apply(Log(2, 1, LogType.COMMAND, b"b"))
    sink = io.BytesIO()
    taken.persist(sink)
    ledger.restore(io.BytesIO(sink.getvalue()))
    assert ledger.ids(1, 9) == ["a"]


class Nowhere(io.BytesIO):
    """A sink that counts."""

    size = 0

    def write(self, data: object, /) -> int:
        assert isinstance(data, bytes)
        self.size += len(data)
        return len(data)


def test_64_mebibytes_are_streamed() -> None:
    """Beside the entries themselves, a few of the largest are held at most."""
    value = bytes(1 << 20)
    ledger = applied(*(command(f"{number}", value) for number in range(64)))
    sink = Nowhere()
    tracemalloc.start()
    try:
        ledger.snapshot().persist(sink)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sink.size > 64 << 20
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
    ],
)
def test_instants_as_go_writes_them(ns: int | None, text: str) -> None:
    assert rfc3339_nano(ns) == text
