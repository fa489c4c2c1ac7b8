"""Snapshots: the service's own format, the table of sessions before it, and `meta.json`.

Promises: a state or a typed error; on an error the old state stays; what is restored is written
again and restored to the same; nothing is allocated because the bytes claim it.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Final, cast

from rafthttp.kv.commands import Command, Operation, encode
from rafthttp.kv.fsm import KVStateMachine, SnapshotFormatError
from rafthttp.raft.errors import SessionFormatError
from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.storage.snapshot_meta import (
    BrokenMetaError,
    NewerFormatError,
    StoredMeta,
    decode_meta,
    encode_meta,
)
from rafthttp.raft.types import (
    Configuration,
    Log,
    LogType,
    Server,
    ServerAddress,
    ServerID,
    Suffrage,
)
from rafthttp.sessions.envelope import SessionRequest, numbered, once, opening
from rafthttp.sessions.fsm import SessionFSM
from rafthttp.testing.fuzzing.target import HEAD_SIZE_BYTES, Target, choices

_TIME: Final = 1_714_979_289_123_456_789
_SESSION: Final = bytes(range(16))


class _Dribble(io.RawIOBase):
    """A source that gives less than it is asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__()
        self._inner = io.BytesIO(data)
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes."""
        return self._inner.read(self._size if size < 0 else min(size, self._size))


def command(index: int, data: bytes) -> Log:
    """An entry that carries `data`."""
    return Log(index, 1, LogType.COMMAND, data, b"", _TIME + index)


def populated() -> SessionFSM:
    """A state machine with keys, a session with answers and two remembered keys."""
    fsm = SessionFSM(KVStateMachine())
    put = encode(Command(Operation.PUT, "a/key", b"value"))
    delete = encode(Command(Operation.DELETE, "gone"))
    datas = [
        put,
        opening(_SESSION),
        numbered(SessionRequest(_SESSION, 1, 0), put),
        numbered(SessionRequest(_SESSION, 2, 1), delete),
        once("key", put, put),
        once("other", None, b"no command"),
    ]
    fsm.apply_batch([command(at, data) for at, data in enumerate(datas, 1)])
    return fsm


def image(fsm: SessionFSM | KVStateMachine) -> bytes:
    """Its snapshot's bytes."""
    sink = io.BytesIO()
    snapshot = fsm.snapshot()
    snapshot.persist(sink)
    snapshot.release()
    return sink.getvalue()


def check_restore(data: bytes) -> None:
    """A whole snapshot, with or without sessions, from a source that may dribble."""
    head, octets = choices(data)
    fsm: SessionFSM | KVStateMachine
    fsm = KVStateMachine() if head[0] & 1 else populated()
    if isinstance(fsm, KVStateMachine):
        fsm.apply(command(1, encode(Command(Operation.PUT, "old", b"state"))))
    before = image(fsm)
    source: object = _Dribble(octets, head[1] + 1) if head[0] & 2 else io.BytesIO(octets)
    try:
        fsm.restore(cast("BinaryIO", source))
    except (SnapshotFormatError, SessionFormatError):
        assert image(fsm) == before, "a snapshot that was refused has left its mark"
        return
    after = image(fsm)
    again: Any = KVStateMachine() if head[0] & 1 else SessionFSM(KVStateMachine())
    again.restore(io.BytesIO(after))
    assert image(again) == after, "what was restored is written and restored to something else"
    # Whatever a table claims, the next commands are answered.
    results = fsm.apply_batch(
        [command(9, opening(_SESSION)), command(10, once("key", None, b"x")), command(11, b"")]
    )
    assert len(results) == 3, "a command has no answer"


def check_meta(data: bytes) -> None:
    """`meta.json`: what was written, or an error."""
    try:
        stored = decode_meta(data)
    except (BrokenMetaError, NewerFormatError):
        return
    assert encode_meta(stored) == data, "two spellings of one meta"


def _snapshots() -> list[bytes]:
    fsm = populated()
    inner = fsm.inner
    assert isinstance(inner, KVStateMachine)
    whole, plain = image(fsm), image(inner)
    head = bytes(HEAD_SIZE_BYTES)
    return [
        head + whole,
        b"\2\3\0\0" + whole,
        head + plain,
        b"\1" + head[1:] + plain,
        b"\3\0\0\0" + plain,
        b"\1" + head[1:] + b"\xdd\x07\xff\xff\xff",
        b"\1" + head[1:] + b"\xdf\x07\xff\xff\xff",
    ]


def _metas() -> list[bytes]:
    servers = (
        Server(ServerID("n1"), ServerAddress("10.0.0.1:1"), Suffrage.VOTER),
        Server(ServerID("é"), ServerAddress("h:2"), Suffrage.STAGING),
    )
    empty = SnapshotMeta("1-2-3", 2, 1, Configuration(()), 0, 0, 1)
    full = SnapshotMeta("1-2-3", 9, 4, Configuration(servers), 7, 100, 1)
    return [encode_meta(StoredMeta(meta, "ab" * 32)) for meta in (empty, full)]


SNAPSHOTS: Final = Target("snapshots", check_restore, _snapshots)
SNAPSHOT_META: Final = Target("snapshot-meta", check_meta, _metas)
