"""A strict, independent reader of what one member sends to a real hashicorp/raft process.

Knows the bytes Go itself writes and the rules of what kills or misleads a Go process; shares no
code with `rafthttp.raft.wire`, so that a mistake there is not made twice. Fields have one order and
one encoding: reading is comparing with what must come next.

A connection that was cut ends in the middle of a message; that is no violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

APPEND_ENTRIES, REQUEST_VOTE, INSTALL_SNAPSHOT, TIMEOUT_NOW, REQUEST_PRE_VOTE = range(5)
KINDS: Final = ("AppendEntries", "RequestVote", "InstallSnapshot", "TimeoutNow", "RequestPreVote")

_NIL, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3
_PROTOCOL_VERSION: Final = 3
_CONFIGURATION: Final = 5
_LOG_TYPES: Final = (0, 1, 4, _CONFIGURATION)  # 2 and 3 are deprecated and never sent
_SUFFRAGES: Final = (0, 1, 2)  # voter, nonvoter, and staging, which to Go is a nonvoter too
_NANOSECONDS: Final = 1_000_000_000
_OFFSET_UTC: Final = -1
_OFFSET_MINUTES_MAX: Final = 24 * 60


class _CutError(Exception):
    """The recording ends inside a message."""


class ViolationError(Exception):
    """These bytes are none a hashicorp/raft server may be sent."""


@dataclass(slots=True)
class Sent:
    """What one side of one connection sent.

    Attributes:
        kinds: how many whole messages of each kind; `entries` and `configurations` count what they
            carried, `heartbeats` how many AppendEntries were one.
        rpcs: type byte of each request, in order; of the last one maybe only a part was sent.
        senders: id and address in the headers of requests.
        entries_max: most entries in one AppendEntries.
        grants: whether each vote and pre-vote asked for was granted, by kind, in order.
    """

    kinds: Counter[str] = field(default_factory=Counter[str])
    rpcs: list[int] = field(default_factory=list[int])
    senders: set[tuple[bytes, bytes]] = field(default_factory=set[tuple[bytes, bytes]])
    entries_max: int = 0
    grants: dict[str, list[bool]] = field(default_factory=dict[str, list[bool]])


class _Cursor:
    """A place in recorded bytes; every read is strict."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise _CutError
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise _CutError
        self.at += 1
        return self.data[self.at - 1]

    def expect(self, octets: bytes, what: str) -> None:
        """These bytes come next; a beginning of them may end the recording."""
        found = self.data[self.at : self.at + len(octets)]
        if found != octets:
            if octets.startswith(found):
                raise _CutError
            raise ViolationError(f"{what}: {octets!r} is due, and here is {found!r}")
        self.at += len(octets)

    def key(self, name: str) -> None:
        self.expect(bytes([0xA0 | len(name)]) + name.encode(), f"the field {name}")

    def map_of(self, count: int, what: str) -> None:
        self.expect(bytes([0x80 | count]), f"{what} with {count} fields")

    def raw(self) -> bytes | None:
        """Bytes in the shortest of the three old raw types; None for nil."""
        head = self.byte()
        if head == _NIL:
            return None
        if 0xA0 <= head <= 0xBF:
            return self.take(head & 0x1F)
        if head not in {0xDA, 0xDB}:
            raise ViolationError(f"0x{head:02x} where fixraw, raw16, raw32 or nil is due")
        width = 2 if head == 0xDA else 4
        size = int.from_bytes(self.take(width), "big")
        if size <= (0x1F if width == 2 else 0xFFFF):
            raise ViolationError(f"{size} bytes in a raw{8 * width}")
        return self.take(size)

    def name(self, name: str) -> bytes:
        self.key(name)
        return self.raw() or b""

    def uint(self, name: str) -> int:
        """An unsigned integer in its shortest form."""
        self.key(name)
        head = self.byte()
        if head <= 0x7F:
            return head
        if not 0xCC <= head <= 0xCF:
            raise ViolationError(f"{name}: 0x{head:02x} where an unsigned integer is due")
        width = 1 << (head - 0xCC)
        value = int.from_bytes(self.take(width), "big")
        if value < (0x80 if width == 1 else 1 << 4 * width):
            raise ViolationError(f"{name}: {value} in {width} bytes")
        return value

    def signed(self, name: str) -> int:
        """A signed integer, which here is never negative, as go-msgpack writes it."""
        self.key(name)
        head = self.byte()
        if head <= 0x7F:
            return head
        if not 0xD1 <= head <= 0xD3:
            raise ViolationError(f"{name}: 0x{head:02x} where a signed integer is due")
        width = 1 << (head - 0xD0)
        value = int.from_bytes(self.take(width), "big", signed=True)
        if value < (0x80 if width == 2 else 1 << (4 * width - 1)):
            raise ViolationError(f"{name}: {value} in {width} bytes")
        return value

    def flag(self, name: str) -> bool:
        self.key(name)
        head = self.byte()
        if head not in {_FALSE, _TRUE}:
            raise ViolationError(f"{name}: 0x{head:02x} where a bool is due")
        return head == _TRUE

    def array(self) -> int | None:
        """The number of elements; None for nil."""
        head = self.byte()
        if head == _NIL:
            return None
        if 0x90 <= head <= 0x9F:
            return head & 0x0F
        if head not in {0xDC, 0xDD}:
            raise ViolationError(f"0x{head:02x} where an array is due")
        count = int.from_bytes(self.take(2 if head == 0xDC else 4), "big")
        if count <= (0x0F if head == 0xDC else 0xFFFF):
            raise ViolationError(f"{count} elements in the form 0x{head:02x}")
        return count


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise ViolationError(text)


# -- requests


class RequestChecker:
    """Reads the requests of one connection.

    Args:
        ours: also holds the sender to what only our members promise: the clamp of the commit
            index, terms in order, who it says it is. Without it, what Go itself sends passes.
    """

    def __init__(self, *, ours: bool) -> None:
        self.sent = Sent()
        self._ours = ours

    def read(self, data: bytes, at: int = 0) -> None:
        """Read all from `at` on.

        Raises:
            ViolationError: with the offset, what was due and what is there.
        """
        cursor = _Cursor(data, at)
        readers: dict[int, Callable[[_Cursor], None]] = {
            APPEND_ENTRIES: self._append_entries,
            REQUEST_VOTE: self._request_vote,
            INSTALL_SNAPSHOT: self._install_snapshot,
            TIMEOUT_NOW: self._timeout_now,
            REQUEST_PRE_VOTE: self._request_pre_vote,
        }
        while cursor.at < len(data):
            begin = cursor.at
            rpc = cursor.byte()
            self.sent.rpcs.append(rpc)
            try:
                _check(rpc in readers, f"RPC byte 0x{rpc:02x}")
                readers[rpc](cursor)
            except _CutError:
                return
            except ViolationError as error:
                near = data[max(begin, cursor.at - 40) : cursor.at + 40]
                raise ViolationError(
                    f"message at {begin}, byte {cursor.at}: {error} near {near!r}"
                ) from None
            self.sent.kinds[KINDS[rpc]] += 1

    def _header(self, address: bytes, sender: bytes, version: int) -> None:
        self.sent.senders.add((sender, address))
        if self._ours:
            _check(bool(address) and bool(sender), "an empty address or id in the header")
            _check(version == _PROTOCOL_VERSION, f"protocol version {version}")
            _check(len(self.sent.senders) == 1, "two senders on one connection")

    def _append_entries(self, cursor: _Cursor) -> None:
        cursor.map_of(9, "AppendEntries")
        address = cursor.name("Addr")
        cursor.key("Entries")
        count = cursor.array()
        entries = [_entry(cursor) for _ in range(count or 0)]
        sender = cursor.name("ID")
        leader = cursor.name("Leader")
        commit = cursor.uint("LeaderCommitIndex")
        previous, previous_term = cursor.uint("PrevLogEntry"), cursor.uint("PrevLogTerm")
        version, term = cursor.signed("ProtocolVersion"), cursor.uint("Term")
        self.sent.kinds["entries"] += len(entries)
        self.sent.entries_max = max(self.sent.entries_max, len(entries))
        self.sent.kinds["configurations"] += sum(kind == _CONFIGURATION for _, _, kind in entries)
        self._header(address, sender, version)
        if not self._ours:
            return
        if not term:  # how far does its log go? Asked by one that leads nobody, refused by all
            _check(not (previous or entries or commit), "term 0 with something to say")
            self.sent.kinds["probes"] += 1
            return
        _check(leader == address, f"Leader {leader!r} is not Addr {address!r}")
        _check((previous == 0) == (previous_term == 0), f"entry {previous} of term {previous_term}")
        last_term = previous_term
        for number, (index, entry_term, _) in enumerate(entries, previous + 1):
            _check(index == number, f"entry {index} where {number} is due")
            _check(last_term <= entry_term <= term, f"entry {index} of term {entry_term}")
            last_term = entry_term
        # Go commits min(its last index, this): further than what was compared is another's tail.
        _check(commit <= previous + len(entries), f"commit {commit} behind {previous} + entries")
        if not (previous or entries or commit):
            _check(count is None, "a heartbeat with an array of entries")
            self.sent.kinds["heartbeats"] += 1

    def _request_vote(self, cursor: _Cursor) -> None:
        cursor.map_of(8, "RequestVote")
        address, candidate = cursor.name("Addr"), cursor.name("Candidate")
        sender = cursor.name("ID")
        cursor.uint("LastLogIndex")
        last_term = cursor.uint("LastLogTerm")
        cursor.flag("LeadershipTransfer")
        version, term = cursor.signed("ProtocolVersion"), cursor.uint("Term")
        self._header(address, sender, version)
        if self._ours:
            _check(candidate == address, f"Candidate {candidate!r} is not Addr {address!r}")
            _check(last_term < term, f"a vote for term {term} behind a log of {last_term}")

    def _request_pre_vote(self, cursor: _Cursor) -> None:
        cursor.map_of(6, "RequestPreVote")
        address, sender = cursor.name("Addr"), cursor.name("ID")
        cursor.uint("LastLogIndex")
        last_term = cursor.uint("LastLogTerm")
        version, term = cursor.signed("ProtocolVersion"), cursor.uint("Term")
        self._header(address, sender, version)
        if term == 0:  # who lives there? Asked of a server that is to join, refused by every one
            self.sent.kinds["probes"] += 1
        elif self._ours:
            _check(last_term < term, f"a pre-vote for term {term} behind a log of {last_term}")

    def _install_snapshot(self, cursor: _Cursor) -> None:
        cursor.map_of(12, "InstallSnapshot")
        address = cursor.name("Addr")
        cursor.key("Configuration")
        configuration = cursor.raw()
        configuration_index = cursor.uint("ConfigurationIndex")
        sender = cursor.name("ID")
        last, last_term = cursor.uint("LastLogIndex"), cursor.uint("LastLogTerm")
        leader = cursor.name("Leader")
        cursor.key("Peers")
        cursor.raw()
        version, size = cursor.signed("ProtocolVersion"), cursor.signed("Size")
        snapshot_version, term = cursor.signed("SnapshotVersion"), cursor.uint("Term")
        self._header(address, sender, version)
        _check(snapshot_version == 1, f"snapshot version {snapshot_version}")
        check_configuration(configuration)
        if self._ours:
            _check(leader == address, f"Leader {leader!r} is not Addr {address!r}")
            _check(0 < last_term <= term, f"a snapshot of term {last_term} in term {term}")
            _check(0 < configuration_index <= last, f"configuration {configuration_index}")
        cursor.take(size)

    def _timeout_now(self, cursor: _Cursor) -> None:
        cursor.map_of(3, "TimeoutNow")
        address, sender = cursor.name("Addr"), cursor.name("ID")
        self._header(address, sender, cursor.signed("ProtocolVersion"))


def sender_address(data: bytes, at: int) -> bytes | None:
    """The address of who sends the request that begins at `at`; None where it is cut before it.

    Raises:
        ViolationError: no request begins so.
    """
    cursor = _Cursor(data, at)
    try:
        cursor.take(2)
        return cursor.name("Addr")
    except _CutError:
        return None


def _entry(cursor: _Cursor) -> tuple[int, int, int]:
    """Index, term and type of an entry."""
    cursor.map_of(6, "an entry")
    cursor.key("AppendedAt")
    head = cursor.byte()
    _check(head in {0xAF, 0xB0}, f"AppendedAt begins with 0x{head:02x}, not fixraw of 15 or 16")
    _check_time(cursor.take(head & 0x1F))
    cursor.key("Data")
    data = cursor.raw()
    cursor.key("Extensions")
    cursor.raw()
    index, term, kind = cursor.uint("Index"), cursor.uint("Term"), cursor.uint("Type")
    _check(index > 0, "entry 0")
    _check(kind in _LOG_TYPES, f"entry {index} of type {kind}")
    if kind == _CONFIGURATION:
        check_configuration(data)
    return index, term, kind


def _check_time(time: bytes) -> None:
    """What Go's `time.UnmarshalBinary` takes."""
    version = 1 if len(time) == 15 else 2
    _check(time[0] == version, f"AppendedAt of version {time[0]} in {len(time)} bytes")
    nanoseconds = int.from_bytes(time[9:13], "big")
    _check(nanoseconds < _NANOSECONDS, f"AppendedAt with {nanoseconds} ns")
    offset = int.from_bytes(time[13:15], "big", signed=True)
    _check(
        offset == _OFFSET_UTC or abs(offset) <= _OFFSET_MINUTES_MAX,
        f"AppendedAt with an offset of {offset} minutes",
    )


def check_configuration(data: bytes | None) -> list[tuple[bytes, bytes, int]]:
    """Id, address and suffrage of each server.

    Raises:
        ViolationError: a Go process would crash on it, or on what follows from it.
    """
    cursor = _Cursor(data or b"")
    servers: list[tuple[bytes, bytes, int]] = []
    try:
        cursor.map_of(1, "a configuration")
        cursor.key("Servers")
        for _ in range(cursor.array() or 0):
            cursor.map_of(3, "a server")
            address, server_id = cursor.name("Address"), cursor.name("ID")
            suffrage = cursor.signed("Suffrage")
            _check(bool(address) and bool(server_id), "a server without id or address")
            _check(suffrage in _SUFFRAGES, f"suffrage {suffrage}")
            servers.append((server_id, address, suffrage))
    except _CutError:
        raise ViolationError(f"a configuration that is cut off: {data!r}") from None
    _check(cursor.at == len(cursor.data), "bytes behind a configuration")
    ids, addresses = {server[0] for server in servers}, {server[1] for server in servers}
    _check(len(ids) == len(addresses) == len(servers), f"a server twice: {servers}")
    _check(any(server[2] == 0 for server in servers), "a configuration without a voter")
    return servers


# -- responses


def read_responses(rpcs: list[int], data: bytes, at: int = 0) -> Sent:
    """What one side answered to requests of these kinds, from `at` on.

    Raises:
        ViolationError: with the offset; also where there are more answers than requests.
    """
    cursor, sent = _Cursor(data, at), Sent()
    for rpc in rpcs:
        if cursor.at == len(data):
            return sent
        begin = cursor.at
        try:
            error = cursor.raw()
            _check(error is not None, "nil for the error text")
            if error and data[cursor.at : cursor.at + 1] == bytes([_NIL]):
                cursor.at += 1
            else:
                granted = _response(cursor, rpc)
                if granted is not None:
                    sent.grants.setdefault(KINDS[rpc], []).append(granted)
        except _CutError:
            return sent
        except ViolationError as violation:
            near = data[begin : cursor.at + 40]
            raise ViolationError(
                f"answer to {KINDS[rpc]} at {begin}, byte {cursor.at}: {violation} near {near!r}"
            ) from None
        sent.kinds["errors" if error else KINDS[rpc]] += 1
    _check(cursor.at == len(data), f"{len(data) - cursor.at} bytes that nobody asked for")
    return sent


def _response(cursor: _Cursor, rpc: int) -> bool | None:
    """Whether it grants what was asked for; None where it does neither."""
    granted = None
    cursor.map_of({APPEND_ENTRIES: 7, REQUEST_VOTE: 6, TIMEOUT_NOW: 3}.get(rpc, 5), KINDS[rpc])
    cursor.name("Addr")
    if rpc in {REQUEST_VOTE, REQUEST_PRE_VOTE}:
        granted = cursor.flag("Granted")
    cursor.name("ID")
    if rpc == APPEND_ENTRIES:
        cursor.uint("LastLog")
        cursor.flag("NoRetryBackoff")
    if rpc == REQUEST_VOTE:
        cursor.key("Peers")
        cursor.raw()
    version = cursor.signed("ProtocolVersion")
    _check(version in {0, _PROTOCOL_VERSION}, f"protocol version {version}")
    if rpc in {APPEND_ENTRIES, INSTALL_SNAPSHOT}:
        cursor.flag("Success")
    if rpc != TIMEOUT_NOW:
        cursor.uint("Term")
    return granted


# -- the handshake


def head_size(data: bytes) -> int | None:
    """Bytes of an HTTP head, with its blank line; None where it is not whole."""
    end = data.find(b"\r\n\r\n")
    return None if end < 0 else end + 4


def check_upgrade(head: bytes) -> None:
    """A request that raft-http upgrades: its server compares the one value with its case.

    Raises:
        ViolationError: it would answer 400.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    _check(first.startswith("GET /") and first.endswith(" HTTP/1.1"), f"request line {first!r}")
    values = [line[8:].strip() for line in lines if line.lower().startswith("upgrade:")]
    _check(values == ["raft"], f"Upgrade: {values}")


def check_switching(head: bytes) -> None:
    """An answer that raft-http's dialer takes.

    Raises:
        ViolationError: it would give up.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    _check(first.startswith("HTTP/1.1 101 "), f"status line {first!r}")
    values = [line[8:].strip() for line in lines if line.lower().startswith("upgrade:")]
    _check(values == ["raft"], f"Upgrade: {values}")
