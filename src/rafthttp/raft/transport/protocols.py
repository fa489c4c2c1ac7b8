"""The seams between the server, its peers, and whatever carries the bytes.

`Stream` and `StreamLayer` are what a carrier provides; `Transport` is what the server uses.
Callbacks, not tasks, on the hot path: a frame costs no task switch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from rafthttp.raft.transport.outbound import AppendFrame
from rafthttp.raft.types import Server, ServerAddress, ServerID
from rafthttp.raft.wire.records import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    RequestPreVoteRequest,
    RequestPreVoteResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    RPCHeader,
    TimeoutNowRequest,
    TimeoutNowResponse,
)

NO_STATE: Final = "this server has no state yet, and takes no part until nobody counts on it"
"""What a server that is about to join answers to every RPC (see `Raft.take_part`)."""


class StreamReceiver(Protocol):
    """Who gets the bytes of a stream. All calls come on the event loop, none after `closed`."""

    def data_received(self, data: bytes) -> None:
        """Bytes in order, of that very type; never empty. Must not raise: close the stream."""
        ...

    def closed(self, error: Exception | None) -> None:
        """Called exactly once: the stream ended (None: at EOF or by our own close)."""
        ...

    def pause_writing(self) -> None:
        """The write buffer is over its high-water mark."""
        ...

    def resume_writing(self) -> None:
        """The write buffer has drained below its low-water mark."""
        ...


class Stream(Protocol):
    """A full-duplex byte stream: what an upgraded connection becomes."""

    @property
    def peer(self) -> str:
        """The peer's socket address, for messages; never what the peer says of itself."""
        ...

    def start(self, receiver: StreamReceiver) -> None:
        """Begin delivery; called exactly once. Bytes that came glued to the handshake are first."""
        ...

    def write(self, data: bytes) -> None:
        """Send bytes. Never blocks; ignored once closed. Heed `pause_writing`."""
        ...

    def pause_reading(self) -> None:
        """Stop delivery (backpressure towards the peer). Idempotent."""
        ...

    def resume_reading(self) -> None:
        """Go on with delivery. Idempotent."""
        ...

    def close(self) -> None:
        """Close after what is buffered has gone out. Idempotent; `closed` follows."""
        ...

    def abort(self) -> None:
        """Close now, dropping what is buffered. Idempotent; `closed` follows."""
        ...


class StreamLayer(Protocol):
    """hashicorp/raft's `StreamLayer`: dials and accepts streams."""

    @property
    def address(self) -> ServerAddress:
        """The address peers reach this server at."""
        ...

    async def accept(self) -> Stream:
        """The next inbound stream.

        Raises:
            TransportError: the layer is closed.
        """
        ...

    async def dial(self, address: ServerAddress, timeout: float) -> Stream:
        """A new stream to a peer, within `timeout` seconds, handshake included.

        Raises:
            TransportError: no stream within the deadline (HandshakeError is one of http's own
                and reaches the caller as the cause).
        """
        ...

    async def close(self) -> None:
        """Stop accepting; `accept` raises from now on. Idempotent."""
        ...


class InboundRpc(Protocol):
    """One request that waits for its answer; exactly one of the two is called, once."""

    def respond(self, response: Response) -> None:
        """Send the response. Responses leave in the order of the requests of their stream."""
        ...

    def fail(self, text: str) -> None:
        """Send an error text with a nil body, as hashicorp/raft does."""
        ...


class SnapshotReader(Protocol):
    """The raw bytes behind an InstallSnapshot, with backpressure."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks until exactly `size` bytes have come.

        Raises:
            TransportError: the stream ended early.
        """
        ...


class SnapshotSource(Protocol):
    """The raw bytes of a snapshot that is sent."""

    async def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, none at the end; read where a disk that hangs holds up nobody."""
        ...


class RpcHandler(Protocol):
    """The server's side of a transport. Called on the event loop, from `data_received`."""

    def on_append_entries(self, request: AppendEntriesRequest, rpc: InboundRpc) -> None:
        """An AppendEntries, heartbeat or not."""
        ...

    def on_request_vote(self, request: RequestVoteRequest, rpc: InboundRpc) -> None:
        """A RequestVote."""
        ...

    def on_request_pre_vote(self, request: RequestPreVoteRequest, rpc: InboundRpc) -> None:
        """A RequestPreVote."""
        ...

    def on_timeout_now(self, request: TimeoutNowRequest, rpc: InboundRpc) -> None:
        """A TimeoutNow."""
        ...

    def on_install_snapshot(
        self, request: InstallSnapshotRequest, body: SnapshotReader, rpc: InboundRpc
    ) -> None:
        """An InstallSnapshot. What is not read of `body` by the time of the answer is drained."""
        ...

    def on_peer_streams_closed(self, peer: ServerID) -> None:
        """The last inbound stream whose RPC headers named `peer` has closed (decision 7)."""
        ...


class AppendPipeline(Protocol):
    """AppendEntries to one peer, answered in order, on a stream of its own."""

    def send(self, frame: AppendFrame) -> None:
        """Queue one frame; before the dial is done it waits, within the in-flight bound."""
        ...

    def close(self) -> None:
        """Close the stream; `on_closed` is not called for it. Idempotent."""
        ...


class ServerAddressProvider(Protocol):
    """Where servers are, where the configuration does not tell (hashicorp/raft's name)."""

    def server_address(self, server_id: ServerID) -> ServerAddress | None:
        """Where to dial that server now; None for the address in the configuration.

        Called on the event loop before each dial, so it must not wait: answer from memory.
        """
        ...


class Transport(Protocol):
    """How the server reaches its peers (hashicorp/raft's `Transport`).

    Every awaitable raises TransportError when the peer cannot be reached or answers with an error.
    """

    @property
    def local_address(self) -> ServerAddress:
        """This server's own address."""
        ...

    def start(self, header: RPCHeader, handler: RpcHandler) -> None:
        """Begin to accept; `header` goes into every record from now on."""
        ...

    def pipeline(
        self,
        target: Server,
        on_response: Callable[[AppendEntriesResponse], None],
        on_closed: Callable[[Exception], None],
    ) -> AppendPipeline:
        """Open a replication stream at once.

        Responses come in the order of the frames. After `on_closed` (called at most once) nothing
        more comes, and what was in flight is discarded.
        """
        ...

    async def heartbeat(self, target: Server, term: int, timeout: float) -> AppendEntriesResponse:
        """One heartbeat on the peer's heartbeat stream (redialled once if it was dead)."""
        ...

    async def request_vote(
        self, target: Server, request: RequestVoteRequest, timeout: float
    ) -> RequestVoteResponse:
        """RequestVote on a pooled stream."""
        ...

    async def request_pre_vote(
        self, target: Server, request: RequestPreVoteRequest, timeout: float
    ) -> RequestPreVoteResponse:
        """RequestPreVote on a pooled stream."""
        ...

    async def timeout_now(
        self, target: Server, request: TimeoutNowRequest, timeout: float
    ) -> TimeoutNowResponse:
        """TimeoutNow; never redialled once bytes were written."""
        ...

    async def install_snapshot(
        self, target: Server, request: InstallSnapshotRequest, data: SnapshotSource, timeout: float
    ) -> InstallSnapshotResponse:
        """Send a snapshot on a stream of its own, then close it. `timeout` is for the whole."""
        ...

    async def identify(self, address: ServerAddress, timeout: float) -> RPCHeader:
        """Who is at `address`: a RequestPreVote of term 0 on a fresh stream changes no state.

        Raises:
            TransportError: nobody, or not a raft server.
        """
        ...

    async def probe(self, address: ServerAddress, timeout: float) -> bool:
        """Whether a fresh dial of `address` ends in a stream; it is closed at once."""
        ...

    def close_streams(self) -> None:
        """Close all streams, pooled ones too; new ones may be opened after."""
        ...

    async def close(self) -> None:
        """Stop accepting and close everything, the stream layer too. Idempotent."""
        ...
