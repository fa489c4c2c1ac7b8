"""Log entries: one by one, by the batch, and as they are stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Log, LogType
from rafthttp.raft.wire.appended_at import encode_time
from rafthttp.raft.wire.entries import (
    decode_log,
    decode_records,
    encode_log,
    encode_logs,
    entries_of,
)

_NS = 1_714_979_289_123_456_789
_INDEXES = st.one_of(
    st.integers(1, 300), st.integers(65_500, 65_600), st.integers(2**32 - 40, 2**63)
)


def test_golden_entries_in_their_own_time_format(load_golden: Callable[[str], Any]) -> None:
    for name in ("append_1_noop", "append_3", "append_3_newtime", "append_64x64"):
        golden = load_golden(name)
        logs: list[Log] = golden.request_fields["Entries"]
        records = [
            encode_log(
                log.index,
                log.term,
                log.type,
                log.data,
                log.extensions,
                log.appended_at_ns,
                new_time_format=name.endswith("newtime"),
            )
            for log in logs
        ]
        assert b"".join(records) in golden.request
        assert decode_records(records) == logs
        assert [decode_log(record) for record in records] == logs


@given(
    st.builds(
        Log,
        _INDEXES,
        st.integers(0, 2**64 - 1),
        st.sampled_from(LogType),
        st.binary(max_size=300),
        st.binary(max_size=40),
        st.one_of(st.none(), st.integers(0, 2**63)),
    )
)
def test_round_trip(log: Log) -> None:
    record = encode_log(log.index, log.term, log.type, log.data, log.extensions, log.appended_at_ns)
    assert decode_log(record) == log
    assert msgpack.unpackb(record, raw=True)[b"Index"] == log.index


@given(_INDEXES, st.integers(0, 2**40), st.lists(st.binary(max_size=80), max_size=40))
def test_a_batch_is_its_entries(first: int, term: int, datas: list[bytes]) -> None:
    one_by_one = [
        encode_log(index, term, LogType.COMMAND, data, b"", _NS)
        for index, data in enumerate(datas, first)
    ]
    assert encode_logs(first, term, datas, _NS) == one_by_one


@pytest.mark.parametrize("first", [120, 250, 65_530, 2**32 - 5])
def test_a_batch_across_widths_of_the_index(first: int) -> None:
    datas = [b"x" * size for size in (0, 1, 31, 32, 255, 256, 65_535, 65_536, 5, 5, 5)]
    records = encode_logs(first, 3, datas, _NS, LogType.BARRIER)
    logs = decode_records(records)
    assert [log.index for log in logs] == list(range(first, first + len(datas)))
    assert [log.data for log in logs] == datas
    assert {log.type for log in logs} == {LogType.BARRIER}
    assert [encode_log(*_fields(log)) for log in logs] == records


def _fields(log: Log) -> tuple[int, int, LogType, bytes, bytes, int | None]:
    return log.index, log.term, log.type, log.data, log.extensions, log.appended_at_ns


def test_columns_of_stored_records() -> None:
    records = [*encode_logs(7, 2, [b"a", b"bb"], _NS), encode_log(9, 3, LogType.NOOP, b"")]
    entries = entries_of(records)
    assert entries.first == 7
    assert entries.terms == [2, 2, 3]
    assert [log.type for log in entries.logs] == [LogType.COMMAND, LogType.COMMAND, LogType.NOOP]
    assert [log.data for log in entries.logs] == [b"a", b"bb", b""]
    assert entries.records == records
    with pytest.raises(ProtocolError, match="stands where"):
        entries_of([records[0], records[2]])


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"not an entry",
        encode_log(1, 1, LogType.COMMAND, b"data")[:-1],
        encode_log(1, 1, LogType.COMMAND, b"data") + b"\x00",
        encode_log(1, 1, LogType.COMMAND, b"data")[:-1] + b"\x09",
        encode_log(1, 1, LogType.COMMAND, b"d").replace(encode_time(None), b"\x07" * 15),
        encode_log(1, 1, LogType.NOOP, b"")[:-1] + b"\xff",  # type -1, no type from the end
    ],
)
def test_a_record_that_is_none(record: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_log(record)


@given(st.binary(max_size=120))
def test_random_bytes_give_a_value_or_the_typed_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_log(data)
