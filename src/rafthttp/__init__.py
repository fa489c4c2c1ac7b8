"""Raft over the HTTP port an application already serves: the public names, and nothing else.

A name's room is loaded on its first use (PEP 562): the consensus server does not load HTTP.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
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
        require_all,
        token_headers,
    )
    from rafthttp.http.dial import Dial, dial_tcp, dial_tls
    from rafthttp.http.handler import ForwardRequest, ForwardResponse, Handler
    from rafthttp.http.layer import Layer
    from rafthttp.http.membership import ChangeRequest
    from rafthttp.http.uvicorn import raft_protocol
    from rafthttp.node import Node
    from rafthttp.raft.config import Config
    from rafthttp.raft.errors import (
        CantBootstrapError,
        ConfigError,
        ConfigurationChangeError,
        CorruptLogError,
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
        ShutdownError,
        StorageError,
        StorageFailedError,
        StoragePoisonedError,
        TimedOutError,
        TransportError,
        UnknownLeaderError,
    )
    from rafthttp.raft.fsm import FSM, BytesSnapshot, FSMSnapshot
    from rafthttp.raft.raft import (
        Applied,
        LatestConfiguration,
        Raft,
        bootstrap_cluster,
        has_existing_state,
    )
    from rafthttp.raft.types import (
        Configuration,
        Index,
        Leader,
        Log,
        LogType,
        Server,
        ServerAddress,
        ServerID,
        State,
        Suffrage,
        Term,
    )

__all__ = [
    "FSM",
    "Applied",
    "Authorize",
    "BytesSnapshot",
    "CantBootstrapError",
    "ChangeRequest",
    "Config",
    "ConfigError",
    "Configuration",
    "ConfigurationChangeError",
    "CorruptLogError",
    "DataDirectoryError",
    "Dial",
    "DifferentLeaderError",
    "EntryTooLargeError",
    "FSMSnapshot",
    "ForwardError",
    "ForwardRequest",
    "ForwardResponse",
    "FrameTooLargeError",
    "Handler",
    "HandshakeError",
    "HeadersFactory",
    "HttpError",
    "Index",
    "LatestConfiguration",
    "Layer",
    "Leader",
    "LeadershipLostError",
    "LeadershipTransferError",
    "Log",
    "LogType",
    "MembershipError",
    "Node",
    "NotLeaderError",
    "Outcome",
    "OverloadedError",
    "PeerInfo",
    "PeerUnreachableError",
    "Principal",
    "ProtocolError",
    "Purpose",
    "Raft",
    "RaftError",
    "RaftHttpError",
    "Refusal",
    "RemoteApplyError",
    "RemoteError",
    "RequestRefusedError",
    "Server",
    "ServerAddress",
    "ServerID",
    "ShutdownError",
    "State",
    "StorageError",
    "StorageFailedError",
    "StoragePoisonedError",
    "Suffrage",
    "Term",
    "TimedOutError",
    "TransportError",
    "UnknownLeaderError",
    "allow_cidrs",
    "allow_everybody",
    "allow_loopback",
    "bearer_token",
    "bootstrap_cluster",
    "dial_tcp",
    "dial_tls",
    "has_existing_state",
    "raft_protocol",
    "require_all",
    "token_headers",
]

_ROOMS: Final = {
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
        "require_all",
        "token_headers",
    ),
    "rafthttp.http.dial": ("Dial", "dial_tcp", "dial_tls"),
    "rafthttp.http.handler": ("ForwardRequest", "ForwardResponse", "Handler"),
    "rafthttp.http.layer": ("Layer",),
    "rafthttp.http.membership": ("ChangeRequest",),
    "rafthttp.http.uvicorn": ("raft_protocol",),
    "rafthttp.node": ("Node",),
    "rafthttp.raft.config": ("Config",),
    "rafthttp.raft.errors": (
        "CantBootstrapError",
        "ConfigError",
        "ConfigurationChangeError",
        "CorruptLogError",
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
        "Outcome",
        "OverloadedError",
        "PeerUnreachableError",
        "ProtocolError",
        "RaftError",
        "RaftHttpError",
        "RemoteApplyError",
        "RemoteError",
        "RequestRefusedError",
        "ShutdownError",
        "StorageError",
        "StorageFailedError",
        "StoragePoisonedError",
        "TimedOutError",
        "TransportError",
        "UnknownLeaderError",
    ),
    "rafthttp.raft.fsm": (
        "BytesSnapshot",
        "FSM",
        "FSMSnapshot",
    ),
    "rafthttp.raft.raft": (
        "Applied",
        "LatestConfiguration",
        "Raft",
        "bootstrap_cluster",
        "has_existing_state",
    ),
    "rafthttp.raft.types": (
        "Configuration",
        "Index",
        "Leader",
        "Log",
        "LogType",
        "Server",
        "ServerAddress",
        "ServerID",
        "State",
        "Suffrage",
        "Term",
    ),
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
