r"""The upgrade from HTTP to a raft stream, both sides, sans-I/O.

Knows bytes and h11; no socket, no clock: the caller feeds what it reads, writes what it is given,
and keeps the deadline. The raw carrier is what Go peers speak:

    GET /raft HTTP/1.1\r\nHost: …\r\nUpgrade: raft\r\nConnection: Upgrade\r\n\r\n
    HTTP/1.1 101 Switching Protocols\r\nUpgrade: raft\r\nConnection: Upgrade\r\n\r\n

Go sends no `Connection` on either side. RFC 9110 §7.8 asks for one and proxies need it: we send it
and do not require it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import h11

from rafthttp.http.messages import CLUSTER_ID_HEADER, Headers, Request, Response
from rafthttp.raft.errors import HandshakeError, RequestRefusedError

RAFT_PROTOCOL: Final = "raft"
"""The token of the `Upgrade` header."""

HEAD_SIZE_BYTES_MAX: Final = 16 << 10
"""Bytes of a request or response head. A bearer token or a cookie jar of a proxy fits; nothing here
needs more, and the sender is not authenticated yet."""

REFUSAL_SIZE_BYTES_MAX: Final = 1 << 10
"""Bytes read of the text of a refused handshake, for the error message."""

INTERIM_RESPONSES_MAX: Final = 8
"""1xx responses accepted before the 101; servers send at most one (100 or 103)."""

USER_AGENT: Final = "raft-http"

# The 101 as we and as Go send it; any other is h11's to read. Matches nothing in parts.
_RAFT_101: Final = re.compile(
    rb"HTTP/1\.1 101 Switching Protocols\r\nUpgrade: raft\r\n(?:Connection: Upgrade\r\n)?"
    rb"(?:" + CLUSTER_ID_HEADER.encode("ascii") + rb": ([!-~]{1,255})\r\n)?\r\n"
)

_HOST: Final = re.compile(r"[\x21-\x7e]*")


def printable(raw: bytes | str, length_max: int = 200) -> str:
    """A peer's text, fit for one line of a log."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else "�" for char in line)
    return line if len(line) <= length_max else line[:length_max] + "…"


def check_upgrade(request: Request) -> None:
    """Check that a GET asks for a raft stream.

    Raises:
        RequestRefusedError: 400 with the reason.
    """
    headers = request.headers
    if "Upgrade" not in headers:
        raise RequestRefusedError(400, "missing upgrade header: this endpoint speaks Upgrade: raft")
    if RAFT_PROTOCOL not in headers.tokens("Upgrade"):
        raise RequestRefusedError(400, "invalid upgrade header: this endpoint speaks Upgrade: raft")
    if request.http_version != "1.1":
        # RFC 9110 §7.8: an upgrade in an HTTP/1.0 request is ignored; HTTP/2 has none.
        raise RequestRefusedError(400, "an upgrade needs HTTP/1.1")
    check_host(request)
    if "Connection" in headers and "upgrade" not in headers.tokens("Connection"):
        raise RequestRefusedError(400, "the connection header does not name the upgrade")
    if "Transfer-Encoding" in headers or headers.get("Content-Length") not in (None, "0"):
        raise RequestRefusedError(400, "an upgrade request has no body")


def check_host(request: Request) -> None:
    """Check that an HTTP/1.1 request says whom it is for, once (RFC 9112 §3.2).

    Not all parsers do: httptools takes none, two, and any bytes.

    Raises:
        RequestRefusedError: 400.
    """
    hosts = request.headers.get_all("Host")
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        raise RequestRefusedError(400, "the request does not name its host, once")


def switching_protocols(cluster_id: str | None) -> bytes:
    """The 101. `cluster_id` must have passed `parse_cluster_id`."""
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raft\r\nConnection: Upgrade\r\n"
    if cluster_id is not None:
        head += f"{CLUSTER_ID_HEADER}: {cluster_id}\r\n".encode("ascii")
    return head + b"\r\n"


@lru_cache(maxsize=32)
def _upgrade_request(path: str, fields: tuple[tuple[str, str], ...]) -> tuple[h11.Request, bytes]:
    """A GET, and its bytes; a server sends the same few again and again."""
    request = h11.Request(method="GET", target=path, headers=list(fields))
    connection = h11.Connection(h11.CLIENT)
    data = connection.send(request) or b""
    return request, data + (connection.send(h11.EndOfMessage()) or b"")


class ClientHandshake:
    """The dialing side: send `request()`, feed `receive` until it says True, take `leftover`.

    Attributes:
        leftover: bytes that came behind the 101; the stream's first.
        response_headers: of the 101, or of the refusal.
        protocol: the token of the `Upgrade` header.
    """

    protocol = RAFT_PROTOCOL
    _known_101: re.Pattern[bytes] | None = _RAFT_101

    def __init__(self, host: str, path: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.leftover = b""
        self.response_headers = Headers(())
        self._interim_responses = 0
        self._status: int | None = None
        self._body = bytearray()
        fields = (
            ("Host", host),
            ("User-Agent", USER_AGENT),
            ("Upgrade", self.protocol),
            ("Connection", "Upgrade"),
            *headers,
        )
        self._request, self._data = _upgrade_request(path, fields)
        # Made once an answer comes that is not the usual one.
        self._parser: h11.Connection | None = None

    def request(self) -> bytes:
        """The request's bytes; to be sent once."""
        return self._data

    def receive(self, data: bytes) -> bool:
        """Take what was read (empty at EOF); True once the stream is established.

        Raises:
            HandshakeError: it will not be; `status` is set if the peer answered.
        """
        pattern = self._known_101 if self._parser is None else None
        if pattern is not None and (known := pattern.match(data)) is not None:
            if known[1] is not None:
                self.response_headers = Headers([(CLUSTER_ID_HEADER.encode(), known[1])])
            self.leftover = data[known.end() :]
            return True
        connection = self._connection
        try:
            connection.receive_data(data)
            return self._step(at_end=not data)
        except h11.RemoteProtocolError as error:
            if self._status is not None:
                raise self._refusal() from error
            if not data:
                raise HandshakeError("the peer closed the connection before its answer") from error
            raise HandshakeError(f"the answer is not HTTP/1.1: {error}") from error

    @property
    def _connection(self) -> h11.Connection:
        if self._parser is None:
            self._parser = h11.Connection(h11.CLIENT, HEAD_SIZE_BYTES_MAX)
            self._parser.send(self._request)
            self._parser.send(h11.EndOfMessage())
        return self._parser

    def _step(self, *, at_end: bool) -> bool:
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return self._established(event)
                self._interim_responses += 1
                if self._interim_responses > INTERIM_RESPONSES_MAX:
                    raise HandshakeError("too many 1xx responses before the 101")
            elif isinstance(event, h11.Response):
                self._status = event.status_code
                self.response_headers = Headers(list(event.headers))
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > REFUSAL_SIZE_BYTES_MAX:
                    raise self._refusal()
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)) or at_end:
                if self._status is None:
                    raise HandshakeError("the peer closed the connection before its answer")
                raise self._refusal()
            elif event is h11.NEED_DATA or event is h11.PAUSED:
                return False

    def _established(self, event: h11.InformationalResponse) -> bool:
        headers = Headers(list(event.headers))
        self._check_established(headers)
        self.response_headers = headers
        self.leftover = self._connection.trailing_data[0]
        return True

    def _check_established(self, headers: Headers) -> None:
        if headers.tokens("Upgrade") != (self.protocol,):
            raise HandshakeError(f"the 101 does not say Upgrade: {self.protocol}", status=101)

    def _refusal(self) -> HandshakeError:
        status = self._status
        text = printable(bytes(self._body))
        hint = ""
        if status in (301, 302, 303, 307, 308):
            hint = f", to {printable(self.response_headers.get('Location') or 'nowhere')}"
        elif status is not None and 200 <= status < 300:
            hint = ", as a page: a proxy in between may have removed the Upgrade header"
        elif status == 400 and text.startswith("missing"):  # ours and Go's words for "no Upgrade"
            hint = ", as to a plain GET: a proxy in between may have removed the Upgrade header"
        return HandshakeError(
            f"expected 101, the peer answered {status}{hint}{': ' if text else ''}{text}",
            status=status,
            upgrade=self.response_headers.tokens("Upgrade"),
        )


class ServerConnection:
    """The listening side of one connection, for servers of our own: requests in, answers out.

    Feed `receive`, then call `next_event` until it needs data. One request at a time: after an
    answer, `start_next` tells whether the connection goes on.
    """

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, HEAD_SIZE_BYTES_MAX)
        self._is_head_request = False

    def receive(self, data: bytes) -> None:
        """Take what was read; empty at EOF."""
        self._connection.receive_data(data)

    def next_event(self) -> h11.Request | h11.Data | h11.EndOfMessage | h11.ConnectionClosed | None:
        """The next piece of the request, or None when more bytes are needed.

        Raises:
            RequestRefusedError: 400, the peer does not speak HTTP/1.1; close after the answer.
        """
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise RequestRefusedError(400, f"malformed request: {printable(str(error))}") from error
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return None
        if isinstance(event, h11.Request):
            self._is_head_request = event.method == b"HEAD"
        if isinstance(event, (h11.Request, h11.Data, h11.EndOfMessage, h11.ConnectionClosed)):
            return event
        raise RequestRefusedError(400, "malformed request")

    @property
    def leftover(self) -> bytes:
        """Bytes behind the upgrade request."""
        return self._connection.trailing_data[0]

    def continue_if_expected(self) -> bytes:
        """The `100 Continue` a client waits for before it sends its body, or nothing."""
        if not self._connection.they_are_waiting_for_100_continue:
            return b""
        return self._connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def respond(self, response: Response) -> bytes:
        """The answer's bytes. Works for a request that could not be parsed, too."""
        headers = [*response.headers, ("Content-Length", str(len(response.body)))]
        if response.close or self._connection.their_state is h11.ERROR:
            headers.append(("Connection", "close"))
        send = self._connection.send
        data = send(h11.Response(status_code=response.status, headers=headers)) or b""
        if not self._is_head_request:
            data += send(h11.Data(data=response.body)) or b""
        return data + (send(h11.EndOfMessage()) or b"")

    def start_next(self) -> bool:
        """Get ready for the next request; False when the connection must be closed."""
        state = self._connection
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
            return True
        return False
