"""What a table remembers of an answer: one byte that says which kind, then the content.

The same bytes on every replica and in every snapshot, whatever object the state machine returned.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from rafthttp.raft.errors import RemoteApplyError, told

ANSWER_SIZE_BYTES_MAX: Final = 16 << 10
"""Of the content; what is larger is not kept."""

VALUE: Final = 0
RAISED: Final = 1
NOT_KEPT: Final = 2

_NONE: Final = b"\x00\xc0"
_FORGOTTEN: Final = b"\x02"
_NOT_KEPT_TEXT: Final = "applied, once; its answer was too large to be kept, or msgpack has no form"


class Encoder:
    """Encodes answers; reuses one packer."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer()

    def encode(self, answer: object) -> bytes:
        """The bytes to remember."""
        if answer is None:
            return _NONE
        if isinstance(answer, Exception):
            text = told(answer).encode()
            return b"\x01" + text[:ANSWER_SIZE_BYTES_MAX]
        if isinstance(answer, bytes | str) and len(answer) > ANSWER_SIZE_BYTES_MAX:
            return _FORGOTTEN
        try:
            packed: bytes = self._packer.pack(answer)
        except (TypeError, ValueError, OverflowError):
            self._packer.reset()
            return _FORGOTTEN
        return b"\x00" + packed if len(packed) <= ANSWER_SIZE_BYTES_MAX else _FORGOTTEN


def decode(remembered: bytes) -> Any:
    """The answer, or the exception, that is given to whoever asks again."""
    content = remembered[1:]
    if remembered[0] == RAISED:
        # A character may have been cut in two.
        return RemoteApplyError(content.decode("utf-8", "replace"))
    if remembered[0] == VALUE:
        try:
            return msgpack.unpackb(content, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            pass  # a map whose keys are lists is packed, and cannot be read back
    return RemoteApplyError(_NOT_KEPT_TEXT)
