"""Frames of a hostile peer, at a web server that frames WebSockets itself and at ours.

Real sockets: whatever comes, the stream gets bytes in order or ends; nobody logs a traceback, the
server goes on, and nothing is awaited for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafthttp.http.asgi_websocket import AsgiStream
from rafthttp.http.handler import Handler
from rafthttp.http.uvicorn import raft_protocol
from rafthttp.testing.fuzzing.frames import frame
from rafthttp.testing.http import RecordingReceiver, raw_connection, until, uvicorn_server

REQUEST = (
    b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: raft\r\n\r\n"
)


SECONDS_MAX = 1.0


def hostile_frames(seed: int) -> bytes:
    """Some frames in a row, some of them damaged."""
    chance = random.Random(seed)
    octets = bytearray()
    for _ in range(chance.randrange(1, 6)):
        payload = chance.randbytes(chance.choice([0, 1, 5, 125, 126, 300]))
        one = bytearray(
            frame(
                chance.choice([0, 1, 2, 2, 2, 3, 8, 9, 10, 15]),
                payload,
                fin=chance.random() < 0.8,
                mask=chance.random() < 0.9,
            )
        )
        if chance.random() < 0.3:
            one[chance.randrange(len(one))] ^= 1 << chance.randrange(8)
        octets += one
    return bytes(octets)


@pytest.mark.parametrize("ws", ["none", "websockets-sansio", "wsproto"])
def test_frames_of_every_kind(ws: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    async def main() -> None:
        handler = Handler()
        receivers: list[RecordingReceiver] = []

        async def accept() -> None:
            while True:
                receivers.append(RecordingReceiver(await handler.accept()))

        accepting = asyncio.ensure_future(accept())
        async with uvicorn_server(handler, raft_protocol(), ws=ws) as (port, _):

            async def exchange(seed: int) -> bool:
                """Whether all is over within a second."""
                begin = time.monotonic()
                async with raw_connection(port) as raw:
                    raw.send(REQUEST)
                    assert (await raw.head()).startswith(b"HTTP/1.1 101"), seed
                    raw.send(hostile_frames(seed))
                    raw.writer.write_eof()
                    await raw.rest()
                await until(lambda: all(receiver.ended for receiver in receivers))
                return time.monotonic() - begin < SECONDS_MAX

            for seed in range(40):
                assert await exchange(seed) or await exchange(seed), "busy, and slow once more"
            assert len(receivers) >= 40
            await handler.close()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)

    asyncio.run(main())
    # uvicorn's own framing logs a traceback of text that is no UTF-8, and ends that connection.
    assert not [r for r in caplog.records if ws == "none" or r.name.startswith("rafthttp")]


Message: TypeAlias = dict[str, Any]


def received(data: bytes) -> Message:
    return {"type": "websocket.receive", "bytes": data}


def text_received(text: str) -> Message:
    return {"type": "websocket.receive", "text": text}


def disconnected(code: int, reason: str | None) -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


_CODES = [1000, 1001, 1002, 1003, 1006, 1007, 1009, 4000]
_BARE: list[Message] = [{"type": "websocket.receive"}, {"type": "websocket.disconnect"}]
_MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(received, st.binary(max_size=40)),
    st.builds(text_received, st.text(max_size=9)),
    st.builds(disconnected, st.sampled_from(_CODES), st.one_of(st.none(), st.text(max_size=200))),
    st.sampled_from(_BARE),
    st.just(received(bytes((1 << 20) + 1))),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(_MESSAGES, max_size=8))
def test_messages_of_every_kind(messages: list[Message]) -> None:
    """As an ASGI server may hand them over; at the end the connection is gone, within a second."""
    try:
        hand_over(messages)
    except TimeoutError:  # once more, on a busy machine
        hand_over(messages)


def hand_over(messages: list[Message]) -> None:
    async def main() -> None:
        left = [*messages, disconnected(1006, None)]
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0)
            return left.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        stream = AsgiStream("peer", receive, send, None)
        receiver = RecordingReceiver(stream)
        await asyncio.wait_for(stream.run(), SECONDS_MAX)
        assert receiver.ended
        expected = b""
        for message in messages:
            data = message.get("bytes")
            if message["type"] != "websocket.receive" or data is None or len(data) > 1 << 20:
                break
            expected += data
        assert receiver.data == expected
        assert sent[0]["type"] == "websocket.accept"

    asyncio.run(main())
