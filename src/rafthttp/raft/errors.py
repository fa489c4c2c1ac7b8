"""Every error of the package, in one tree.

RaftHttpError
├── ConfigError                      the caller's: a field of a configuration is out of bounds
├── RaftError                        what a client of the cluster is told; has `outcome`, `leader`
│   ├── NotLeaderError               definite
│   │   └── UnknownLeaderError       definite; no leader is known either
│   │   └── DifferentLeaderError     definite; another server leads
│   ├── LeadershipLostError          unknown: the entry may yet be committed
│   ├── LeadershipTransferError      definite: a transfer is under way, or it failed
│   ├── OverloadedError              definite: too much is pending
│   ├── EntryTooLargeError           definite
│   ├── TimedOutError                as `outcome` says
│   ├── ShutdownError                as `outcome` says
│   ├── StorageFailedError           as `outcome` says: this server's disk failed
│   ├── ConfigurationChangeError     definite: the cluster refuses this change
│   ├── CantBootstrapError           definite: there is state already
│   ├── CantRecoverError             definite: there is no state
│   ├── SnapshotError                no snapshot was taken, or restored; as `outcome` says
│   │   └── NothingNewToSnapshotError    definite: nothing was applied since the last one
│   ├── AbortedByRestoreError        as `outcome` says: a user's snapshot replaces the state
│   ├── SessionExpiredError          as `outcome` says: the session, or the answer, is forgotten
│   ├── RequestReusedError           definite; another request was made under this id
│   └── ForwardError                 as `outcome` says: the way to the leader broke
├── RemoteApplyError                 applied; the state machine of another process raised
├── SessionFormatError               an envelope or a table of sessions that cannot be read
├── StorageError                     the local disk
│   ├── DataDirectoryError           in use, unwritable, of another id, of a newer format
│   ├── CorruptLogError              a checksum or the order of the log is wrong
│   ├── CorruptSnapshotError         a snapshot is not as it was written
│   └── StoragePoisonedError         a write failed before; only a fresh open clears it
├── TransportError                   the way to a peer
│   ├── PeerUnreachableError         dial failed, stream closed, deadline over
│   ├── RemoteError                  the peer answered an RPC with an error text
│   └── ProtocolError                the peer sent what nobody may send
│       └── FrameTooLargeError       over a cap; `option` names it
└── HttpError                        the HTTP edge
    ├── HandshakeError               no stream came of it; `status` if there was one
    ├── RequestRefusedError          what `Handler` answers; `status` is the hint
    └── MembershipError              join or leave failed; `status`, `text`
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from rafthttp.raft.types import Leader, ServerAddress, ServerID


class Outcome(Enum):
    """What a client may conclude from an error.

    DEFINITE: the command was not applied and never will be.
    UNKNOWN: it may have been applied, or may be later.
    """

    DEFINITE = "definite"
    UNKNOWN = "unknown"


class RaftHttpError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(RaftHttpError, ValueError):
    """A configuration field is out of its bounds; the text names the field and the bound."""


class RaftError(RaftHttpError):
    """What a client of the cluster is told.

    Attributes:
        outcome: whether the command is known not to be applied.
        leader: who leads, where known.
    """

    default_outcome: ClassVar[Outcome] = Outcome.DEFINITE

    def __init__(
        self, text: str, *, outcome: Outcome | None = None, leader: Leader | None = None
    ) -> None:
        super().__init__(text)
        self.outcome = self.default_outcome if outcome is None else outcome
        self.leader = leader


class NotLeaderError(RaftError):
    """This server does not lead, and did not propose the command."""


class UnknownLeaderError(NotLeaderError):
    """No leader is known; try again later."""


class DifferentLeaderError(NotLeaderError):
    """Another server leads: `leader` is set."""


class LeadershipLostError(RaftError):
    """Leadership was lost after the command was proposed; it may yet be committed."""

    default_outcome = Outcome.UNKNOWN


class LeadershipTransferError(RaftError):
    """A leadership transfer is under way, or the one asked for failed."""


class OverloadedError(RaftError):
    """Too many commands or bytes are pending; nothing was proposed."""


class EntryTooLargeError(RaftError):
    """The command is larger than `Config.entry_size_bytes_max`; nothing was proposed."""


class TimedOutError(RaftError):
    """The deadline passed: unknown if the command was proposed, definite if not."""

    default_outcome = Outcome.UNKNOWN


class ShutdownError(RaftError):
    """The server is shut down, or was while the command was pending (then unknown)."""


class StorageFailedError(RaftError):
    """This server's disk failed; it takes no part until it is restarted."""


class ConfigurationChangeError(RaftError):
    """The cluster refuses this change of configuration; the text says why."""


class CantBootstrapError(RaftError):
    """There is state already; a cluster is bootstrapped once."""


class CantRecoverError(RaftError):
    """There is nothing to recover, which is most likely an operator's mistake."""


class SnapshotError(RaftError):
    """No snapshot was taken, or none restored; the server goes on. The cause says why."""


class NothingNewToSnapshotError(SnapshotError):
    """Nothing was applied since the last snapshot, or ever."""


class AbortedByRestoreError(RaftError):
    """`Raft.restore` replaces the state: unknown if the command was proposed, definite if not."""


class ForwardError(RaftError):
    """The way to the leader broke; unknown once request bytes may have reached it."""

    default_outcome = Outcome.UNKNOWN


class SessionExpiredError(RaftError):
    """The session of a request, or its answer, is remembered no more; this copy is not applied.

    Definite where no copy sent before may have been applied, otherwise unknown.
    """


class RequestReusedError(RaftError):
    """Another request was made under the same id; this one is not applied."""


class SessionFormatError(RaftHttpError, ValueError):
    """An envelope, or the table in a snapshot, is cut short, damaged or of a newer version."""


class RemoteApplyError(RaftHttpError):
    """The command was applied, and the leader's state machine raised, or its result cannot cross.

    The text carries the exception's type and text. Nothing is unknown: every replica has applied
    the entry.
    """


class StorageError(RaftHttpError):
    """The local disk."""


class DataDirectoryError(StorageError):
    """The data directory cannot be used: in use, unwritable, another id's, a newer format."""


class CorruptLogError(StorageError):
    """A checksum or the order of the log is wrong."""


class CorruptSnapshotError(StorageError):
    """A snapshot is not as it was written: a wrong checksum, cut short, a file of it gone."""


class StoragePoisonedError(StorageError):
    """An earlier write failed; nothing more is written until a fresh open."""


class TransportError(RaftHttpError):
    """The way to a peer."""


class PeerUnreachableError(TransportError):
    """The dial failed, the stream closed, or the deadline passed.

    Attributes:
        never_sent: whether it is known that no byte of the request left this server.
    """

    never_sent = False


class RemoteError(TransportError):
    """The peer answered an RPC with an error text."""


class ProtocolError(TransportError):
    """The peer sent bytes that nobody may send; its connection is closed."""


class FrameTooLargeError(ProtocolError):
    """A frame is over a cap.

    Attributes:
        option: name of the setting that raises the cap.
    """

    def __init__(self, text: str, *, option: str) -> None:
        super().__init__(f"{text} (raise `{option}` if this peer is right)")
        self.option = option


class HttpError(RaftHttpError):
    """The HTTP edge."""


class HandshakeError(HttpError):
    """No stream came of an upgrade.

    Attributes:
        status: HTTP status of the answer, or None when there was none.
        upgrade: what the answer's `Upgrade` header offers instead, in lower case.
    """

    def __init__(
        self, text: str, *, status: int | None = None, upgrade: tuple[str, ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.upgrade = upgrade


class RequestRefusedError(HttpError):
    """What a `Handler` answers to a request it refuses.

    Attributes:
        status: the HTTP status to answer with.
        headers: further response headers.
    """

    def __init__(
        self, status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class MembershipError(HttpError):
    """A join or leave failed.

    Attributes:
        status: HTTP status of the last answer, or None when there was none.
        server_id: id that was to join or leave.
        address: address last asked.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        server_id: ServerID | None = None,
        address: ServerAddress | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.server_id = server_id
        self.address = address


def told(error: Exception) -> str:
    """An error of the application's in one text that UTF-8 has a form for.

    Even one that fails to tell its own: what it came of is applied, and must be answered.
    """
    name = type(error).__name__
    try:
        text = f"{name}: {error}"
    except Exception:  # noqa: BLE001 - the application's
        text = f"{name}: its text cannot be had"
    return text.encode("utf-8", "backslashreplace").decode()
