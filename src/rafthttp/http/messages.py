"""A request to the endpoint and its answer, whatever server carries them.

Knows no server and no parser: `asgi.py` and `listener.py` translate into these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from rafthttp.http.stream import TransportStream
from rafthttp.raft.transport.protocols import Stream

CLUSTER_ID_HEADER: Final = "Raft-Cluster-Id"
"""Names the cluster the sender belongs to; absent when it does not know yet, and from Go."""

RELEASED_HEADER: Final = "Raft-Released"
"""`TERM/INDEX` on the answer to a release: up to where the leader's log was committed by then, by
an entry of its own term. The released server votes once its own log reaches that. Not from Go."""

OUTCOME_HEADER: Final = "Raft-Outcome"
"""`definite` on a 503 to a forward: nothing of it was done, and it may be sent again. A proxy's own
503 has no such header: the proxy may have lost a connection that had carried the request."""

SocketAddress: TypeAlias = tuple[str, int]
"""Host and port of the other end of a socket."""

PeerCertificate: TypeAlias = Mapping[str, Any]
"""What `ssl.SSLSocket.getpeercert()` returns."""


class Headers:
    """Header fields in order; names compare without case (RFC 9110 §5.1). Immutable."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[bytes, bytes]] | Iterable[tuple[str, str]]) -> None:
        self._items = tuple((_text(name).lower(), _text(value)) for name, value in items)

    def get(self, name: str) -> str | None:
        """The first value, or None."""
        name = name.lower()
        for key, value in self._items:
            if key == name:
                return value
        return None

    def get_all(self, name: str) -> tuple[str, ...]:
        """All values in order."""
        name = name.lower()
        return tuple(value for key, value in self._items if key == name)

    def tokens(self, name: str) -> tuple[str, ...]:
        """The members of a comma-separated list, over all its fields, in lower case."""
        parts = ",".join(self.get_all(name)).split(",")
        return tuple(part.strip().lower() for part in parts if part.strip())

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        # Names only: values may be credentials, and this ends in logs.
        return f"Headers({[name for name, _ in self._items]})"


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("latin-1")


class ReadBody(Protocol):
    """See `Request.read_body`."""

    def __call__(self, size_bytes_max: int, *, keep: bool = True) -> Awaitable[bytes]:
        """Read it."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One request to the endpoint.

    Attributes:
        method: in capitals.
        scheme: `http` or `https`, as the client sees it.
        path: as it was sent, percent-encoded.
        query: as it was sent, without the question mark.
        http_version: `1.0`, `1.1`, `2`.
        headers: the request's fields.
        client: the socket peer, or None where the server does not tell.
        certificate: the TLS client's certificate, where one was shown and verified.
        read_body: reads the whole body of at most that many bytes, and returns it if it is to be
            kept; RequestRefusedError 413 beyond.
        take: hands over the connection: writes the given bytes (the 101), ends the server's own
            interest, and returns the stream, which begins with what came behind the request.
            ConnectionError if the client is gone. None where the server cannot.
        accept_websocket: accepts a WebSocket that the server itself frames, telling the peer the
            cluster id, where known; None for everything else.
        subprotocols: what the client of such a WebSocket offers; some servers take the header away.
    """

    method: str
    scheme: str
    path: str
    query: str
    http_version: str
    headers: Headers
    client: SocketAddress | None
    certificate: PeerCertificate | None
    read_body: ReadBody
    take: Callable[[bytes], TransportStream] | None
    accept_websocket: Callable[[str | None], Stream] | None = None
    subprotocols: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Path and query, as they were sent."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. `close` ends the connection after it."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


def text_response(
    status: int, text: str, headers: tuple[tuple[str, str], ...] = (), *, close: bool = False
) -> Response:
    """A line of plain text, ended by a newline as Go's `http.Error` ends it."""
    fields = (("Content-Type", "text/plain; charset=utf-8"), *headers)
    return Response(status, f"{text}\n".encode(), fields, close)


@dataclass(frozen=True, slots=True)
class ForwardResponse:
    """The answer to a forwarded call."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
