"""A state machine that keeps commands, and one replica of it behind `SessionFSM`."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

import msgpack
import pytest

from rafthttp import FSM, BytesSnapshot, Log, LogType, SessionFSM

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND


class Recorder(FSM):
    """Keeps commands in order; answers what a command asks for (msgpack in, that value out)."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.respond: Callable[[bytes], Any] | None = None

    def apply(self, log: Log) -> Any:
        self.commands.append(log.data)
        if self.respond is not None:
            return self.respond(log.data)
        if log.data.startswith(b"raise"):
            raise KeyError(log.data.decode())
        if log.data == b"object":
            return object()
        return msgpack.unpackb(log.data)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(msgpack.packb(self.commands))

    def restore(self, source: BinaryIO) -> None:
        self.commands = msgpack.unpackb(source.read())


class Replica:
    """One replica, fed entry by entry."""

    def __init__(self) -> None:
        self.inner = Recorder()
        self.fsm = SessionFSM(self.inner)
        self.index = 0

    def log(self, data: bytes, at_ns: int | None = BEGIN) -> Log:
        self.index += 1
        return Log(self.index, 1, LogType.COMMAND, data, appended_at_ns=at_ns)

    def apply(self, data: bytes, at: float = 0.0) -> Any:
        """The answer, or the exception, of one entry `at` seconds after the beginning."""
        (answer,) = self.fsm.apply_batch([self.log(data, BEGIN + int(at * SECOND))])
        return answer

    def image(self) -> bytes:
        sink = io.BytesIO()
        snapshot = self.fsm.snapshot()
        snapshot.persist(sink)
        snapshot.release()
        return sink.getvalue()

    @classmethod
    def restored(cls, image: bytes) -> "Replica":
        replica = cls()
        replica.fsm.restore(io.BytesIO(image))
        return replica


@pytest.fixture
def replica() -> Replica:
    """One that has seen nothing."""
    return Replica()


@pytest.fixture(scope="module")
def new_replica() -> Callable[[], Replica]:
    """Makes more of them."""
    return Replica


@pytest.fixture(scope="module")
def restored() -> Callable[[bytes], Replica]:
    """One of a snapshot."""
    return Replica.restored
