"""Commands of a hostile client, and the header under which the service remembers requests.

Promises: every entry is answered, whatever it holds; nothing stops a replica; two replicas that cut
the log into different batches give the same answers and hold the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rafthttp.kv.commands import Command, Operation, encode
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.kv.idempotency import HEADER, IdempotencyKeyError, parse, render
from rafthttp.raft.types import Log, LogType
from rafthttp.sessions.envelope import MAGIC, SessionRequest, numbered, once, opening
from rafthttp.sessions.fsm import SessionFSM
from rafthttp.testing.fuzzing.snapshots import image
from rafthttp.testing.fuzzing.target import Target

_START: Final = 1_714_979_289_123_456_789
_SESSION: Final = bytes(range(16))
_ENTRIES_MAX: Final = 64


def _entries(data: bytes) -> Iterator[Log]:
    """Entries out of bytes: a length, a step of the clock, the command."""
    at, index, time_ns = 0, 0, _START
    while at + 2 <= len(data) and index < _ENTRIES_MAX:
        size, step = data[at], data[at + 1]
        index += 1
        # Forwards and back, by up to a day, and now and then no time at all.
        time_ns += (step - 100) * abs(step - 100) * 4_000_000_000
        stamp = None if step == 255 else time_ns
        yield Log(index, 1, LogType.COMMAND, data[at + 2 : at + 2 + size], b"", stamp)
        at += 2 + size


def _told(answer: Any) -> Any:
    return (type(answer).__name__, str(answer)) if isinstance(answer, Exception) else answer


def _one_by_one(fsm: SessionFSM, logs: Sequence[Log]) -> list[Any]:
    answers: list[Any] = []
    for log in logs:
        answers += fsm.apply_batch([log])
    return answers


def check_commands(data: bytes) -> None:
    """A log of anything, applied as one batch, one by one, and with a restore in between."""
    logs = list(_entries(data))
    first, second, third = (SessionFSM(KVStateMachine()) for _ in range(3))
    answers = list(map(_told, first.apply_batch(logs)))
    assert len(answers) == len(logs), "an entry without an answer"
    others = list(map(_told, _one_by_one(second, logs)))
    assert answers == others, "the batches decide what is answered"
    half = len(logs) // 2
    third.apply_batch(logs[:half])
    restored = SessionFSM(KVStateMachine())
    restored.restore(io.BytesIO(image(third)))
    restored.apply_batch(logs[half:])
    assert image(first) == image(second) == image(restored), "replicas have diverged"


def check_header(data: bytes) -> None:
    """`Idempotency-Key`, as a server hands header values over."""
    values = data.decode("latin-1").split("\n")
    try:
        request_id = parse(values)
    except IdempotencyKeyError as error:
        text = str(error)
        assert HEADER in text, "an error that does not say which header"
        return
    if isinstance(request_id, SessionRequest):
        assert 0 <= request_id.lowest <= request_id.sequence < 1 << 64, "no numbers of a request"
    elif request_id is not None:
        assert once(request_id, None, b""), "a key that no envelope takes"
    assert request_id is None or parse([render(request_id)]) == request_id, "it is not kept"


def _entry(command: bytes, step: int = 101) -> bytes:
    return bytes((len(command), step)) + command


def _commands() -> list[bytes]:
    put = encode(Command(Operation.PUT, "k", b"v"))
    delete = encode(Command(Operation.DELETE, "k"))
    request = numbered(SessionRequest(_SESSION, 1, 0), put)
    later = numbered(SessionRequest(_SESSION, 5, 3), delete)
    single = [
        put,
        delete,
        opening(_SESSION),
        request,
        request,
        later,
        request,
        once("a", put, put),
        once("a", put, put),
        once("a", delete, delete),
        once("b", None, b"none"),
        once("b", None, b"none"),
        MAGIC,
        MAGIC + b"\1\4" + bytes(32),
        MAGIC + b"\1\0" + bytes(32) + put,
    ]
    return [
        *(_entry(command) for command in single),
        b"".join(map(_entry, single)),
        b"".join(_entry(command, 200) for command in single),
    ]


def _headers() -> list[bytes]:
    session = _SESSION.hex().encode()
    return [
        b'"8e03978e-40d5"',
        b"8e03978e-40d5",
        b'"' + session + b'";seq=7;low=3',
        b'"' + session + b'"; seq=7; low=8',
        b'"a\\"b\\\\c"',
        b'"a";x=1',
        b'"a"\n"b"',
        b"",
    ]


COMMANDS: Final = Target("commands", check_commands, _commands)
IDEMPOTENCY_KEY: Final = Target("idempotency-key", check_header, _headers)
