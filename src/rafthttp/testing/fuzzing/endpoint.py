"""The members' endpoint: HTTP of any kind, in any cut, at each server that can hand over a socket.

Promises: no 101 to a malformed request; no 5xx; no change of membership by a malformed query; the
same answers and the same changes whatever the cuts, from whichever server. What is malformed is
said here a second time, from the RFCs, and not with the parsers that are tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import uvicorn
from uvicorn.server import ServerState

from rafthttp.http.handler import ForwardRequest, ForwardResponse, Handler
from rafthttp.http.listener import Listener
from rafthttp.http.stream import TransportStream
from rafthttp.http.uvicorn import RaftH11Protocol
from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol
from rafthttp.testing.fuzzing.pipe import Pipe
from rafthttp.testing.fuzzing.target import Target, choices, cut
from rafthttp.testing.http import RecordingReceiver

_LOUD: Final = ("uvicorn", "uvicorn.error", "rafthttp.http")
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})[ \r]")
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_REQUEST_LINE: Final = re.compile(rb"GET [\x21-\xff]+ HTTP/1\.1")
# RFC 9110 §5.5: of the control characters only NUL, CR and LF must be refused.
_FIELD: Final = re.compile(_TOKEN + rb":[^\0\r\n]*")
_HOST_VALUE: Final = re.compile(rb"[\x21-\x7e]*")
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_ID: Final = re.compile(rb"[A-Za-z0-9._~:@+/=,\[\]-]{1,255}")
_ADDRESS: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,254}):([1-9][0-9]{0,4})")


class Outcome(NamedTuple):
    """What one connection came to."""

    statuses: tuple[int, ...]
    changes: tuple[tuple[str, str, str], ...]
    stream: bytes | None


def is_upgrade(head: bytes) -> bool:
    """Whether a head, without its empty line, asks for a stream as RFC 9112 and RFC 6455 say.

    Lenient where the RFCs let a server be: a bare line feed ends a line, a folded line is joined.
    """
    text = re.sub(rb"\r?\n[\t ]+", b" ", head)
    lines = re.split(rb"\r?\n", text)
    if not _REQUEST_LINE.fullmatch(lines[0]):
        return False
    fields: dict[bytes, list[bytes]] = {}
    for line in lines[1:]:
        if not _FIELD.fullmatch(line):
            return False
        name, _, value = line.partition(b":")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))

    def tokens(name: bytes) -> list[bytes]:
        parts = b",".join(fields.get(name, [])).split(b",")
        return [part.strip(b" \t").lower() for part in parts]

    hosts = fields.get(b"host", [])
    if len(hosts) != 1 or not _HOST_VALUE.fullmatch(hosts[0]):  # RFC 9112 §3.2
        return False
    if b"transfer-encoding" in fields or set(fields.get(b"content-length", [])) - {b"0"}:
        return False
    if b"connection" in fields and b"upgrade" not in tokens(b"connection"):
        return False
    if b"raft" in tokens(b"upgrade"):
        return True
    return (
        b"websocket" in tokens(b"upgrade")
        and b"upgrade" in tokens(b"connection")
        and fields.get(b"sec-websocket-version") == [b"13"]
        and len(fields.get(b"sec-websocket-key", [])) == 1
        and bool(_KEY.fullmatch(fields[b"sec-websocket-key"][0]))
        and b"raft" in tokens(b"sec-websocket-protocol")
    )


def holds_upgrade(data: bytes) -> bool:
    """Whether anything in there, from the beginning of a line on, is an upgrade."""
    ends = [match.start() for match in re.finditer(rb"\r?\n\r?\n", data)]
    starts = [0, *(match.end() for match in re.finditer(rb"\n", data))]
    starts += [match.start() for match in re.finditer(rb"GET ", data)]
    for end in ends:
        for start in starts:
            if start < end and is_upgrade(data[start:end]):
                return True
    return False


def is_id(raw: bytes) -> bool:
    """Whether this may be a server's id."""
    return _ID.fullmatch(raw) is not None


def is_address(raw: bytes) -> bool:
    """Whether this is `HOST:PORT`, as the members' endpoint takes it."""
    found = _ADDRESS.fullmatch(raw)
    if found is None or int(found[2]) > 65535:
        return False
    host = found[1].decode()
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


class Endpoint:
    """One handler, and each way to serve it, on one event loop."""

    def __init__(self) -> None:
        # What they say of hostile input is no news here; the process may hold others who listen.
        self._levels = {name: logging.getLogger(name).level for name in _LOUD}
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._errors: list[str] = []
        self._changes: list[tuple[str, str, str]] = []
        self._receivers: list[RecordingReceiver] = []
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_exception_handler(self._failed)

    def close(self) -> None:
        """Let go of the loop, and let the logs speak again."""
        self._runner.close()
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

    def run(self, server: str, pieces: list[bytes]) -> Outcome:
        """What a connection that sends these pieces, and then goes away, comes to."""
        return self._runner.run(self._run(server, pieces))

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        self._errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def _run(self, server: str, pieces: list[bytes]) -> Outcome:
        self._errors.clear()
        self._changes.clear()
        self._receivers.clear()
        handler = Handler(forward=self._forward)
        serving = [
            asyncio.ensure_future(self._accept(handler)),
            asyncio.ensure_future(self._change(handler)),
        ]
        listener = Listener(handler, "127.0.0.1", 0)
        protocol = _PROTOCOLS[server](handler, listener)
        pipe = Pipe(protocol)
        protocol.connection_made(pipe)
        await pipe.feed(pieces)
        await pipe.rest()
        await pipe.hang_up()
        await pipe.rest()
        await handler.close()
        await listener.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, left = await asyncio.wait(others, timeout=1.0)  # they have a moment of their own
            assert not left, f"left running: {left}"
        assert not self._errors, self._errors
        stream = self._receivers[0].data if self._receivers else None
        written = bytes(pipe.written)
        if stream is not None:  # what follows the 101 is the stream's
            written = written[: written.find(b"\r\n\r\n", written.find(b"HTTP/1.1 101")) + 4]
        statuses = tuple(int(number) for number in _STATUS.findall(written))
        return Outcome(statuses, tuple(self._changes), stream)

    async def _accept(self, handler: Handler) -> None:
        while True:
            stream = await handler.accept()
            self._receivers.append(RecordingReceiver(stream))

    async def _change(self, handler: Handler) -> None:
        async for request in handler.requests():
            self._changes.append((request.kind.value, request.id, request.address or ""))
            request.respond()

    async def _forward(self, request: ForwardRequest) -> ForwardResponse:
        self._changes.append(("forward", request.op, str(len(request.body))))
        return ForwardResponse(200, b"done")


def _listener(handler: Handler, listener: Listener) -> asyncio.Protocol:
    del handler
    return TransportStream(listener._connected)


def _uvicorn(kind: Any) -> Callable[[Handler, Listener], asyncio.Protocol]:
    def make(handler: Handler, listener: Listener) -> asyncio.Protocol:
        del listener
        config = uvicorn.Config(
            handler, http=kind, ws="none", lifespan="off", log_config=None, access_log=False
        )
        config.load()
        protocol: asyncio.Protocol = kind(config, ServerState(), {})
        return protocol

    return make


_PROTOCOLS: Final[dict[str, Callable[[Handler, Listener], asyncio.Protocol]]] = {
    "listener": _listener,
    "uvicorn-h11": _uvicorn(RaftH11Protocol),
    "uvicorn-httptools": _uvicorn(RaftHttpToolsProtocol),
}
SERVERS: Final = tuple(_PROTOCOLS)


def check_endpoint(data: bytes) -> None:
    """One connection, at the server that the input chooses, whole and cut."""
    with contextlib.closing(Endpoint()) as endpoint:
        check_connection(endpoint, data)


def check_connection(endpoint: Endpoint, data: bytes) -> None:
    """See `check_endpoint`; an endpoint may be used for many connections."""
    head, octets = choices(data)
    server = SERVERS[head[0] % len(SERVERS)]
    outcome = endpoint.run(server, [octets] if octets else [])
    check_outcome(octets, outcome)
    pieces = cut(octets, head[1] << 8 | head[2])
    other = endpoint.run(server, pieces)
    check_outcome(octets, other)
    # What comes behind a request that is not answered yet counts for uvicorn: it refuses an upgrade
    # there, and lets garbage there take the place of the answer.
    if server == "listener" or _is_alone(octets):
        assert other == outcome, f"the cuts decide the answer: {pieces}"


def _is_alone(octets: bytes) -> bool:
    """Whether nothing stands behind the first head."""
    found = re.search(rb"\n\r?\n", octets)
    return found is None or found.end() == len(octets)


def check_outcome(octets: bytes, outcome: Outcome) -> None:
    """Nothing in there may do what only well-formed requests may do."""
    if 101 in outcome.statuses or outcome.stream is not None:
        assert holds_upgrade(octets), f"a 101 to a malformed request: {octets!r}"
    assert not [status for status in outcome.statuses if status >= 500], outcome.statuses
    for kind, name, address in outcome.changes:
        if kind == "forward":
            continue
        assert is_id(name.encode()), (kind, name)
        assert kind == "leave" or is_address(address.encode()), (kind, address)
        wanted = unquote_to_bytes(octets.replace(b"+", b" "))
        assert name.encode() in wanted, "an id that nobody named"


_HOST: Final = b"Host: h:1\r\n"
_RAFT: Final = _HOST + b"Connection: Upgrade\r\nUpgrade: raft\r\n"
_WEBSOCKET: Final = (
    _HOST
    + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: raft\r\n"
)


def requests() -> list[bytes]:
    """Well-formed requests, and some that nearly are."""
    upgrade = b"GET /raft HTTP/1.1\r\n" + _RAFT + b"\r\n"
    join = b"POST /raft?id=n2&address=10.0.0.2:8000 HTTP/1.1\r\n" + _HOST + b"\r\n"
    return [
        upgrade,
        upgrade + b"\x00\x80leftover",
        b"GET /raft HTTP/1.1\r\nHost: h\r\nUpgrade: raft\r\n\r\n",
        b"GET /raft HTTP/1.1\r\n" + _RAFT + b"Raft-Cluster-Id: c1\r\nX: a\r\n b\r\n\r\n",
        b"GET /raft HTTP/1.1\r\n" + _WEBSOCKET + b"\r\n",
        b"GET /raft HTTP/1.1\r\n" + _WEBSOCKET + b"\r\n\x82\x85\1\2\3\4iglmn",
        join,
        b"POST /raft?id=a%26b&address=%5B%3A%3A1%5D:80 HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"DELETE /raft?id=n2 HTTP/1.1\r\n" + _HOST + b"Content-Length: 3\r\n\r\nabc",
        b"DELETE /raft?id=n2&address=h:1 HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"PUT /raft?op=apply HTTP/1.1\r\n" + _HOST + b"Content-Length: 5\r\n\r\nhello",
        b"PUT /raft?op=apply HTTP/1.1\r\n"
        + _HOST
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"PUT /raft?op=apply HTTP/1.1\r\n" + _HOST + b"Expect: 100-continue\r\n\r\n",
        join + join + upgrade,
        b"HEAD /raft HTTP/1.1\r\n" + _HOST + b"\r\n" + upgrade,
        b"GET /raft HTTP/1.0\r\n" + _RAFT + b"\r\n",
    ]


def _seeds() -> list[bytes]:
    return [
        bytes((server, 1, at, 0)) + octets
        for server in range(len(SERVERS))
        for at, octets in enumerate(requests())
    ]


ENDPOINT: Final = Target("endpoint", check_endpoint, _seeds)
