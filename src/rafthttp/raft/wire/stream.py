"""The two directions of a stream, decoded as the bytes come: requests, and answers to them.

There is no length prefix: a frame ends where its msgpack ends. `feed` takes any piece of the
stream, `next` hands out what is whole; what a frame still needs is remembered, so that small pieces
cost no second look. No I/O, no clock.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from rafthttp.raft.errors import FrameTooLargeError, ProtocolError
from rafthttp.raft.types import ServerAddress
from rafthttp.raft.wire.configuration import decode_configuration
from rafthttp.raft.wire.dialect import pack_name
from rafthttp.raft.wire.entries import EntriesDecoder
from rafthttp.raft.wire.limits import DEFAULT_LIMITS, WireLimits
from rafthttp.raft.wire.reader import BIN, INT, NIL, RAW, Reader, Steps
from rafthttp.raft.wire.records import (
    APPEND_ENTRIES,
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    Request,
    Response,
    RPCHeader,
)
from rafthttp.raft.wire.rpc import (
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    append_request_of,
    header_of,
    request_of,
    response_of,
)

_UINT: Final = rb"([\x00-\x7f]|\xcc.|\xcd..|\xce.{4}|\xcf.{8})"
# What follows the constant part of an AppendEntries and of its response, as Go writes them.
_APPEND_TAIL: Final = re.compile(
    _UINT
    + rb"\xacPrevLogEntry"
    + _UINT
    + rb"\xabPrevLogTerm"
    + _UINT
    + rb"\xafProtocolVersion([\x00-\x7f])\xa4Term"
    + _UINT,
    re.DOTALL,
)
_APPEND_RESPONSE_TAIL: Final = re.compile(
    _UINT
    + rb"\xaeNoRetryBackoff([\xc2\xc3])\xafProtocolVersion([\x00-\x7f])"
    + rb"\xa7Success([\xc2\xc3])\xa4Term"
    + _UINT,
    re.DOTALL,
)
# A peer may send a byte a packet. So many small pieces in a row become one: each costs 33 bytes
# beyond its own, which of pieces of two bytes makes 28 times the memory.
_PIECES_MAX: Final = 64
_PIECES_SIZE_BYTES_MIN: Final = _PIECES_MAX * 256


class Answer(NamedTuple):
    """What came back for one request; `response` is None where the body was nil.

    `error` is empty on success; then `response` is never None.
    """

    error: str
    response: Response | None


class _Decoder:
    """Pieces in, events out. After an error every further call raises it again."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._reader = Reader(limits)
        self._fresh: list[bytes] = []
        self._fresh_size = 0
        # Pieces, and bytes in them, that stay as they are until they are joined with all others.
        self._settled = 0
        self._settled_size = 0
        self._needs = 0
        # Bytes of the current frame that are no longer in the reader's buffer.
        self._frame_gone = 0
        self._in_frame = False
        self._capped = False
        self._frame_start = 0
        self._error: ProtocolError | None = None
        self._steps: Generator[Any, None, None] = self._frames()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream; `next` says what they complete."""
        reader = self._reader
        if not self._in_frame and not self._fresh and reader.pos >= len(reader.buf):
            # Between two frames: no need to join anything.
            reader.buf, reader.pos = data, 0
            self._needs = 0
            return
        self._fresh.append(data)
        self._fresh_size += len(data)
        if len(self._fresh) - self._settled >= _PIECES_MAX:
            self._settle()

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete: truncated, if the stream ends here."""
        return self._in_frame or self._fresh_size > 0

    @property
    def buffered(self) -> int:
        """Bytes held that no event has handed out."""
        return len(self._reader.buf) - self._reader.pos + self._fresh_size

    def close(self) -> None:
        """Let go of everything held; to be called when the stream has ended.

        The decoder at work refers to this object and this object to it: without this call, a large
        frame cut short would stay in memory until a full garbage collection.
        """
        if self._error is None:
            self._error = ProtocolError("the stream has ended")
        self._steps.close()
        self._fresh.clear()
        self._fresh_size = self._settled = self._settled_size = 0
        self._reader.buf = b""
        self._reader.pos = 0

    def _frames(self) -> Generator[Any, None, None]:
        raise NotImplementedError

    def _expected(self) -> Any:
        """The next event, where it is as predicted and here whole; else None, and nothing taken."""
        raise NotImplementedError

    def _next(self) -> Any:
        """The next event, or None until more bytes come."""
        if self._error is not None:
            raise self._error
        if not self._in_frame and not self._fresh:
            if self._reader.pos >= len(self._reader.buf):
                return None
            item = self._expected()
            if item is not None:
                return item
        try:
            while True:
                if self._needs:
                    if self._available() < self._needs:
                        return None
                    self._join()
                item = next(self._steps)
                if not isinstance(item, int):
                    return item
                self._needs = item
                self._check_frame_size(item)
        except ProtocolError as error:
            self._error = error
            self.close()
            raise

    def _available(self) -> int:
        return len(self._reader.buf) - self._reader.pos + self._fresh_size

    def _settle(self) -> None:
        if self._fresh_size - self._settled_size < _PIECES_SIZE_BYTES_MIN:
            self._fresh[self._settled :] = [b"".join(self._fresh[self._settled :])]
        self._settled = len(self._fresh)
        self._settled_size = self._fresh_size

    def _join(self) -> None:
        reader = self._reader
        self._frame_gone += reader.pos - self._frame_start
        self._frame_start = 0
        if reader.pos < len(reader.buf):
            self._fresh.insert(0, reader.buf[reader.pos :])
        reader.buf = self._fresh[0] if len(self._fresh) == 1 else b"".join(self._fresh)
        reader.pos = 0
        self._fresh.clear()
        self._fresh_size = self._settled = self._settled_size = 0
        self._needs = 0

    def _begin_frame(self) -> None:
        self._in_frame = self._capped = True
        self._frame_gone = 0
        self._frame_start = self._reader.pos
        self._reader.begin_frame()

    def _end_frame(self) -> None:
        self._check_frame_size(0)
        self._in_frame = self._capped = False

    def _check_frame_size(self, more: int) -> None:
        if not self._capped:
            return
        size = self._frame_gone + self._reader.pos - self._frame_start + more
        if size > self._limits.frame_size_bytes_max:
            raise FrameTooLargeError(
                f"a frame of at least {size} bytes", option="WireLimits.frame_size_bytes_max"
            )


class RequestDecoder(_Decoder):
    """What a server reads: requests, and the raw body behind each InstallSnapshot.

    After an `InstallSnapshotRequest` the next events are `bytes`, `size` of them in all, in pieces
    as they come; then requests again.
    """

    def __init__(self, limits: WireLimits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._entries = EntriesDecoder()
        self._entries_max = limits.entries_max
        # The constant bytes of the AppendEntries of this stream, once one has been seen.
        self._header = RPCHeader(0)
        self._leader = ServerAddress("")
        self._append_head = b""
        self._append_middle = b""

    def close(self) -> None:
        """Let go of everything held, entries of an unfinished frame too."""
        super().close()
        self._entries.clear()

    def next(self) -> Request | bytes | None:
        """The next request or piece of a snapshot's body; None until more bytes come.

        Raises:
            ProtocolError: the stream is beyond repair; close it.
        """
        item: Request | bytes | None = self._next()
        return item

    def _frames(self) -> Generator[Any, None, None]:
        reader = self._reader
        while True:
            while reader.pos >= len(reader.buf):
                yield 1
            self._begin_frame()
            rpc = reader.buf[reader.pos]
            fields = REQUEST_FIELDS.get(rpc)
            if fields is None:
                raise ProtocolError(f"unknown rpc type {rpc}")
            reader.pos += 1
            if rpc == APPEND_ENTRIES:
                request: Request = yield from self._append()
            else:
                request = request_of(rpc, (yield from reader.struct(fields)))
            if isinstance(request, InstallSnapshotRequest):
                self._check_snapshot(request)
                self._end_frame()
                yield request
                yield from self._body(request.size)
            else:
                self._end_frame()
                yield request

    def _body(self, left: int) -> Generator[Any, None, None]:
        # Handed out as it comes, so no cap: any size may be right.
        reader = self._reader
        while left:
            self._in_frame = True
            while reader.pos >= len(reader.buf):
                yield 1
            start = reader.pos
            reader.pos = min(len(reader.buf), start + left)
            left -= reader.pos - start
            self._in_frame = left > 0
            yield reader.buf[start : reader.pos]

    @staticmethod
    def _check_snapshot(request: InstallSnapshotRequest) -> None:
        if request.size < 0:
            raise ProtocolError("InstallSnapshot of a negative size")
        if request.configuration:
            decode_configuration(request.configuration)

    def _expected(self) -> AppendEntriesRequest | None:
        """An AppendEntries that begins and ends as the one before on this stream did."""
        reader, head = self._reader, self._append_head
        buf, start = reader.buf, reader.pos
        if not head or not buf.startswith(head, start):
            return None
        at = start + len(head)
        try:
            byte = buf[at]
            if byte == 0xDC:
                count = buf[at + 1] << 8 | buf[at + 2]
                reader.pos = at + 3
            elif 0x90 <= byte < 0xA0 or byte == 0xC0:
                count = byte - 0x90 if byte < 0xA0 else 0
                reader.pos = at + 1
            else:
                return None
        except IndexError:
            return None
        entries = self._entries
        if (not count or entries.decode_predicted(reader, count)) and count <= self._entries_max:
            at = reader.pos
            if buf.startswith(self._append_middle, at):
                match = _APPEND_TAIL.match(buf, at + len(self._append_middle))
                if match is not None and match[4][0] == self._header.protocol_version:
                    commit, prev, prev_term, _, term = match.groups()
                    reader.pos = end = match.end()
                    if end - start <= self._limits.frame_size_bytes_max:
                        prev_index = _number(prev)
                        return AppendEntriesRequest(
                            self._header,
                            _number(term),
                            self._leader,
                            prev_index,
                            _number(prev_term),
                            entries.finish(prev_index),
                            _number(commit),
                        )
        entries.clear()
        reader.pos = start
        return None

    def _append(self) -> Steps[AppendEntriesRequest]:
        """An AppendEntries in any form."""
        reader = self._reader
        fields = REQUEST_FIELDS[APPEND_ENTRIES]
        self._entries.clear()
        pairs = yield from reader.struct_head(len(fields) + 1)
        values: dict[bytes, Any] = {}
        for _ in range(pairs):
            key = yield from reader.key()
            if key == b"Entries":
                yield from self._decode_entries()
                continue
            what = fields.get(key)
            if what is None:
                yield from reader.skip()
            else:
                values[key] = yield from reader.value(what, key)
        request = append_request_of(values, self._entries.finish(values.get(b"PrevLogEntry", 0)))
        self._expect(request.header, request.leader)
        return request

    def _decode_entries(self) -> Steps[None]:
        count = yield from self._reader.array_head()
        if count > self._limits.entries_max:
            raise FrameTooLargeError(f"{count} entries", option="WireLimits.entries_max")
        yield from self._entries.decode(self._reader, max(count, 0))

    def _expect(self, header: RPCHeader, leader: ServerAddress) -> None:
        """The next AppendEntries on this stream begins like one from this header."""
        if header == self._header and leader == self._leader and self._append_head:
            return
        self._header, self._leader = header, leader
        self._append_head = b"\x00\x89\xa4Addr" + pack_name(header.address) + b"\xa7Entries"
        self._append_middle = b"".join(
            (
                b"\xa2ID",
                pack_name(header.id),
                b"\xa6Leader",
                pack_name(leader),
                b"\xb1LeaderCommitIndex",
            )
        )


class ResponseDecoder(_Decoder):
    """What a client reads: one answer for each request it sent, in order."""

    def __init__(self, limits: WireLimits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._awaited: deque[int] = deque()
        self._header = RPCHeader(0)
        self._append_head = b""

    def expect(self, rpc: int) -> None:
        """A request of this kind goes out: its answer follows those expected already."""
        self._awaited.append(rpc)

    def next(self) -> Answer | None:
        """The next answer; None until more bytes come.

        Raises:
            ProtocolError: garbage, or an answer nobody asked for; close the stream.
        """
        item: Answer | None = self._next()
        return item

    def _frames(self) -> Generator[Any, None, None]:
        reader = self._reader
        while True:
            while reader.pos >= len(reader.buf):
                yield 1
            if not self._awaited:
                raise ProtocolError("an answer to no request")
            self._begin_frame()
            rpc = self._awaited.popleft()
            error = yield from self._error_text()
            answer = yield from self._body(rpc, error)
            self._end_frame()
            yield answer

    def _expected(self) -> Answer | None:
        """An answer to an AppendEntries that looks like the one before."""
        reader, head, awaited = self._reader, self._append_head, self._awaited
        if not head or not awaited or awaited[0] != APPEND_ENTRIES:
            return None
        if not reader.buf.startswith(head, reader.pos):
            return None
        match = _APPEND_RESPONSE_TAIL.match(reader.buf, reader.pos + len(head))
        if match is None:
            return None
        last_log, no_retry_backoff, version, success, term = match.groups()
        if version[0] != self._header.protocol_version:
            return None
        awaited.popleft()
        reader.pos = match.end()
        return Answer(
            "",
            AppendEntriesResponse(
                self._header,
                _number(term),
                _number(last_log),
                success == b"\xc3",
                no_retry_backoff == b"\xc3",
            ),
        )

    def _error_text(self) -> Steps[str]:
        reader = self._reader
        kind, size = yield from reader.head()
        if kind == NIL:
            return ""
        if kind != RAW and kind != BIN:
            what = "an integer" if kind == INT else "no string"
            raise ProtocolError(f"the error text of an answer is {what}")
        if size > self._limits.text_size_bytes_max:
            raise FrameTooLargeError(
                f"an error text of {size} bytes", option="WireLimits.text_size_bytes_max"
            )
        raw = yield from reader.take(size)
        return raw.decode("utf-8", "replace")

    def _body(self, rpc: int, error: str) -> Steps[Answer]:
        reader = self._reader
        while reader.pos >= len(reader.buf):
            yield 1
        if error and reader.buf[reader.pos] == 0xC0:
            reader.pos += 1
            return Answer(error, None)
        fields = RESPONSE_FIELDS[rpc]
        values = yield from reader.struct(fields)
        response = response_of(rpc, values)
        if rpc == APPEND_ENTRIES and response.header != self._header:
            self._header = header = header_of(values)
            self._append_head = b"".join(
                (
                    b"\xa0\x87\xa4Addr",
                    pack_name(header.address),
                    b"\xa2ID",
                    pack_name(header.id),
                    b"\xa7LastLog",
                )
            )
        return Answer(error, response)


def _number(raw: bytes) -> int:
    return raw[0] if len(raw) == 1 else int.from_bytes(raw[1:], "big")


def check_append(request: AppendEntriesRequest) -> None:
    """Check what one AppendEntries says in itself: its entries follow the one before them.

    Raises:
        ProtocolError: they do not.
    """
    entries = request.entries
    if entries.records and entries.first != request.prev_log_index + 1:
        raise ProtocolError(
            f"entries begin at {entries.first}, behind entry {request.prev_log_index}"
        )
