"""This server's side of the streams peers dialed: requests in, answers out in their order.

Driven by `data_received`; no task, no queue object and no future a frame. What a peer can make this
hold is bounded: requests without an answer, answers it does not read, bytes of a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol

from rafthttp.raft.errors import PeerUnreachableError, ProtocolError
from rafthttp.raft.transport.protocols import RpcHandler, Stream
from rafthttp.raft.transport.snapshot_body import SnapshotBody
from rafthttp.raft.types import ServerID
from rafthttp.raft.wire.limits import WireLimits
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    InstallSnapshotRequest,
    Request,
    RequestPreVoteRequest,
    RequestVoteRequest,
    Response,
    RPCHeader,
)
from rafthttp.raft.wire.rpc import encode_failure, encode_response, header_refusal
from rafthttp.raft.wire.stream import RequestDecoder, check_append

_log = logging.getLogger("rafthttp.transport")

# Requests of one stream handed to the server and not answered. Twice our own default pipeline; a
# peer that sends more is made to wait by TCP.
OUTSTANDING_MAX: Final = 128


class InboundOwner(Protocol):
    """What a stream tells the transport."""

    def on_peer_named(self, old: ServerID, new: ServerID) -> None:
        """The RPC headers of a stream name `new`; before, they named `old` (empty: nobody)."""
        ...

    def on_inbound_closed(self, stream: InboundStream, peer: ServerID) -> None:
        """The stream ended; its RPC headers named `peer` last (empty: nobody)."""
        ...


class _Slot:
    """Implements `InboundRpc`: the place of one answer in the order of its stream."""

    __slots__ = ("body", "payload", "stream")

    def __init__(self, stream: InboundStream, body: SnapshotBody | None) -> None:
        self.stream = stream
        self.body = body
        self.payload: bytes | None = None

    def respond(self, response: Response) -> None:
        """Send the response (`InboundRpc`)."""
        assert self.payload is None, "one answer a request"
        self.payload = encode_response(response)
        self.stream.answered(self)

    def fail(self, text: str) -> None:
        """Send an error text and a nil body (`InboundRpc`)."""
        assert self.payload is None, "one answer a request"
        self.payload = encode_failure(text)
        self.stream.answered(self)


class InboundStream:
    """Receiver of one accepted stream."""

    def __init__(
        self, stream: Stream, limits: WireLimits, handler: RpcHandler, owner: InboundOwner
    ) -> None:
        self._stream = stream
        self._decoder = RequestDecoder(limits)
        self._handler = handler
        self._owner = owner
        self._slots: deque[_Slot] = deque()
        self._body: SnapshotBody | None = None
        self._header: RPCHeader | None = None
        self._peer = ServerID("")
        self._write_paused = False
        self._reading = True
        self._pumping = False
        self._flushing = False
        self._over = False

    def close(self) -> None:
        """Close after the answers written have gone out, if the peer reads them. Idempotent."""
        self._over = True
        if self._write_paused:
            self._stream.abort()
        else:
            self._stream.close()

    def abort(self) -> None:
        """Close at once. Idempotent."""
        self._over = True
        self._stream.abort()

    def data_received(self, data: bytes) -> None:
        """Dispatch the requests these bytes complete (`StreamReceiver`)."""
        if not self._over:
            self._decoder.feed(data)
            self._pump()

    def closed(self, error: Exception | None) -> None:
        """The stream ended (`StreamReceiver`)."""
        if not self._over and self._has_room() and self._decoder.mid_frame:
            _log.warning("the stream of %s ended inside a frame", self._stream.peer)
        self._over = True
        self._decoder.close()
        self._slots.clear()
        if self._body is not None:
            lost = PeerUnreachableError(f"the stream of {self._stream.peer} ended early")
            lost.__cause__ = error
            self._body.fail(lost)
        self._owner.on_inbound_closed(self, self._peer)

    def pause_writing(self) -> None:
        """The peer does not read its answers: take no more requests (`StreamReceiver`)."""
        self._write_paused = True
        self._settle()

    def resume_writing(self) -> None:
        """The peer reads again (`StreamReceiver`)."""
        self._write_paused = False
        self._pump()

    def answered(self, slot: _Slot) -> None:
        """An answer is ready; it leaves once those before it have (called by its slot)."""
        if self._over:
            return
        if slot.body is not None:
            slot.body.drain()
        if self._pumping:
            return
        if len(self._slots) == 1 and slot.body is None:
            self._flush()
        elif not self._flushing:
            # A turn of the server answers several at once: they share a write.
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self._pump()

    def _pump(self) -> None:
        """Dispatch what is whole, as far as there is room; pause reading where there is none."""
        if self._over or self._pumping:
            return
        self._pumping = True
        try:
            self._flush()
            while not self._over and self._has_room():
                event = self._decoder.next()
                if event is None:
                    break
                if isinstance(event, bytes):
                    self._add_to_body(event)
                else:
                    self._dispatch(event)
                # Answers given at once share a write, until they are as many as may wait.
                if len(self._slots) >= OUTSTANDING_MAX:
                    self._flush()
            self._flush()
        except ProtocolError as error:
            _log.warning("closing the stream of %s: %s", self._stream.peer, error)
            self.abort()
        except Exception:  # noqa: BLE001 - a receiver must not raise; one stream pays for it
            _log.exception("closing the stream of %s: a handler failed", self._stream.peer)
            self.abort()
        finally:
            self._pumping = False
        self._settle()

    def _settle(self) -> None:
        if self._over:
            return
        has_room = self._has_room()
        if has_room is not self._reading:
            self._reading = has_room
            if has_room:
                self._stream.resume_reading()
            else:
                self._stream.pause_reading()

    def _has_room(self) -> bool:
        return (
            not self._write_paused
            and len(self._slots) < OUTSTANDING_MAX
            and (self._body is None or not self._body.full)
        )

    def _add_to_body(self, chunk: bytes) -> None:
        assert self._body is not None, "the decoder yields bytes only behind an InstallSnapshot"
        self._body.add(chunk)
        if self._body.complete:
            self._body = None

    def _dispatch(self, request: Request) -> None:
        header = request.header
        if header is not self._header:
            self._header = header
            if header.id and header.id != self._peer:
                self._owner.on_peer_named(self._peer, header.id)
                self._peer = header.id
        body = None
        if isinstance(request, InstallSnapshotRequest):
            body = SnapshotBody(request.size, self._pump)
            if not body.complete:
                self._body = body
        slot = _Slot(self, body)
        self._slots.append(slot)
        refusal = header_refusal(request)
        if refusal is not None:
            slot.fail(refusal)
        elif isinstance(request, AppendEntriesRequest):
            check_append(request)
            self._handler.on_append_entries(request, slot)
        elif isinstance(request, RequestVoteRequest):
            self._handler.on_request_vote(request, slot)
        elif isinstance(request, RequestPreVoteRequest):
            self._handler.on_request_pre_vote(request, slot)
        elif isinstance(request, InstallSnapshotRequest):
            assert body is not None, "made above"
            self._handler.on_install_snapshot(request, body, slot)
        else:
            self._handler.on_timeout_now(request, slot)

    def _flush(self) -> None:
        """Write the answers at the head of the line that are ready, in one write."""
        slots = self._slots
        ready: list[bytes] = []
        while slots:
            slot = slots[0]
            if slot.payload is None or (slot.body is not None and not slot.body.complete):
                break
            ready.append(slot.payload)
            slots.popleft()
        if ready:
            self._stream.write(ready[0] if len(ready) == 1 else b"".join(ready))
