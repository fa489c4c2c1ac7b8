"""`Layer`: the stream layer of one server (Go's `rafthttp.Layer`).

Knows the endpoint path, how to dial, and the `Handler` that accepts; no Raft. Closing it closes the
handler, whose `requests()` end, so that `handle_change_requests` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rafthttp.http.access import HeadersFactory
from rafthttp.http.carriers import CARRIERS, CarrierMemory
from rafthttp.http.dial import Dial, closed_early
from rafthttp.http.forward import ForwardClient
from rafthttp.http.grammar import is_header, parse_address, parse_path
from rafthttp.http.handler import Handler
from rafthttp.http.handshake import ClientHandshake, printable
from rafthttp.http.membership import ChangeKind
from rafthttp.http.membership_client import Changed, make_change
from rafthttp.http.messages import CLUSTER_ID_HEADER, ForwardResponse
from rafthttp.http.stream import TransportStream
from rafthttp.http.websocket import PING_SECONDS, WEBSOCKET, WebSocketHandshake
from rafthttp.http.websocket_stream import WebSocketStream
from rafthttp.raft.errors import ConfigError, HandshakeError, PeerUnreachableError
from rafthttp.raft.transport.protocols import Stream
from rafthttp.raft.types import ServerAddress, ServerID


class Layer:
    """Dials and accepts streams over the endpoint; implements `StreamLayer`.

    Args:
        path: of the endpoint, the same on all servers.
        local_address: the address peers reach this server at; byte for byte the one in the
            cluster's configuration.
        handler: accepts the inbound streams.
        dial: opens connections (`dial_tcp()`, `dial_tls(context)`).
        carrier: how to dial: `raw` (what Go peers speak), `websocket`, or `auto`: raw first, and
            WebSocket where the answer is a 426 that names it, which is remembered per address.
            Both are accepted whatever it says.
        headers: adds headers to every handshake, join, leave and forwarded call.
        scheme: `https` where `dial` speaks TLS.
        ping_seconds: how long a dialled WebSocket stream may send nothing before it sends a ping.

    Raises:
        ConfigError: an argument is against its grammar.
    """

    def __init__(
        self,
        path: str,
        local_address: str,
        handler: Handler,
        dial: Dial,
        carrier: str = "auto",
        headers: HeadersFactory | None = None,
        scheme: str = "http",
        *,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        if carrier not in CARRIERS:
            raise ConfigError(f"carrier is {carrier!r}; it must be one of {', '.join(CARRIERS)}")
        if scheme not in ("http", "https"):
            raise ConfigError(f"scheme is {scheme!r}; it must be http or https")
        if not ping_seconds > 0:
            raise ConfigError(f"ping_seconds is {ping_seconds}; it must be more than 0")
        try:
            self._address = parse_address(local_address)
        except ValueError as error:
            raise ConfigError(f"local_address {local_address!r}: {error}") from None
        self._path = parse_path(path)
        self._carrier = carrier
        self._ping_seconds = ping_seconds
        self._over_websocket = CarrierMemory()
        self._handler = handler
        self._dial = dial
        self._headers = headers
        self._scheme = scheme
        self._forward_client = ForwardClient(self._path, dial, self._request_headers)
        self._closed = False

    @property
    def address(self) -> ServerAddress:
        """The address peers reach this server at."""
        return self._address

    @property
    def path(self) -> str:
        """The endpoint path."""
        return self._path

    @property
    def cluster_id(self) -> str | None:
        """The cluster this server belongs to; one and the same as the handler's."""
        return self._handler.cluster_id

    @cluster_id.setter
    def cluster_id(self, value: str | None) -> None:
        self._handler.cluster_id = value

    async def accept(self) -> Stream:
        """The next inbound stream; PeerUnreachableError once closed."""
        return await self._handler.accept()

    async def dial(self, address: ServerAddress, timeout: float) -> Stream:
        """A new stream to a peer; `timeout` covers DNS, connect, TLS and the whole handshake.

        Raises:
            PeerUnreachableError: none came of it; caused by a HandshakeError if the peer answered.
        """
        if self._closed:
            raise PeerUnreachableError("the layer is closed")
        if not timeout > 0:
            raise PeerUnreachableError(f"no time left to dial {address} ({timeout:g} s)")
        try:
            async with asyncio.timeout(timeout):
                if self._carrier == "auto":
                    return await self._dial_either(address, timeout)
                return await self._dial_over(self._carrier, address, timeout)
        except TimeoutError as error:
            raise PeerUnreachableError(f"{address} did not answer within {timeout:g} s") from error
        except (HandshakeError, OSError) as error:
            raise PeerUnreachableError(f"no stream to {address}: {error}") from error

    async def _dial_either(self, address: ServerAddress, timeout: float) -> Stream:
        memory = self._over_websocket
        if address in memory:
            memory.forget(address)  # also if it cannot be reached: another server may come up there
            with suppress(HandshakeError):
                stream = await self._dial_over("websocket", address, timeout)
                memory.remember(address)
                return stream
        try:
            return await self._dial_over("raw", address, timeout)
        except HandshakeError as refusal:
            if not (refusal.status == 426 and WEBSOCKET in refusal.upgrade):
                raise
        stream = await self._dial_over("websocket", address, timeout)
        memory.remember(address)
        return stream

    async def _dial_over(self, carrier: str, address: ServerAddress, timeout: float) -> Stream:
        """Dial with one carrier; no socket is left open where none came of it."""
        headers = (await self._request_headers()).items()
        stream = await self._dial(address, timeout)
        try:
            if carrier == "raw":
                await self._shake_hands(stream, ClientHandshake(address, self._path, headers))
                return stream
            await self._shake_hands(stream, WebSocketHandshake(address, self._path, headers))
            return WebSocketStream(stream, is_client=True, ping_seconds=self._ping_seconds)
        except BaseException:
            stream.abort()
            raise

    async def close(self) -> None:
        """Close the handler too: `accept` raises, `requests()` ends. Idempotent."""
        self._closed = True
        await self._forward_client.close()
        await self._handler.close()

    async def join(
        self, server_id: ServerID, members: str | Sequence[str], timeout: float
    ) -> str | None:
        """Ask members to add this server, under this layer's address; returns the cluster's id.

        A cluster id seen for the first time becomes this layer's; to keep it is the caller's.

        Raises:
            MembershipError: refused, or not done within `timeout` seconds (it may yet be).
            ConfigError: the timeout is not positive, or a name is against its grammar.
        """
        return (await self._change(ChangeKind.JOIN, server_id, members, timeout)).cluster_id

    async def leave(
        self, server_id: ServerID, members: str | Sequence[str], timeout: float
    ) -> str | None:
        """Ask members to remove a server. As `join`."""
        return (await self._change(ChangeKind.LEAVE, server_id, members, timeout)).cluster_id

    async def release(
        self, server_id: ServerID, members: str | Sequence[str], timeout: float
    ) -> Changed:
        """Have it made sure that no configuration has this server under this address. As `join`.

        Called before a server without state joins: it may have been a voter (S62). The answer says
        from where on it may vote (`Raft.take_part`); one from Go does not.
        """
        return await self._change(ChangeKind.RELEASE, server_id, members, timeout)

    async def forward(
        self, address: ServerAddress, op: str, body: bytes, timeout: float
    ) -> ForwardResponse:
        """Have `op` done by another member, within `timeout` seconds. Never sent twice.

        Raises:
            ForwardError: no answer; definite if no byte of it can have reached the member.
            ConfigError: `op` is against its grammar, or the timeout is not positive.
        """
        return await self._forward_client.call(address, op, body, timeout)

    async def _change(
        self, kind: ChangeKind, server_id: ServerID, members: str | Sequence[str], timeout: float
    ) -> Changed:
        changed = await make_change(
            kind,
            self._path,
            self._dial,
            server_id,
            self._address,
            members,
            timeout,
            headers=self._request_headers,
            scheme=self._scheme,
        )
        if self.cluster_id is None and kind is ChangeKind.JOIN:
            self.cluster_id = changed.cluster_id
        return changed

    async def _request_headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        if self._headers is not None:
            try:
                headers.update(await self._headers())
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise PeerUnreachableError(f"cannot make the request headers: {reason}") from error
        for name, value in headers.items():
            if not is_header(name, value):  # the value may be a credential: it is not shown
                raise PeerUnreachableError(f"the header {name!r} cannot be sent as it is")
        if self.cluster_id is not None:
            headers[CLUSTER_ID_HEADER] = self.cluster_id
        return headers

    async def _shake_hands(self, stream: TransportStream, handshake: ClientHandshake) -> None:
        receiver = _HandshakeReceiver(handshake, is_tls=stream.is_tls)
        stream.start(receiver)
        stream.write(handshake.request())
        await receiver.established
        stream.rewind(handshake.leftover)
        theirs = handshake.response_headers.get(CLUSTER_ID_HEADER)
        if theirs is not None and self.cluster_id is not None and theirs != self.cluster_id:
            raise HandshakeError(
                f"it belongs to the cluster {printable(theirs)}, this server to {self.cluster_id}",
                status=101,
            )


class _HandshakeReceiver:
    """Feeds a `ClientHandshake` and completes a future."""

    def __init__(self, handshake: ClientHandshake, *, is_tls: bool) -> None:
        self._handshake = handshake
        self._is_tls = is_tls
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Part of the answer; what comes behind the 101 stays in the handshake."""
        if self.established.done():
            # The 101 is read but the waiting task has not run yet.
            self._handshake.leftover += data
            return
        try:
            if self._handshake.receive(data):
                self.established.set_result(None)
        except HandshakeError as error:
            self.established.set_exception(error)

    def closed(self, error: Exception | None) -> None:
        """No stream will come of it, unless it is there already."""
        if self.established.done():
            return
        reason = HandshakeError(closed_early(error, is_tls=self._is_tls))
        if error is None and not self._is_tls:
            try:
                self._handshake.receive(b"")
            except HandshakeError as refusal:
                reason = refusal
        self.established.set_exception(reason)

    def pause_writing(self) -> None:
        """A request head is far below any high-water mark."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""
