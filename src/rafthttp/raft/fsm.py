"""The application's state machine, and what it is told.

Every replica applies the same entries in the same order; `apply` must be deterministic and quick:
it runs on the event loop. Whatever blocks that, be it `apply` or a handler of the application,
costs no leadership up to 0.8 of `Config.leader_lease_timeout` at a time (0.4 s unless told
otherwise), even where all servers block; a leader alone may for 0.8 of `heartbeat_timeout`. Past
that others take over, and what the old leader has not committed ends as unknown.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol, runtime_checkable

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import Configuration, Index, Log


class FSMSnapshot(Protocol):
    """A point in time of a state machine, to be written off the event loop."""

    def persist(self, sink: BinaryIO) -> None:
        """Write the whole state to `sink`. Called on a worker thread, while `apply` goes on.

        An exception gives this snapshot up; the server goes on. Where the server is shut down
        meanwhile, the next write raises.
        """
        ...

    def release(self) -> None:
        """Called once when the snapshot is no longer needed, also after a failure.

        On the thread that called `persist`.
        """
        ...


def check_fsm(fsm: object) -> None:
    """Refuse what is no state machine at start, not at the first entry.

    Raises:
        ConfigError: it is no `FSM`, or the class instead of an instance.
    """
    if isinstance(fsm, type) and issubclass(fsm, FSM):
        raise ConfigError(f"fsm is the class {fsm.__name__}; it must be an instance of it")
    if not isinstance(fsm, FSM):
        raise ConfigError(f"fsm is {fsm!r}; it must be an instance of a subclass of FSM")


class BytesSnapshot:
    """An `FSMSnapshot` of bytes made on the spot, for state that is small."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def persist(self, sink: BinaryIO) -> None:
        """Write them (`FSMSnapshot`)."""
        sink.write(self._data)

    def release(self) -> None:
        """Nothing is held (`FSMSnapshot`)."""


class FSM(abc.ABC):
    """A replicated state machine."""

    @abc.abstractmethod
    def apply(self, log: Log) -> Any:
        """Apply one committed command and return what the client is to get.

        An exception is the application's answer: it reaches the client that proposed the command,
        and the entry counts as applied on every replica.
        """

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        """Apply several commands in order; one result each. An exception object is a failed one.

        Override it where a batch is cheaper (hashicorp/raft's `BatchingFSM`).
        """
        results: list[Any] = []
        for log in logs:
            try:
                results.append(self.apply(log))
            except Exception as error:  # noqa: BLE001 - the application's answer, handed to its client
                results.append(error)
        return results

    @abc.abstractmethod
    def snapshot(self) -> FSMSnapshot:
        """Capture the state now; must be quick (copy on write).

        Called on the event loop between applies. An exception gives this snapshot up.
        """

    @abc.abstractmethod
    def restore(self, source: BinaryIO) -> None:
        """Replace the whole state by what `persist` wrote. On an error the old state must stay.

        Called on a worker thread: a large state must not cost heartbeats. Neither `apply` nor
        `snapshot` is called meanwhile, but readers on the event loop see this object: build the new
        state aside, then put it in place with one assignment.

        An exception at start lets the server begin from an older snapshot, if it can; later, when a
        leader's snapshot has replaced the log already, it stops the server. Where the server is
        shut down meanwhile, the next read raises.
        """


@runtime_checkable
class OwnState(Protocol):
    """What an `FSM` is too that wraps another and has state of its own: it has this method."""

    def restore_own(self, source: BinaryIO) -> None:
        """Replace the own state only; the wrapped one keeps its state itself.

        Called at start in place of `FSM.restore` where `Config.no_snapshot_restore_on_start` is on;
        the rest of `source` need not be read. An exception is taken as one of `FSM.restore`.
        """
        ...


@runtime_checkable
class ConfigurationStore(Protocol):
    """What an `FSM` is too that wants the cluster's configurations: it has this method.

    For one that keeps its state on disk itself, so that the state tells who the members were.
    """

    def store_configuration(self, index: Index, configuration: Configuration) -> None:
        """A configuration is committed at `index`. Called in the order of the log, as `apply`.

        Not called for the configuration inside a snapshot: `persist` has to write what this was
        told. An exception stops the server, as it must not go on without the entry.
        """
        ...
