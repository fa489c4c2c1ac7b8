"""One HTTP/1.1 connection to a peer, for calls that are no streams: join, leave, forward.

Knows h11 and streams. One call at a time; whether a byte of it can have reached the peer is
recorded, because the caller must not send it again then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from rafthttp.http.dial import closed_early
from rafthttp.http.handshake import HEAD_SIZE_BYTES_MAX, USER_AGENT
from rafthttp.http.messages import Headers
from rafthttp.http.stream import TransportStream


@dataclass(frozen=True, slots=True)
class ClientResponse:
    """The answer to one call."""

    status: int
    headers: Headers
    body: bytes


class ClientConnection:
    """A keep-alive connection. Owns its stream; ends with `abort`.

    Attributes:
        sent: whether a byte of the current call can have reached the peer.
    """

    def __init__(self, stream: TransportStream, host: str) -> None:
        self.sent = False
        self._stream = stream
        self._host = host
        self._http = h11.Connection(h11.CLIENT, HEAD_SIZE_BYTES_MAX)
        self._answer: asyncio.Future[ClientResponse] | None = None
        self._head: h11.Response | None = None
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._size_bytes_max = 0
        self._broken = False
        stream.start(self)

    @property
    def reusable(self) -> bool:
        """Whether another call can be made on it."""
        return not self._broken and not self._stream.is_closing and self._http.our_state is h11.IDLE

    async def call(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        *,
        response_size_bytes_max: int,
    ) -> ClientResponse:
        """Make one call. Deadline and well-formed headers are the caller's.

        After any exception, `abort`.

        Raises:
            ConnectionError: the connection broke, or the answer is not HTTP or too large.
        """
        self.sent = False
        if not self.reusable:
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._head = None
        self._chunks.clear()
        self._size_bytes = 0
        self._size_bytes_max = response_size_bytes_max
        request = h11.Request(
            method=method,
            target=target,
            headers=[
                ("Host", self._host),
                ("User-Agent", USER_AGENT),
                ("Content-Length", str(len(body))),
                *headers,
            ],
        )
        data = self._http.send(request) or b""
        if body:
            data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self.sent = True
        self._stream.write(data)
        return await self._answer

    def abort(self) -> None:
        """Close now. Idempotent."""
        self._broken = True
        self._stream.abort()

    # -- StreamReceiver

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        if self._answer is None or self._answer.done():
            self._break(ConnectionResetError("the peer sent bytes that nobody asked for"))
            return
        self._feed(data)

    def closed(self, error: Exception | None) -> None:
        """The connection is gone; an answer without a length ends so, too."""
        waiting = self._answer is not None and not self._answer.done()
        if error is None and waiting and self._head is not None:
            self._feed(b"")
        text = closed_early(error, is_tls=self._stream.is_tls)
        self._break(ConnectionResetError(text))

    def pause_writing(self) -> None:
        """The caller waits for the answer, not for the buffer."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def _feed(self, data: bytes) -> None:
        http = self._http
        try:
            http.receive_data(data)
            while True:
                event = http.next_event()
                if isinstance(event, h11.Response):
                    self._head = event
                elif isinstance(event, h11.Data):
                    self._size_bytes += len(event.data)
                    if self._size_bytes > self._size_bytes_max:
                        self._break(ConnectionAbortedError("the answer is too large"))
                        return
                    self._chunks.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._finish()
                    return
                elif not isinstance(event, h11.InformationalResponse):
                    return  # more data is needed, or none will come
        except h11.RemoteProtocolError as error:
            self._break(ConnectionAbortedError(f"the answer is not HTTP/1.1: {error}"))

    def _finish(self) -> None:
        head, answer, http = self._head, self._answer, self._http
        assert head is not None, "h11 yields the head first"
        assert answer is not None, "checked before feeding"
        agreed = http.our_state is h11.DONE and http.their_state is h11.DONE
        if agreed and not http.trailing_data[0]:
            http.start_next_cycle()
        else:
            # Bytes behind the answer would pass for the next one.
            self.abort()
        headers = Headers(list(head.headers))
        if not answer.done():
            answer.set_result(ClientResponse(head.status_code, headers, b"".join(self._chunks)))

    def _break(self, error: ConnectionError) -> None:
        self._broken = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self._stream.abort()
