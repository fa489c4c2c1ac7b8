"""Raft over the HTTP port an application already serves: the public names, and nothing else.

A name's room is loaded on its first use (PEP 562): the consensus server does not load HTTP.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rafthttp.autopilot import Autopilot, AutopilotConfig
    from rafthttp.health import ClusterHealth, ServerHealth
    from rafthttp.http.access import (
        Authorize,
        HeadersFactory,
        PeerInfo,
        Principal,
        Purpose,
        Refusal,
        allow_cidrs,
        allow_everybody,
        allow_loopback,
        bearer_token,
        client_certificate,
        require_all,
        token_headers,
    )
    from rafthttp.http.dial import Dial, dial_tcp, dial_tls
    from rafthttp.http.handler import ForwardRequest, ForwardResponse, Handler
    from rafthttp.http.layer import Layer
    from rafthttp.http.listener import Listener
    from rafthttp.http.membership import ChangeRequest, handle_change_requests
    from rafthttp.http.membership_client import change_membership
    from rafthttp.http.uvicorn import raft_protocol
    from rafthttp.node import Node
    from rafthttp.raft.bootstrap import bootstrap_cluster, has_existing_state
    from rafthttp.raft.config import Config
    from rafthttp.raft.errors import (
        AbortedByRestoreError,
        CantBootstrapError,
        CantRecoverError,
        ConfigError,
        ConfigurationChangeError,
        CorruptLogError,
        CorruptSnapshotError,
        DataDirectoryError,
        DifferentLeaderError,
        EntryTooLargeError,
        ForwardError,
        FrameTooLargeError,
        HandshakeError,
        HttpError,
        LeadershipLostError,
        LeadershipTransferError,
        MembershipError,
        NothingNewToSnapshotError,
        NotLeaderError,
        Outcome,
        OverloadedError,
        PeerUnreachableError,
        ProtocolError,
        RaftError,
        RaftHttpError,
        RemoteApplyError,
        RemoteError,
        RequestRefusedError,
        RequestReusedError,
        SessionExpiredError,
        SessionFormatError,
        ShutdownError,
        SnapshotError,
        StorageError,
        StorageFailedError,
        StoragePoisonedError,
        TimedOutError,
        TransportError,
        UnknownLeaderError,
    )
    from rafthttp.raft.fsm import FSM, BytesSnapshot, ConfigurationStore, FSMSnapshot
    from rafthttp.raft.observer import (
        FailedHeartbeatObservation,
        LeaderObservation,
        Observation,
        Observer,
        PeerObservation,
        RaftState,
        ResumedHeartbeatObservation,
    )
    from rafthttp.raft.peers_json import read_config_json
    from rafthttp.raft.raft import Applied, Raft
    from rafthttp.raft.recover import Recovered, get_configuration, recover_cluster
    from rafthttp.raft.status import LatestConfiguration, PeerProgress
    from rafthttp.raft.storage.memory import DiscardSnapshotStore, MemorySnapshotStore, MemoryStore
    from rafthttp.raft.storage.protocols import (
        LogStore,
        SnapshotMeta,
        SnapshotSink,
        SnapshotStore,
        StableStore,
    )
    from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
    from rafthttp.raft.storage.sqlite import SqliteStore
    from rafthttp.raft.transport.inmem import InmemTransport
    from rafthttp.raft.transport.memory import InmemNetwork
    from rafthttp.raft.transport.network import NetworkTransport
    from rafthttp.raft.transport.protocols import (
        ServerAddressProvider,
        Stream,
        StreamLayer,
        StreamReceiver,
        Transport,
    )
    from rafthttp.raft.transport.tcp import TCPStreamLayer
    from rafthttp.raft.types import (
        Configuration,
        Index,
        Leader,
        Log,
        LogBatch,
        LogType,
        LogWrite,
        Server,
        ServerAddress,
        ServerID,
        State,
        Suffrage,
        Term,
    )
    from rafthttp.raft.wire.limits import WireLimits
    from rafthttp.sessions.client import ClientSession
    from rafthttp.sessions.envelope import SessionRequest
    from rafthttp.sessions.fsm import SessionFSM

__all__ = [
    "FSM",
    "AbortedByRestoreError",
    "Applied",
    "Authorize",
    "Autopilot",
    "AutopilotConfig",
    "BytesSnapshot",
    "CantBootstrapError",
    "CantRecoverError",
    "ChangeRequest",
    "ClientSession",
    "ClusterHealth",
    "Config",
    "ConfigError",
    "Configuration",
    "ConfigurationChangeError",
    "ConfigurationStore",
    "CorruptLogError",
    "CorruptSnapshotError",
    "DataDirectoryError",
    "Dial",
    "DifferentLeaderError",
    "DiscardSnapshotStore",
    "EntryTooLargeError",
    "FSMSnapshot",
    "FailedHeartbeatObservation",
    "FileSnapshotStore",
    "ForwardError",
    "ForwardRequest",
    "ForwardResponse",
    "FrameTooLargeError",
    "Handler",
    "HandshakeError",
    "HeadersFactory",
    "HttpError",
    "Index",
    "InmemNetwork",
    "InmemTransport",
    "LatestConfiguration",
    "Layer",
    "Leader",
    "LeaderObservation",
    "LeadershipLostError",
    "LeadershipTransferError",
    "Listener",
    "Log",
    "LogBatch",
    "LogStore",
    "LogType",
    "LogWrite",
    "MembershipError",
    "MemorySnapshotStore",
    "MemoryStore",
    "NetworkTransport",
    "Node",
    "NotLeaderError",
    "NothingNewToSnapshotError",
    "Observation",
    "Observer",
    "Outcome",
    "OverloadedError",
    "PeerInfo",
    "PeerObservation",
    "PeerProgress",
    "PeerUnreachableError",
    "Principal",
    "ProtocolError",
    "Purpose",
    "Raft",
    "RaftError",
    "RaftHttpError",
    "RaftState",
    "Recovered",
    "Refusal",
    "RemoteApplyError",
    "RemoteError",
    "RequestRefusedError",
    "RequestReusedError",
    "ResumedHeartbeatObservation",
    "Server",
    "ServerAddress",
    "ServerAddressProvider",
    "ServerHealth",
    "ServerID",
    "SessionExpiredError",
    "SessionFSM",
    "SessionFormatError",
    "SessionRequest",
    "ShutdownError",
    "SnapshotError",
    "SnapshotMeta",
    "SnapshotSink",
    "SnapshotStore",
    "SqliteStore",
    "StableStore",
    "State",
    "StorageError",
    "StorageFailedError",
    "StoragePoisonedError",
    "Stream",
    "StreamLayer",
    "StreamReceiver",
    "Suffrage",
    "TCPStreamLayer",
    "Term",
    "TimedOutError",
    "Transport",
    "TransportError",
    "UnknownLeaderError",
    "WireLimits",
    "allow_cidrs",
    "allow_everybody",
    "allow_loopback",
    "bearer_token",
    "bootstrap_cluster",
    "change_membership",
    "client_certificate",
    "dial_tcp",
    "dial_tls",
    "get_configuration",
    "handle_change_requests",
    "has_existing_state",
    "raft_protocol",
    "read_config_json",
    "recover_cluster",
    "require_all",
    "token_headers",
]

_ROOMS: Final = {
    "rafthttp.autopilot": ("Autopilot", "AutopilotConfig"),
    "rafthttp.health": ("ClusterHealth", "ServerHealth"),
    "rafthttp.http.access": (
        "Authorize",
        "HeadersFactory",
        "PeerInfo",
        "Principal",
        "Purpose",
        "Refusal",
        "allow_cidrs",
        "allow_everybody",
        "allow_loopback",
        "bearer_token",
        "client_certificate",
        "require_all",
        "token_headers",
    ),
    "rafthttp.http.dial": (
        "Dial",
        "dial_tcp",
        "dial_tls",
    ),
    "rafthttp.http.handler": (
        "ForwardRequest",
        "ForwardResponse",
        "Handler",
    ),
    "rafthttp.http.layer": ("Layer",),
    "rafthttp.http.listener": ("Listener",),
    "rafthttp.http.membership": (
        "ChangeRequest",
        "handle_change_requests",
    ),
    "rafthttp.http.membership_client": ("change_membership",),
    "rafthttp.http.uvicorn": ("raft_protocol",),
    "rafthttp.node": ("Node",),
    "rafthttp.raft.config": ("Config",),
    "rafthttp.raft.errors": (
        "AbortedByRestoreError",
        "CantBootstrapError",
        "CantRecoverError",
        "ConfigError",
        "ConfigurationChangeError",
        "CorruptLogError",
        "CorruptSnapshotError",
        "DataDirectoryError",
        "DifferentLeaderError",
        "EntryTooLargeError",
        "ForwardError",
        "FrameTooLargeError",
        "HandshakeError",
        "HttpError",
        "LeadershipLostError",
        "LeadershipTransferError",
        "MembershipError",
        "NotLeaderError",
        "NothingNewToSnapshotError",
        "Outcome",
        "OverloadedError",
        "PeerUnreachableError",
        "ProtocolError",
        "RaftError",
        "RaftHttpError",
        "RemoteApplyError",
        "RemoteError",
        "RequestRefusedError",
        "RequestReusedError",
        "SessionExpiredError",
        "SessionFormatError",
        "ShutdownError",
        "SnapshotError",
        "StorageError",
        "StorageFailedError",
        "StoragePoisonedError",
        "TimedOutError",
        "TransportError",
        "UnknownLeaderError",
    ),
    "rafthttp.raft.fsm": (
        "BytesSnapshot",
        "ConfigurationStore",
        "FSM",
        "FSMSnapshot",
    ),
    "rafthttp.raft.observer": (
        "FailedHeartbeatObservation",
        "LeaderObservation",
        "Observation",
        "Observer",
        "PeerObservation",
        "RaftState",
        "ResumedHeartbeatObservation",
    ),
    "rafthttp.raft.bootstrap": ("bootstrap_cluster", "has_existing_state"),
    "rafthttp.raft.peers_json": ("read_config_json",),
    "rafthttp.raft.raft": ("Applied", "Raft"),
    "rafthttp.raft.recover": ("Recovered", "get_configuration", "recover_cluster"),
    "rafthttp.raft.status": ("LatestConfiguration", "PeerProgress"),
    "rafthttp.raft.storage.memory": (
        "DiscardSnapshotStore",
        "MemorySnapshotStore",
        "MemoryStore",
    ),
    "rafthttp.raft.storage.protocols": (
        "LogStore",
        "SnapshotMeta",
        "SnapshotSink",
        "SnapshotStore",
        "StableStore",
    ),
    "rafthttp.raft.storage.snapshot_files": ("FileSnapshotStore",),
    "rafthttp.raft.storage.sqlite": ("SqliteStore",),
    "rafthttp.raft.transport.inmem": ("InmemTransport",),
    "rafthttp.raft.transport.memory": ("InmemNetwork",),
    "rafthttp.raft.transport.network": ("NetworkTransport",),
    "rafthttp.raft.transport.protocols": (
        "ServerAddressProvider",
        "Stream",
        "StreamLayer",
        "StreamReceiver",
        "Transport",
    ),
    "rafthttp.raft.transport.tcp": ("TCPStreamLayer",),
    "rafthttp.raft.types": (
        "Configuration",
        "Index",
        "Leader",
        "Log",
        "LogBatch",
        "LogType",
        "LogWrite",
        "Server",
        "ServerAddress",
        "ServerID",
        "State",
        "Suffrage",
        "Term",
    ),
    "rafthttp.raft.wire.limits": ("WireLimits",),
    "rafthttp.sessions.client": ("ClientSession",),
    "rafthttp.sessions.envelope": ("SessionRequest",),
    "rafthttp.sessions.fsm": ("SessionFSM",),
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}


if not TYPE_CHECKING:  # else type checkers take every name for known

    def __getattr__(name: str) -> object:
        room = _ROOM_OF.get(name)
        if room is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(room), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
