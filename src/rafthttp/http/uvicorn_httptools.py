"""uvicorn's httptools protocol, able to hand over its socket.

A module of its own because httptools may not be installed; see `uvicorn.raft_protocol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rafthttp.http.uvicorn import HEAD_SIZE_BYTES_MAX, _Takeover

if TYPE_CHECKING:
    # Both bases declare `conn`/`parser` differently; only what they share is used.
    class RaftHttpToolsProtocol(HttpToolsProtocol):
        """uvicorn's httptools protocol, able to hand over its socket."""
else:

    class RaftHttpToolsProtocol(_Takeover, HttpToolsProtocol):
        """uvicorn's httptools protocol, able to hand over its socket."""

        _in_head = False
        # Bytes fed since something left the parser: a head, a piece of a body, or the end.
        _held_size = 0

        def on_message_begin(self) -> None:
            """A head begins."""
            self._in_head = True
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            """A field of the head. Those behind a body stay out of `scope["headers"]`.

            RFC 9110 §6.5.1: a trailer field is no header field; uvicorn would add it to the list
            that the application reads, and keep as many as a piece of 256 KiB holds.
            """
            if self._in_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """A head is complete."""
            self._in_head = False
            self._held_size = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """A piece of a body."""
            self._held_size = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            """A request's end, trailer fields included."""
            self._held_size = 0
            super().on_message_complete()

        def _is_too_much(self, size: int) -> bool:
            self._held_size += size
            # Of a body's bytes one cannot tell before whether the parser keeps them.
            in_body = self.cycle is not None and self.cycle.more_body
            return self._held_size > HEAD_SIZE_BYTES_MAX and not (in_body and size)

        def _head_is_incomplete(self) -> bool:
            return self._in_head
