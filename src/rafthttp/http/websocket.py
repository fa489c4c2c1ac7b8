"""The WebSocket carrier (RFC 6455), both sides, sans-I/O: handshake and framing.

Knows bytes, h11 and the framing of the `websockets` library; no socket, no clock. The stream is a
plain byte stream: binary messages of any size end to end, and where one ends means nothing. The
subprotocol is `raft`, and there is no compression: it costs two thirds of the throughput.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import secrets
from collections.abc import Iterable
from typing import Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from rafthttp.http.handshake import RAFT_PROTOCOL, ClientHandshake, check_host
from rafthttp.http.messages import CLUSTER_ID_HEADER, Headers, Request
from rafthttp.raft.errors import HandshakeError, RequestRefusedError

WEBSOCKET: Final = "websocket"
"""The token of the `Upgrade` header."""

MESSAGE_SIZE_BYTES_MAX: Final = 256 << 10
"""Bytes of a message we send. Servers cap a message at 4 to 16 MiB, and hold one as a whole."""

RECEIVED_SIZE_BYTES_MAX: Final = 1 << 20
"""Bytes of a message we accept, fragmented or not; four of the largest we send."""

PING_SECONDS: Final = 20.0
"""A stream that has sent nothing for so long sends a ping: proxies cut idle ones, many at 60 s,
some at 30 s. A pong that stays away closes nothing: a peer that holds us back by not reading does
not read pings either, and its silence is noticed by the RPCs that wait for it."""

ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 §1.3."""

# The library formats each frame where its logger takes debug records: never for us, as an
# application that logs everything would pay for it with every RPC.
_log: Final = logging.getLogger("rafthttp.http.frames")
_log.setLevel(logging.WARNING)


class WebSocketHandshake(ClientHandshake):
    """The dialing side's handshake; see `ClientHandshake`."""

    protocol = WEBSOCKET
    _known_101 = None  # it answers a key

    def __init__(self, host: str, path: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        key = base64.b64encode(secrets.token_bytes(16)).decode("ascii")
        self._expected = _accept_value(key)
        fields = (
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key),
            ("Sec-WebSocket-Protocol", RAFT_PROTOCOL),
        )
        super().__init__(host, path, (*fields, *headers))

    def _check_established(self, headers: Headers) -> None:
        """RFC 6455 §4.1, the client's checks 2 to 6."""
        super()._check_established(headers)
        if headers.get_all("Sec-WebSocket-Accept") != (self._expected,):
            raise HandshakeError("the 101 answers another WebSocket handshake", status=101)
        if headers.get_all("Sec-WebSocket-Protocol") != (RAFT_PROTOCOL,):
            raise HandshakeError("the server does not speak the subprotocol raft", status=101)
        if "Sec-WebSocket-Extensions" in headers:
            raise HandshakeError("the server uses an extension that nobody offered", status=101)


def check_websocket_upgrade(request: Request) -> str:
    """Check that a GET asks for a raft stream over WebSocket (RFC 6455 §4.2.1); returns its key.

    Raises:
        RequestRefusedError: 400 with the reason; 426 for another version.
    """
    headers = request.headers
    if request.http_version != "1.1":
        raise RequestRefusedError(400, "an upgrade needs HTTP/1.1")
    check_host(request)
    if "upgrade" not in headers.tokens("Connection"):
        raise RequestRefusedError(400, "the connection header does not name the upgrade")
    if "Transfer-Encoding" in headers or headers.get("Content-Length") not in (None, "0"):
        raise RequestRefusedError(400, "an upgrade request has no body")
    if headers.get_all("Sec-WebSocket-Version") != ("13",):
        version = (("Sec-WebSocket-Version", "13"),)
        raise RequestRefusedError(426, "WebSocket version 13 is spoken here", headers=version)
    keys = headers.get_all("Sec-WebSocket-Key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise RequestRefusedError(400, "malformed Sec-WebSocket-Key")
    check_subprotocol(headers.tokens("Sec-WebSocket-Protocol"))
    return keys[0]


def check_subprotocol(offered: Iterable[str]) -> None:
    """Check what a client offers.

    Raises:
        RequestRefusedError: 400, it does not offer ours.
    """
    if RAFT_PROTOCOL not in offered:
        raise RequestRefusedError(400, "this endpoint speaks the WebSocket subprotocol raft")


def switching_to_websocket(key: str, cluster_id: str | None) -> bytes:
    """The 101. `key` has been checked; `cluster_id` must have passed `parse_cluster_id`."""
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {_accept_value(key)}\r\nSec-WebSocket-Protocol: {RAFT_PROTOCOL}\r\n"
    )
    if cluster_id is not None:
        head += f"{CLUSTER_ID_HEADER}: {cluster_id}\r\n"
    return head.encode("ascii") + b"\r\n"


class Framing:
    """The frames of one connection, as one side of it.

    Everything the methods return is to be written, in that order.

    Attributes:
        ended: whether the peer has closed, or broke the protocol: write, then close the connection.
        error: how it broke the protocol, or None.
    """

    def __init__(self, *, is_client: bool) -> None:
        self.ended = False
        self.error: str | None = None
        self._protocol = Protocol(
            CLIENT if is_client else SERVER,
            state=OPEN,
            max_size=RECEIVED_SIZE_BYTES_MAX,
            logger=_log,
        )

    def send(self, data: bytes) -> bytes:
        """Frame some bytes of the stream."""
        protocol = self._protocol
        if protocol.state is not OPEN:
            return b""
        if len(data) <= MESSAGE_SIZE_BYTES_MAX:
            protocol.send_binary(data)
        else:
            whole = memoryview(data)
            for start in range(0, len(data), MESSAGE_SIZE_BYTES_MAX):
                protocol.send_binary(whole[start : start + MESSAGE_SIZE_BYTES_MAX])
        return b"".join(protocol.data_to_send())

    def receive(
        self, data: bytes | memoryview, *, answer_pings: bool = True
    ) -> tuple[bytes, bytes]:
        """Take what was read: the bytes of the stream in it, and what to write.

        Without `answer_pings` their pongs are dropped: for a peer that sends pings and reads
        nothing, which would otherwise fill our memory with them.
        """
        if self.ended:
            return b"", b""
        protocol = self._protocol
        protocol.receive_data(data)  # type: ignore[arg-type]  # it takes any buffer
        payload = self._payload(protocol.events_received())
        if self.error is None and protocol.parser_exc is not None:
            self.error = str(protocol.parser_exc)
        self.ended = protocol.state is not OPEN
        answer = b"".join(protocol.data_to_send())
        return payload, answer if answer_pings or self.ended else b""

    def ping(self) -> bytes:
        """Ask for a sign of life; keeps proxies from taking the connection for idle."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_ping(b"")
        return b"".join(self._protocol.data_to_send())

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> bytes:
        """Say that nothing more will be sent."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_close(code, reason)
        return b"".join(self._protocol.data_to_send())

    def _payload(self, frames: Iterable[object]) -> bytes:
        # Fragments are delivered as they come: where a message ends means nothing here.
        parts: list[bytes] = []
        for frame in frames:
            assert isinstance(frame, Frame), "there is no handshake in this state"
            if frame.opcode is Opcode.BINARY or frame.opcode is Opcode.CONT:
                parts.append(bytes(frame.data))
            elif frame.opcode is Opcode.TEXT:
                self.error = "a text message; the stream has binary ones only"
                self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "binary messages only")
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _accept_value(key: str) -> str:
    # RFC 6455 §4.2.2: a proof of having read the request, no secret.
    digest = hashlib.sha1(key.encode("ascii") + ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
