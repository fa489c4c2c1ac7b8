"""The upgrade, sans-I/O: both roles, whole and byte by byte, and Go's own bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.http.handshake import (
    HEAD_SIZE_BYTES_MAX,
    ClientHandshake,
    ServerConnection,
    check_upgrade,
    printable,
    switching_protocols,
)
from rafthttp.http.messages import Headers, Request, text_response
from rafthttp.raft.errors import HandshakeError, RequestRefusedError

TESTDATA = Path(__file__).parent / "testdata"
GO_REQUEST = bytes.fromhex((TESTDATA / "http_upgrade.req.hex").read_text())
GO_RESPONSE = bytes.fromhex((TESTDATA / "http_upgrade.resp.hex").read_text())

Delivery = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    if data:
        yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        yield data[position : position + 1]


@pytest.fixture(params=[whole, byte_by_byte])
def delivery(request: pytest.FixtureRequest) -> Delivery:
    chosen: Delivery = request.param
    return chosen


def client() -> ClientHandshake:
    return ClientHandshake("127.0.0.1:1", "/raft")


def feed(handshake: ClientHandshake, data: bytes, delivery: Delivery) -> bool:
    """Feed up to the 101; what comes later belongs to the stream."""
    done = False
    for chunk in delivery(data):
        if done:
            handshake.leftover += chunk
        else:
            done = handshake.receive(chunk)
    return done


async def _no_body(size_bytes_max: int, *, keep: bool = True) -> bytes:
    raise AssertionError("not read")


def request_of(event: h11.Request) -> Request:
    path, _, query = event.target.decode().partition("?")
    return Request(
        event.method.decode(),
        "http",
        path,
        query,
        event.http_version.decode(),
        Headers(list(event.headers)),
        None,
        None,
        _no_body,
        None,
    )


def parse(data: bytes, delivery: Delivery) -> tuple[Request, bytes]:
    server = ServerConnection()
    found: list[h11.Request] = []
    for chunk in delivery(data):
        server.receive(chunk)
        while (event := server.next_event()) is not None:
            if isinstance(event, h11.Request):
                found.append(event)
    (event,) = found
    return request_of(event), server.leftover


# -- the dialing side


def test_the_request_names_the_upgrade_on_the_connection_too() -> None:
    request = ClientHandshake("h:1", "/raft", [("Authorization", "Bearer x")]).request()
    assert request == (
        b"GET /raft HTTP/1.1\r\nHost: h:1\r\nUser-Agent: raft-http\r\nUpgrade: raft\r\n"
        b"Connection: Upgrade\r\nAuthorization: Bearer x\r\n\r\n"
    )


@pytest.mark.parametrize(
    "response",
    [
        GO_RESPONSE,
        switching_protocols(None),
        switching_protocols("c1"),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: Raft\r\nServer: x\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + GO_RESPONSE,
        b"HTTP/1.1 100 Continue\r\n\r\n" + GO_RESPONSE,
    ],
)
def test_a_101_makes_a_stream_and_no_byte_behind_it_is_lost(
    response: bytes, delivery: Delivery
) -> None:
    handshake = client()
    handshake.request()
    assert feed(handshake, response + b"\x00behind", delivery)
    assert handshake.leftover == b"\x00behind"
    incomplete = client()
    incomplete.request()
    assert not feed(incomplete, response[:-1], delivery)


def test_the_cluster_id_comes_with_the_101() -> None:
    handshake = client()
    handshake.request()
    assert handshake.receive(switching_protocols("c1"))
    assert handshake.response_headers.get("raft-cluster-id") == "c1"


@pytest.mark.parametrize(
    ("response", "status", "said"),
    [
        (
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nno!\n",
            401,
            "expected 101, the peer answered 401: no!",
        ),
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /raft/\r\nContent-Length: 0\r\n\r\n",
            307,
            "answered 307, to /raft/",
        ),
        (
            b"HTTP/1.1 308 Permanent Redirect\r\nContent-Length: 0\r\n\r\n",
            308,
            "answered 308, to nowhere",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "removed the Upgrade header"),
        (
            b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\x1bb\r\n0\r\n\r\n",
            503,
            "503: a�b",
        ),
        (b"HTTP/1.1 500 X\r\nContent-Length: 9999\r\n\r\n" + b"y" * 2000, 500, "500: yyy"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n", 101, "does not say Upgrade: raft"),
        (b"HTTP/1.1 101 X\r\n\r\n", 101, "does not say Upgrade: raft"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", None, "not HTTP/1.1"),
        (b"HTTP/1.1 103 X\r\n\r\n" * 9, None, "too many 1xx"),
        (b"HTTP/1.1 101 X\r\nA: " + b"b" * HEAD_SIZE_BYTES_MAX, None, "not HTTP/1.1"),
    ],
)
def test_whatever_else_is_an_error_that_says_so(
    response: bytes, status: int | None, said: str, delivery: Delivery
) -> None:
    handshake = client()
    handshake.request()
    with pytest.raises(HandshakeError) as caught:
        feed(handshake, response, delivery)
    assert said in str(caught.value)
    assert caught.value.status == status
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (b"", None),
        (b"HTTP/1.1 101 Swi", None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"HTTP/1.1 403 No\r\n\r\nwithout a length", 403),
        (b"HTTP/1.1 403 No\r\nContent-Length: 50\r\n\r\ncut", 403),
    ],
)
def test_an_early_end_is_an_error(response: bytes, status: int | None, delivery: Delivery) -> None:
    handshake = client()
    handshake.request()
    assert not feed(handshake, response, delivery)
    with pytest.raises(HandshakeError) as caught:
        handshake.receive(b"")
    assert caught.value.status == status
    assert ("closed" in str(caught.value)) == (status is None)


@given(st.binary(max_size=200))
def test_no_answer_breaks_more_than_the_handshake(data: bytes) -> None:
    handshake = client()
    handshake.request()
    try:
        handshake.receive(data or b"x")
        handshake.receive(b"")
    except HandshakeError:
        pass


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\0", "a\n"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(h11.LocalProtocolError):
        ClientHandshake("h:1", "/raft", [("Authorization", value)])


# -- the listening side


def test_gos_request_is_accepted(delivery: Delivery) -> None:
    request, leftover = parse(GO_REQUEST, delivery)
    check_upgrade(request)
    assert request.path == "/raft"
    assert "Connection" not in request.headers
    assert leftover == b""


def test_ours_is_accepted_and_no_byte_behind_it_is_lost() -> None:
    request, leftover = parse(client().request() + b"\x00behind", whole)
    check_upgrade(request)
    assert leftover == b"\x00behind"


def test_the_101_equals_gos_but_for_the_connection_header() -> None:
    assert switching_protocols(None) == GO_RESPONSE[:-2] + b"Connection: Upgrade\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Upgrade: raft",
        b"Upgrade: RAFT",
        b"upgrade: websocket, raft",
        b"Upgrade: raft\r\nConnection: keep-alive, Upgrade",
        b"Upgrade: raft\r\nConnection: keep-alive\r\nConnection: upgrade",
        b"Upgrade: raft\r\nContent-Length: 0",
    ],
)
def test_upgrades_that_are_accepted(headers: bytes, delivery: Delivery) -> None:
    request, _ = parse(b"GET /raft HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n", delivery)
    check_upgrade(request)


@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        (b"1.1", b"X: y", "missing upgrade header"),
        (b"1.1", b"Upgrade: rafter", "invalid upgrade header"),
        (b"1.1", b"Upgrade: websocket", "invalid upgrade header"),
        (b"1.1", b"Upgrade:", "invalid upgrade header"),
        (b"1.0", b"Upgrade: raft", "HTTP/1.1"),
        (b"2.0", b"Upgrade: raft", "HTTP/1.1"),
        (b"1.1", b"Upgrade: raft\r\nConnection: close", "does not name the upgrade"),
        (b"1.1", b"Upgrade: raft\r\nContent-Length: 3", "no body"),
        (b"1.1", b"Upgrade: raft\r\nTransfer-Encoding: chunked", "no body"),
    ],
)
def test_upgrades_that_are_not(version: bytes, headers: bytes, said: str) -> None:
    head = b"GET /raft HTTP/" + version + b"\r\nHost: x\r\n" + headers + b"\r\n\r\n"
    request, _ = parse(head, whole)
    with pytest.raises(RequestRefusedError, match=said) as caught:
        check_upgrade(request)
    assert caught.value.status == 400


@pytest.mark.parametrize("hosts", [[], ["x", "x"], ["x\x03y"], ["x y"], ["é"]])
def test_an_upgrade_names_its_host_once(hosts: list[str]) -> None:
    """RFC 9112 §3.2 asks for a 400; of the parsers only h11 counts them, and none looks inside."""
    request, _ = parse(GO_REQUEST, whole)
    check_upgrade(request)
    fields = [("Upgrade", "raft"), *(("Host", host) for host in hosts)]
    request.headers = Headers(fields)
    with pytest.raises(RequestRefusedError, match="host") as caught:
        check_upgrade(request)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",  # a TLS ClientHello
        b"GET /ra ft HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /raft HTTP/1.1\r\n\r\n",  # no Host
        b"GET /raft HTTP/1.1\r\nHost: x\r\nA\0B: c\r\n\r\n",
        b"GET /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /" + b"a" * (1 << 20),
    ],
)
def test_what_is_not_http_is_answered_400(data: bytes) -> None:
    server = ServerConnection()
    server.receive(data)
    events = iter(server.next_event, None)
    with pytest.raises(RequestRefusedError) as caught:
        list(events)
    assert caught.value.status == 400
    answer = server.respond(text_response(400, str(caught.value), close=True))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()


def test_a_client_that_expects_100_gets_it_once() -> None:
    server = ServerConnection()
    server.receive(
        b"PUT /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    )
    assert isinstance(server.next_event(), h11.Request)
    assert server.continue_if_expected().startswith(b"HTTP/1.1 100 ")
    assert server.continue_if_expected() == b""
    server.receive(b"x")
    assert isinstance(server.next_event(), h11.Data)


def test_requests_follow_each_other_on_one_connection() -> None:
    server = ServerConnection()
    for _ in range(3):
        server.receive(b"DELETE /raft?id=a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert isinstance(server.next_event(), h11.Request)
        assert isinstance(server.next_event(), h11.EndOfMessage)
        assert server.respond(text_response(503, "later")).startswith(b"HTTP/1.1 503 ")
        assert server.start_next()
    server.receive(b"DELETE /raft?id=a HTTP/1.1\r\nHost: x\r\n\r\n")
    server.next_event()
    server.next_event()
    server.respond(text_response(503, "later", close=True))
    assert not server.start_next()


def test_printable_is_one_line_of_bounded_length() -> None:
    assert printable(b"a\r\nb\x00c\xff \x1b[31m") == "a b�c� �[31m"
    assert len(printable("x" * 10_000)) == 201
