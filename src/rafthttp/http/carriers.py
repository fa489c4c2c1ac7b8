"""Raw or WebSocket: which carrier a request asks for, and which one a peer was last reached by.

Knows both handshakes and decides between them; reads and writes nothing itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

from rafthttp.http.handshake import RAFT_PROTOCOL, check_upgrade, switching_protocols
from rafthttp.http.messages import Request
from rafthttp.http.websocket import (
    WEBSOCKET,
    check_subprotocol,
    check_websocket_upgrade,
    switching_to_websocket,
)
from rafthttp.http.websocket_stream import WebSocketStream
from rafthttp.raft.errors import RequestRefusedError
from rafthttp.raft.transport.protocols import Stream

CARRIERS: Final = ("auto", "raw", "websocket")
"""What `carrier=` may be."""

REMEMBERED_MAX: Final = 1024
"""Addresses remembered; far above any cluster, so that only addresses long gone are dropped."""

Open: TypeAlias = Callable[[str | None], Stream]
"""Answers an upgrade, telling the cluster's id where known; ConnectionError if the client left."""


def how_to_open(request: Request, ping_seconds: float) -> Open:
    """How to turn a GET into a stream.

    Raises:
        RequestRefusedError: 400, it asks for none; 426, this server needs it to ask otherwise.
    """
    if request.accept_websocket is not None:
        check_subprotocol(request.subprotocols)
        return request.accept_websocket
    wanted = request.headers.tokens("Upgrade")
    over_websocket = WEBSOCKET in wanted and RAFT_PROTOCOL not in wanted
    key = ""
    if over_websocket:
        key = check_websocket_upgrade(request)
    else:
        check_upgrade(request)
    take = request.take
    if take is None:
        if over_websocket:
            raise RequestRefusedError(501, "this web server was started without WebSockets")
        # RFC 9110 §15.5.22: a 426 names what to ask for instead.
        raise RequestRefusedError(
            426,
            "this web server cannot hand over its socket, which Upgrade: raft needs; use WebSocket",
            headers=(("Upgrade", WEBSOCKET), ("Connection", "Upgrade")),
        )

    def open_raw(cluster_id: str | None) -> Stream:
        return take(switching_protocols(cluster_id))

    def open_websocket(cluster_id: str | None) -> Stream:
        stream = take(switching_to_websocket(key, cluster_id))
        return WebSocketStream(stream, is_client=False, ping_seconds=ping_seconds)

    return open_websocket if over_websocket else open_raw


class CarrierMemory:
    """The addresses last reached over WebSocket, after they had refused the raw upgrade."""

    def __init__(self, addresses_max: int = REMEMBERED_MAX) -> None:
        self._addresses: OrderedDict[str, None] = OrderedDict()
        self._addresses_max = addresses_max

    def __contains__(self, address: str) -> bool:
        return address in self._addresses

    def __len__(self) -> int:
        return len(self._addresses)

    def remember(self, address: str) -> None:
        """WebSocket it was. The address that was not used for longest gives way."""
        self._addresses[address] = None
        self._addresses.move_to_end(address)
        if len(self._addresses) > self._addresses_max:
            self._addresses.popitem(last=False)

    def forget(self, address: str) -> None:
        """Something changed there: raw is tried first again."""
        self._addresses.pop(address, None)
