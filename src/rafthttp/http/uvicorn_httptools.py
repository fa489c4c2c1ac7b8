"""uvicorn's httptools protocol, able to hand over its socket.

A module of its own because httptools may not be installed; see `uvicorn.raft_protocol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rafthttp.http.uvicorn import _Takeover

if TYPE_CHECKING:
    # Both bases declare `conn`/`parser` differently; only what they share is used.
    class RaftHttpToolsProtocol(HttpToolsProtocol):
        """uvicorn's httptools protocol, able to hand over its socket."""
else:

    class RaftHttpToolsProtocol(_Takeover, HttpToolsProtocol):
        """uvicorn's httptools protocol, able to hand over its socket."""

        _in_head = False

        def on_message_begin(self) -> None:
            """A head begins."""
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            """A head is complete."""
            self._in_head = False
            super().on_headers_complete()

        def _head_is_incomplete(self) -> bool:
            return self._in_head
