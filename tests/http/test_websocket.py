"""Handshake and frames of the WebSocket carrier, both sides, whole and byte by byte."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol

from rafthttp.http.handshake import ClientHandshake
from rafthttp.http.messages import Headers, Request
from rafthttp.http.websocket import (
    MESSAGE_SIZE_BYTES_MAX,
    PING_SECONDS,
    RECEIVED_SIZE_BYTES_MAX,
    Framing,
    WebSocketHandshake,
    check_websocket_upgrade,
    switching_to_websocket,
)
from rafthttp.raft.errors import HandshakeError, RequestRefusedError

Cut = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        yield data[index : index + 1]


@pytest.fixture(params=[whole, byte_by_byte], ids=["whole", "byte-by-byte"])
def cut(request: pytest.FixtureRequest) -> Cut:
    made: Cut = request.param
    return made


async def no_body(size_bytes_max: int, *, keep: bool = True) -> bytes:
    raise AssertionError("nobody asks for a body")


def asked(head: bytes) -> Request:
    """The request in some bytes, as a server sees it."""
    first, *lines = head.decode("ascii").rstrip("\r\n").split("\r\n")
    method, path, version = first.split(" ")
    fields = [line.split(": ", 1) for line in lines]
    headers = Headers([(name, value) for name, value in fields])
    version = version.removeprefix("HTTP/")
    return Request(method, "http", path, "", version, headers, None, None, no_body, None)


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame as its bytes stand in RFC 6455 §5.2, masked with zeros."""
    head = bytes([(0x80 if fin else 0) | opcode])
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 1 << 16:
        head += bytes([mask_bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + payload


def feed(framing: Framing, data: bytes, cut: Cut = whole) -> tuple[bytes, bytes]:
    payload = answer = b""
    for piece in cut(data):
        more, write = framing.receive(piece)
        payload += more
        answer += write
    return payload, answer


# -- the handshake


def test_the_two_handshakes_agree(cut: Cut) -> None:
    client = WebSocketHandshake("n2:80", "/raft", [("Authorization", "Bearer x")])
    request = asked(client.request())
    assert request.headers.get("Authorization") == "Bearer x"
    key = check_websocket_upgrade(request)
    answer = switching_to_websocket(key, "c1")
    done = [client.receive(piece) for piece in cut(answer)]
    assert done[-1]
    assert not any(done[:-1])
    assert client.leftover == b""
    assert client.response_headers.get("Raft-Cluster-Id") == "c1"


def test_the_key_of_the_rfc() -> None:
    answer = switching_to_websocket("dGhlIHNhbXBsZSBub25jZQ==", None)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    assert b"Cluster" not in answer


def test_keys_are_fresh_and_of_16_bytes() -> None:
    keys = {
        asked(WebSocketHandshake("a:1", "/raft").request()).headers.get("Sec-WebSocket-Key")
        for _ in range(20)
    }
    assert len(keys) == 20
    assert {len(base64.b64decode(key or "")) for key in keys} == {16}


def test_frames_glued_to_the_101_begin_the_stream() -> None:
    client = WebSocketHandshake("n2:80", "/raft")
    key = check_websocket_upgrade(asked(client.request()))
    glued = frame(2, b"first", masked=False)
    assert client.receive(switching_to_websocket(key, None) + glued)
    assert Framing(is_client=True).receive(client.leftover)[0] == b"first"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"Upgrade: websocket", b"Upgrade: raft", "does not say Upgrade: websocket"),
        (b"Accept: ", b"Accept: x", "another WebSocket handshake"),
        (b"Sec-WebSocket-Accept", b"X-Accept", "another WebSocket handshake"),
        (b"Protocol: raft", b"Protocol: chat", "does not speak the subprotocol raft"),
        (b"Sec-WebSocket-Protocol", b"X-Protocol", "does not speak the subprotocol raft"),
        (b"Connection:", b"Sec-WebSocket-Extensions: permessage-deflate\r\nConnection:", "exten"),
    ],
)
def test_a_101_that_is_none(old: bytes, new: bytes, complaint: str) -> None:
    client = WebSocketHandshake("n2:80", "/raft")
    answer = switching_to_websocket(check_websocket_upgrade(asked(client.request())), None)
    assert old in answer
    with pytest.raises(HandshakeError, match=complaint) as caught:
        client.receive(answer.replace(old, new))
    assert caught.value.status == 101


@pytest.mark.parametrize("handshake", [WebSocketHandshake, ClientHandshake])
def test_a_refusal_says_what_it_offers_instead(handshake: type[ClientHandshake], cut: Cut) -> None:
    client = handshake("n2:80", "/raft")
    client.request()
    answer = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: WebSocket\r\nContent-Length: 3\r\n\r\nno\n"
    with pytest.raises(HandshakeError, match="426: no") as caught:
        [client.receive(piece) for piece in cut(answer)]
    assert caught.value.status == 426
    assert caught.value.upgrade == ("websocket",)


REQUEST = (
    b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: chat, raft\r\n\r\n"
)


@pytest.mark.parametrize(
    ("old", "new", "status", "complaint"),
    [
        (b"Upgrade\r\n", b"close\r\n", 400, "does not name the upgrade"),
        (b"HTTP/1.1", b"HTTP/1.0", 400, "needs HTTP/1.1"),
        (b"Version: 13", b"Version: 8", 426, "version 13"),
        (b"chat, raft", b"chat", 400, "subprotocol raft"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl", 400, "malformed Sec-WebSocket-Key"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!!!!", 400, "malformed Sec-WebSocket-Key"),
        (b"Sec-WebSocket-Key", b"X-Key", 400, "malformed Sec-WebSocket-Key"),
        (b"Host: x", b"Host: x\r\nContent-Length: 5", 400, "has no body"),
        (b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked", 400, "has no body"),
        (b"Host: x", b"Host: x\3y", 400, "does not name its host"),
    ],
)
def test_requests_that_are_refused(old: bytes, new: bytes, status: int, complaint: str) -> None:
    assert check_websocket_upgrade(asked(REQUEST)) == "dGhlIHNhbXBsZSBub25jZQ=="
    assert old in REQUEST
    with pytest.raises(RequestRefusedError, match=complaint) as caught:
        check_websocket_upgrade(asked(REQUEST.replace(old, new)))
    assert caught.value.status == status


# -- frames


@pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
def test_bytes_go_through(is_client: bool, cut: Cut) -> None:
    here, there = Framing(is_client=is_client), Framing(is_client=not is_client)
    sent = here.send(b"one") + here.send(b"") + here.ping() + here.send(b"x" * 70_000)
    payload, answer = feed(there, sent, cut)
    assert payload == b"one" + b"x" * 70_000
    assert feed(here, answer, cut) == (b"", b"")  # a pong
    assert not here.ended
    assert not there.ended


@settings(deadline=None)  # others may have the processor
@given(
    # None stands for a write of 70,000 bytes, which a report could not show.
    chosen=st.lists(st.binary(max_size=300) | st.none(), max_size=8),
    cuts=st.lists(st.integers(1, 40_000), min_size=1, max_size=8),
    is_client=st.booleans(),
)
def test_any_chunking_gives_the_same_bytes(
    chosen: list[bytes | None], cuts: list[int], is_client: bool
) -> None:
    writes = [bytes(70_000) if data is None else data for data in chosen]
    here, there = Framing(is_client=is_client), Framing(is_client=not is_client)
    sent = b"".join(here.send(data) for data in writes) + here.close()

    def cut(data: bytes) -> Iterator[bytes]:
        at = turn = 0
        while at < len(data):
            step = cuts[turn % len(cuts)]
            yield data[at : at + step]
            at += step
            turn += 1

    payload, _ = feed(there, sent, cut)
    assert payload == b"".join(writes)
    assert there.ended
    assert there.error is None


def test_the_bounds_that_other_implementations_rely_on() -> None:
    assert MESSAGE_SIZE_BYTES_MAX <= 256 << 10
    assert PING_SECONDS < 30


def test_messages_are_cut() -> None:
    sent = Framing(is_client=False).send(bytes(3 * MESSAGE_SIZE_BYTES_MAX + 1))
    heads: list[int] = []
    at = 0
    while at < len(sent):
        assert sent[at] == 0x82
        length = sent[at + 1]
        size = length if length < 126 else int.from_bytes(sent[at + 2 : at + 10], "big")
        heads.append(size)
        at += (2 if length < 126 else 10) + size
    assert heads == [MESSAGE_SIZE_BYTES_MAX] * 3 + [1]


def test_what_we_send_is_masked_by_the_client_alone() -> None:
    assert Framing(is_client=False).send(b"hi") == b"\x82\x02hi"
    masked = Framing(is_client=True).send(b"hi")
    assert masked[:2] == b"\x82\x82"
    assert len(masked) == 8


def test_fragments_are_taken_as_they_come(cut: Cut) -> None:
    server = Framing(is_client=False)
    sent = frame(2, b"a", fin=False) + frame(9, b"?") + frame(0, b"b", fin=False) + frame(0, b"c")
    payload, answer = feed(server, sent, cut)
    assert payload == b"abc"
    assert answer == b"\x8a\x01?"
    assert feed(server, frame(2, b"whole") + frame(9, b"!"), cut) == (b"whole", b"\x8a\x01!")


def test_a_frame_is_delivered_as_it_comes() -> None:
    client, server = Framing(is_client=True), Framing(is_client=False)
    data = bytes(range(256)) * (MESSAGE_SIZE_BYTES_MAX // 256)
    sent = client.send(data)
    head_size_bytes = len(sent) - len(data)
    delivered = 0
    for step in (head_size_bytes + 1, 2, 3, 1000, 65_537, len(sent)):
        piece, sent = sent[:step], sent[step:]
        payload, _ = server.receive(piece)
        size_bytes = len(piece) if delivered else len(piece) - head_size_bytes
        assert payload == data[delivered : delivered + size_bytes]
        delivered += size_bytes
    assert delivered == len(data)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, MESSAGE_SIZE_BYTES_MAX])
@pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
def test_another_implementation_reads_what_we_send(size: int, is_client: bool) -> None:
    reader = Protocol(SERVER if is_client else CLIENT)
    data = bytes(number % 251 for number in range(size))
    reader.receive_data(Framing(is_client=is_client).send(data))
    (event,) = reader.events_received()
    assert isinstance(event, Frame)
    assert (event.opcode, event.fin, bytes(event.data)) == (Opcode.BINARY, True, data)
    assert reader.parser_exc is None


def test_masks_are_fresh() -> None:
    client = Framing(is_client=True)
    assert len({client.send(b"hi")[2:6] for _ in range(20)}) == 20


HOSTILE = {
    "text": (frame(1, b"hello"), 1003),
    "text in fragments": (frame(1, b"he", fin=False), 1003),
    "unmasked": (frame(2, b"hello", masked=False), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a message inside another": (frame(2, b"x", fin=False) + frame(2, b"y"), 1002),
    "an unknown opcode": (frame(3, b"x"), 1002),
    "a reserved bit": (b"\xc2\x81\x00\x00\x00\x00x", 1002),
    "a fragmented ping": (frame(9, b"x", fin=False), 1002),
    "a ping too long": (frame(9, bytes(126)), 1002),
    "a close of one byte": (frame(8, b"x"), 1002),
    "a close inside a message": (frame(2, b"x", fin=False) + frame(8, b"\x03\xe8"), 1002),
    "an oversized message": (frame(2, bytes(RECEIVED_SIZE_BYTES_MAX + 1))[:14], 1009),
    "a length of 2^63": (b"\x82\xff\x80" + bytes(11), 1009),
    "fragments without end": (
        frame(2, bytes(700_000), fin=False) + frame(0, bytes(700_000), fin=False),
        1009,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_end_it(name: str, cut: Cut) -> None:
    if len(HOSTILE[name][0]) > 1_000_000:
        cut = whole  # a million calls show no more than the rows that are small
    data, code = HOSTILE[name]
    server = Framing(is_client=False)
    payload, answer = feed(server, frame(2, b"good") + data, cut)
    assert payload.startswith(b"good")
    assert server.ended
    assert server.error
    assert answer[0] == 0x88
    assert int.from_bytes(answer[2:4], "big") == code
    # Nothing after it counts, and nothing more is said.
    assert server.receive(frame(2, b"more")) == (b"", b"")
    assert (server.send(b"x"), server.ping(), server.close()) == (b"", b"", b"")


def test_a_masked_frame_from_the_server_ends_it(cut: Cut) -> None:
    client = Framing(is_client=True)
    payload, answer = feed(client, frame(2, b"x"), cut)
    assert payload == b""
    assert client.ended
    assert client.error
    assert answer[:2] == b"\x88" + bytes([0x80 | (len(answer) - 6)])


def test_a_close_is_answered_and_no_error(cut: Cut) -> None:
    here, there = Framing(is_client=True), Framing(is_client=False)
    payload, answer = feed(there, here.send(b"last") + here.close(), cut)
    assert payload == b"last"
    assert there.ended
    assert there.error is None
    feed(here, answer, cut)
    assert here.ended
    assert here.error is None


def test_pongs_for_a_peer_that_does_not_read_are_dropped() -> None:
    server = Framing(is_client=False)
    payload, answer = server.receive(frame(9, b"?") * 1000 + frame(2, b"x"), answer_pings=False)
    assert (payload, answer) == (b"x", b"")
    assert server.receive(frame(9, b"?"))[1] == b"\x8a\x01?"
