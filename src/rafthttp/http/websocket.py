"""The WebSocket carrier (RFC 6455), both sides, sans-I/O: handshake and framing.

Knows bytes, h11 and the `websockets` library; no socket, no clock. The stream is a plain byte
stream: binary messages of any size end to end, and where one ends means nothing. The subprotocol is
`raft`, and there is no compression: it costs two thirds of the throughput.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import secrets
import struct
from collections.abc import Iterable
from typing import Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from rafthttp.http.handshake import RAFT_PROTOCOL, ClientHandshake, check_host
from rafthttp.http.messages import CLUSTER_ID_HEADER, Headers, Request
from rafthttp.raft.errors import HandshakeError, RequestRefusedError

try:
    from websockets.speedups import apply_mask
except ImportError:  # neither a wheel nor a C compiler
    from websockets.utils import apply_mask

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

HEAD_SIZE_BYTES_MAX: Final = 14
"""Of a frame: two bytes, up to eight of length, four of mask (RFC 6455 §5.2)."""

WHOLE_BINARY: Final = 0x80 | Opcode.BINARY
"""The first byte of a message in one frame."""

_HEAD_16: Final = struct.Struct("!BBH")
_HEAD_64: Final = struct.Struct("!BBQ")

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

    Binary messages in one frame are all that carries bytes between our peers, and are framed here:
    the payload is unmasked and delivered as it arrives, complete or not. Any other frame, valid or
    not, is the library's from its head on: fragments, pings, closes, errors.

    Everything the methods return is to be written, in that order.

    Attributes:
        ended: whether the peer has closed, or broke the protocol: write, then close the connection.
        error: how it broke the protocol, or None.
    """

    def __init__(self, *, is_client: bool) -> None:
        self.ended = False
        self.error: str | None = None
        self._is_client = is_client
        self._protocol = Protocol(
            CLIENT if is_client else SERVER,
            state=OPEN,
            max_size=RECEIVED_SIZE_BYTES_MAX,
            logger=_log,
        )
        # What is being received:
        self._head: bytes = b""  # of the next frame, as far as it has come
        self._left_bytes = 0  # of the present frame's payload, still to come
        self._is_plain = False  # whether that frame is a whole binary message
        self._mask: bytes = b""  # of that frame, turned to its next byte
        self._in_fragments = False  # whether a message has begun that ends in a later frame

    def send(self, data: bytes) -> bytes:
        """Frame some bytes of the stream."""
        if self._protocol.state is not OPEN:
            return b""
        if len(data) <= MESSAGE_SIZE_BYTES_MAX:
            return b"".join(self._message(data))
        whole = memoryview(data)
        parts: list[bytes | memoryview] = []
        for start in range(0, len(data), MESSAGE_SIZE_BYTES_MAX):
            parts.extend(self._message(whole[start : start + MESSAGE_SIZE_BYTES_MAX]))
        return b"".join(parts)

    def receive(
        self, data: bytes | memoryview, *, answer_pings: bool = True
    ) -> tuple[bytes, bytes]:
        """Take what was read: the bytes of the stream in it, and what to write.

        Without `answer_pings` their pongs are dropped: for a peer that sends pings and reads
        nothing, which would otherwise fill our memory with them.
        """
        if self.ended:
            return b"", b""
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        at = 0
        while at < len(view) and not self.ended:
            if self._left_bytes:
                part = view[at : at + self._left_bytes]
                at += len(part)
                self._left_bytes -= len(part)
                parts.append(self._payload(part) if self._is_plain else self._by_library(part))
            else:
                at = self._read_head(view, at)
        answer = b"".join(self._protocol.data_to_send())
        return b"".join(parts), answer if answer_pings or self.ended else b""

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

    def _message(self, data: bytes | memoryview) -> tuple[bytes, bytes, bytes | memoryview]:
        """A message of one frame, in parts (RFC 6455 §5.2)."""
        size = len(data)
        mask_bit = 0x80 if self._is_client else 0
        if size < 126:
            head = bytes((WHOLE_BINARY, mask_bit | size))
        elif size < 1 << 16:
            head = _HEAD_16.pack(WHOLE_BINARY, mask_bit | 126, size)
        else:
            head = _HEAD_64.pack(WHOLE_BINARY, mask_bit | 127, size)
        if not self._is_client:
            return head, b"", data
        mask = secrets.token_bytes(4)
        return head, mask, apply_mask(data, mask)

    def _read_head(self, view: memoryview, at: int) -> int:
        """Read a frame's head, or as much of it as has come; returns where it ends."""
        before = len(self._head)
        head = self._head + view[at : at + HEAD_SIZE_BYTES_MAX - before]
        if len(head) < 2:
            self._head = head
            return len(view)
        mask_at = 2
        size = head[1] & 0x7F
        if size >= 126:
            mask_at = 4 if size == 126 else 10
            size = int.from_bytes(head[2:mask_at], "big")
        is_masked = head[1] >= 0x80
        end = mask_at + 4 if is_masked else mask_at
        if len(head) < end:
            self._head = head
            return len(view)
        self._head = b""
        self._left_bytes = size
        self._is_plain = (
            head[0] == WHOLE_BINARY
            and is_masked is not self._is_client
            and size <= RECEIVED_SIZE_BYTES_MAX
            and not self._in_fragments
        )
        if self._is_plain:
            self._mask = head[mask_at:end]
        else:
            if head[0] & 0x0F < Opcode.CLOSE:
                self._in_fragments = head[0] < 0x80
            self._by_library(head[:end])  # no bytes of the stream: its payload is yet to come
        return at + end - before

    def _payload(self, part: memoryview) -> bytes | memoryview:
        """The bytes of the stream in a part of a plain frame."""
        if self._is_client:
            return part
        mask = self._mask
        turn = len(part) % 4
        if turn:
            self._mask = mask[turn:] + mask[:turn]
        return apply_mask(part, mask)

    def _by_library(self, data: bytes | memoryview) -> bytes:
        """What the library makes of a frame, or of a part of it: the bytes of the stream in it."""
        protocol = self._protocol
        protocol.receive_data(bytes(data))
        parts: list[bytes] = []
        for frame in protocol.events_received():
            assert isinstance(frame, Frame), "there is no handshake in this state"
            if frame.opcode is Opcode.BINARY or frame.opcode is Opcode.CONT:
                # Fragments are delivered as they come: where a message ends means nothing here.
                parts.append(bytes(frame.data))
            elif frame.opcode is Opcode.TEXT:
                self.error = "a text message; the stream has binary ones only"
                protocol.fail(CloseCode.UNSUPPORTED_DATA, "binary messages only")
                break
        if self.error is None and protocol.parser_exc is not None:
            self.error = str(protocol.parser_exc)
        self.ended = protocol.state is not OPEN
        return b"".join(parts)


def _accept_value(key: str) -> str:
    # RFC 6455 §4.2.2: a proof of having read the request, no secret.
    digest = hashlib.sha1(key.encode("ascii") + ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
