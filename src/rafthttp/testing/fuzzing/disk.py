"""What is read back from the disk: rows, records, configurations, stable values.

Promises: what was stored or `CorruptLogError` (`ProtocolError` from the decoders below it, which
the reader of a log never lets through as data). A value may have any type that sqlite can store.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any, Final
from zlib import crc32

from rafthttp.raft.core.ready import HardState
from rafthttp.raft.errors import CorruptLogError, ProtocolError
from rafthttp.raft.runtime import restart
from rafthttp.raft.runtime.install import check_snapshot_request
from rafthttp.raft.storage import rows
from rafthttp.raft.types import (
    Configuration,
    Log,
    LogType,
    Server,
    ServerAddress,
    ServerID,
    Suffrage,
)
from rafthttp.raft.wire.configuration import decode_configuration, encode_configuration
from rafthttp.raft.wire.entries import decode_log, encode_log, entries_of
from rafthttp.raft.wire.records import InstallSnapshotRequest, RPCHeader
from rafthttp.testing.fuzzing.target import Target

_COLUMNS: Final = ("first", "term", "entries", "head_crc", "data_crc", "sizes", "data")
_GOOD: Final = rows.pack(7, 2, [b"one", b"two", b"", b"four" * 20])


def _value(data: bytes) -> Any:
    """Something of any type that a column can hold."""
    kind, rest = data[:1], data[1:]
    match kind[0] % 5 if kind else 0:
        case 0:
            return None
        case 1:
            return int.from_bytes(rest[:8].ljust(8, b"\0"), "little", signed=True)
        case 2:
            return struct.unpack("<d", rest[:8].ljust(8, b"\0"))[0]
        case 3:
            return rest.decode("utf-8", "replace")
        case _:
            return rest


def check_row(data: bytes) -> None:
    """A stored row with another value in one column, sometimes with checksums that fit."""
    if len(data) < 2:
        return
    column = _COLUMNS[data[0] % len(_COLUMNS)]
    row = _GOOD._replace(**{column: _value(data[2:])})
    if data[1] & 1:
        try:
            head = crc32(struct.pack("<QQQ", row.first, row.term, row.entries))
            row = row._replace(head_crc=head, data_crc=crc32(row.data, crc32(row.sizes, head)))
        except (TypeError, struct.error):
            return
    try:
        records = rows.unpack(row)
    except CorruptLogError:
        return
    if data[1] & 1 and type(row.first) is not int:
        return  # True and 7.0 are packed as numbers are
    assert len(records) == row.entries, "a row has another number of records than it says"
    assert b"".join(records) == row.data, "a record is lost, or cut"
    assert data[1] & 1 or row == _GOOD, "a damaged row is believed"


def check_record(data: bytes) -> None:
    """One record of a row, and a frame's entries."""
    with suppress(ProtocolError):  # what rows hold was checked when it was stored
        decode_log(data)
    try:
        entries = entries_of([data])
    except ProtocolError:
        return
    # What comes off a wire is stored: it must be readable.
    stored = decode_log(entries.records[0])
    _check_types(stored)
    assert (stored.index, stored.term) == (entries.first, entries.terms[0]), (
        "a record says something else than its columns"
    )
    assert stored == entries.logs[0], "a record says something else than the state machine is told"


def _check_types(log: Log) -> None:
    assert isinstance(log.index, int), "an index is no integer"
    assert isinstance(log.term, int), "a term is no integer"
    assert log.index >= 0, "an index is negative"
    assert log.term >= 0, "a term is negative"
    assert isinstance(log.data, bytes), "a command is no bytes"
    assert isinstance(log.extensions, bytes), "the extensions are no bytes"
    assert isinstance(log.type, LogType), "an unknown type"
    assert log.appended_at_ns is None or isinstance(log.appended_at_ns, int), "a time is no number"


def check_stable(data: bytes) -> None:
    """Term and vote, the note of the configurations, the pairs of the state row."""
    try:
        state = restart.decode_hard_state(data)
    except CorruptLogError:
        pass
    else:
        assert 0 <= state.term < 1 << 64, "a term that cannot be"
    try:
        pairs = restart.decode_configurations(data)
    except CorruptLogError:
        pass
    else:
        assert all(isinstance(index, int) and index >= 0 for index, _ in pairs), "an index cannot"
    try:
        found = rows.unpack_pairs(data)
    except CorruptLogError:
        return
    assert sum(len(k) + len(v) + 8 for k, v in found.items()) <= len(data), "more than there is"


def check_configuration(data: bytes) -> None:
    """A configuration, from a log entry or with a snapshot."""
    try:
        configuration = decode_configuration(data)
    except ProtocolError:
        return
    again = decode_configuration(encode_configuration(configuration))
    assert again == configuration, "a configuration cannot be sent on"
    request = InstallSnapshotRequest(
        RPCHeader(3), 1, 3, ServerAddress("h:1"), 9, 2, None, data, 8, len(data)
    )
    try:
        taken = check_snapshot_request(request)
    except ProtocolError:
        assert not configuration.voters, "a leader's snapshot is refused for nothing"
        return
    assert taken == configuration, "a snapshot comes with another configuration"


def _rows() -> list[bytes]:
    return [
        bytes((column, fits, kind)) + rest
        for column in range(len(_COLUMNS))
        for fits in (0, 1)
        for kind, rest in ((1, b"\7"), (4, b"\3\0\0\0\3\0\0\0\0\0\0\0\x50\0\0\0"), (3, b"x"))
    ]


def configurations() -> list[bytes]:
    """Encoded configurations."""
    server = Server(ServerID("n1"), ServerAddress("10.0.0.1:1"), Suffrage.VOTER)
    other = Server(ServerID("n2"), ServerAddress("h:2"), Suffrage.NONVOTER)
    return [
        encode_configuration(Configuration(servers)) for servers in ((server,), (server, other))
    ]


def _records() -> list[bytes]:
    return [
        encode_log(7, 2, LogType.COMMAND, b"x" * 20, b"", 1_714_979_289_123_456_789),
        encode_log(300, 70_000, LogType.COMMAND, b"", b"ext", 0, new_time_format=True),
        encode_log(1, 1, LogType.CONFIGURATION, configurations()[1]),
        encode_log(1 << 40, 1, LogType.NOOP, b""),
    ]


def _stable() -> list[bytes]:
    one = decode_configuration(configurations()[0])
    return [
        restart.encode_hard_state(HardState(3, ServerID("n1"))),
        restart.encode_hard_state(HardState(3, None)),
        restart.encode_configurations(((1, one), (9, one))),
        rows.pack_pairs({b"node_id": b"n1", b"stable/x": b"y" * 9}),
    ]


LOG_ROWS: Final = Target("log-rows", check_row, _rows)
LOG_RECORDS: Final = Target("log-records", check_record, _records)
STABLE_VALUES: Final = Target("stable-values", check_stable, _stable)
CONFIGURATIONS: Final = Target("configurations", check_configuration, configurations)
