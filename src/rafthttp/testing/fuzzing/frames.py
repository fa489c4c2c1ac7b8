"""WebSocket frames from a hostile peer, to either side, in any cut.

Promises: bytes of the stream or the end of it, with a close frame; nothing raised; the same bytes
whatever the cuts; once ended, nothing more comes.
"""

from __future__ import annotations

import struct
from typing import Final

from rafthttp.http.websocket import RECEIVED_SIZE_BYTES_MAX, Framing
from rafthttp.testing.fuzzing.target import Target, choices, cuttings

_MASK: Final = b"\x01\x02\x03\x04"


def _read(pieces: list[bytes], *, is_client: bool, pongs: bool) -> tuple[bytes, bytes, bool]:
    framing = Framing(is_client=is_client)
    payload = answer = b""
    for piece in pieces:
        ended = framing.ended
        more, written = framing.receive(piece, answer_pings=pongs)
        assert not (ended and (more or written)), "something comes behind the end"
        payload += more
        answer += written
    assert framing.error is None or framing.ended, "a broken protocol goes on"
    assert len(payload) <= sum(map(len, pieces)), "more comes out than went in"
    if framing.ended:
        assert not framing.send(b"late"), "something is sent behind the end"
    return payload, b"" if is_client else answer, framing.ended


def check_frames(data: bytes) -> None:
    """Whichever side reads them."""
    head, stream = choices(data)
    is_client, pongs = bool(head[0] & 1), bool(head[0] & 2)
    results = [
        _read(pieces, is_client=is_client, pongs=pongs)
        for pieces in cuttings(stream, head[1] << 8 | head[2])
    ]
    for payload, answer, ended in results[1:]:
        assert ended == results[0][2], "the cuts decide whether it has ended"
        if not ended:
            assert payload == results[0][0], "the cuts decide what is read"
            # A client's own masks are random: `_read` leaves its answers out.
            assert answer == results[0][1], "the cuts decide what is answered"


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    """One frame (RFC 6455 §5.2)."""
    head = bytes((opcode | (0x80 if fin else 0),))
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes((bit | len(payload),))
    elif len(payload) < 1 << 16:
        head += bytes((bit | 126,)) + struct.pack(">H", len(payload))
    else:
        head += bytes((bit | 127,)) + struct.pack(">Q", len(payload))
    if not mask:
        return head + payload
    return head + _MASK + bytes(b ^ _MASK[at % 4] for at, b in enumerate(payload))


def _seeds() -> list[bytes]:
    seeds: list[bytes] = []
    for is_client in (0, 1):
        mask = not is_client
        begin = bytes((is_client | 2, 1, 2, 0))
        frames = [
            frame(2, b"hello", mask=mask),
            frame(2, b"a" * 200, mask=mask),
            frame(2, b"be", fin=False, mask=mask)
            + frame(9, b"ping", mask=mask)
            + frame(0, b"gin", mask=mask),
            frame(10, b"", mask=mask),
            frame(1, b"text", mask=mask),
            frame(8, struct.pack(">H", 1000) + b"bye", mask=mask),
            bytes((0x82, (0x80 if mask else 0) | 127)) + struct.pack(">Q", RECEIVED_SIZE_BYTES_MAX),
        ]
        seeds += [begin + octets for octets in frames]
        seeds.append(begin + b"".join(frames))
    return seeds


WEBSOCKET_FRAMES: Final = Target("websocket-frames", check_frames, _seeds)
