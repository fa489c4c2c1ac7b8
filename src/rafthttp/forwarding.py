"""Commands and read indexes on their way to the leader: the bodies of a forward, and its batches.

Knows msgpack and errors; how a body reaches the leader is the caller's (`Send`). A body never is
sent twice: what may have reached a leader is *outcome unknown* when no answer comes.

Request, op `apply`: msgpack `[1, milliseconds, [command, ...]]`; op `read_index`:
`[1, milliseconds]`. Answer: `[1, [item, ...]]`, one item a command (one for a read index):
`[0, result]`, `[1, text]` (the state machine raised), or `[2, kind, text, outcome, leader]`, where
`leader` is nil or `[id, address]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeGuard

import msgpack

from rafthttp.raft.errors import (
    DifferentLeaderError,
    EntryTooLargeError,
    ForwardError,
    LeadershipLostError,
    LeadershipTransferError,
    NotLeaderError,
    Outcome,
    OverloadedError,
    RaftError,
    RaftHttpError,
    RemoteApplyError,
    RequestReusedError,
    SessionExpiredError,
    ShutdownError,
    StorageFailedError,
    TimedOutError,
    UnknownLeaderError,
    told,
)
from rafthttp.raft.types import Index, Leader, ServerAddress, ServerID

VERSION: Final = 1
APPLY: Final = "apply"
READ_INDEX: Final = "read_index"

_OK: Final = 0
_RAISED: Final = 1
_REFUSED: Final = 2

# Bounds of one forward: a batch of small commands costs one HTTP request, and one of large ones
# does not hold up the small ones behind it for long. A single command may exceed the size.
BATCH_COMMANDS_MAX: Final = 1024
BATCH_SIZE_BYTES_MAX: Final = 1 << 20
# Forwards on their way at once. More only make the batches smaller.
INFLIGHT_FORWARDS_MAX: Final = 8

_KINDS: Final[dict[str, type[RaftError]]] = {
    kind.__name__: kind
    for kind in (
        DifferentLeaderError,
        EntryTooLargeError,
        ForwardError,
        LeadershipLostError,
        LeadershipTransferError,
        NotLeaderError,
        OverloadedError,
        RequestReusedError,
        SessionExpiredError,
        ShutdownError,
        StorageFailedError,
        TimedOutError,
        UnknownLeaderError,
    )
}


class ForwardRefusedError(DifferentLeaderError):
    """The leader takes no forwards (hashicorp/raft's), or not ours; nothing was proposed there."""


class ForwardFormatError(RaftHttpError, ValueError):
    """A body is not one of ours, or of another version."""


# -- bodies


def encode_commands(commands: Sequence[bytes], timeout: float) -> bytes:
    """The body of an `apply`; `timeout` in seconds is for all commands."""
    return msgpack.packb([VERSION, _milliseconds(timeout), list(commands)])


def decode_commands(body: bytes) -> tuple[list[bytes], float]:
    """The commands and the timeout in seconds.

    Raises:
        ForwardFormatError: see there.
    """
    fields = _unpack(body, 3)
    commands: object = fields[2]
    if not _is_list(commands):
        raise ForwardFormatError("a forward without commands")
    if not all(isinstance(command, bytes) for command in commands):
        raise ForwardFormatError("a command that is not bytes")
    return commands, _seconds(fields[1])


def encode_read_index(timeout: float) -> bytes:
    """The body of a `read_index`."""
    return msgpack.packb([VERSION, _milliseconds(timeout)])


def decode_read_index(body: bytes) -> float:
    """The timeout in seconds.

    Raises:
        ForwardFormatError: see there.
    """
    return _seconds(_unpack(body, 2)[1])


def encode_answers(answers: Sequence[object]) -> bytes:
    """One item an answer; an exception becomes an error on the other side."""
    packer = msgpack.Packer()
    items = b"".join(_item(packer, answer) for answer in answers)
    head = packer.pack_array_header(2) + packer.pack(VERSION)
    return head + packer.pack_array_header(len(answers)) + items


def decode_answers(body: bytes, count: int) -> list[object]:
    """Exactly `count` answers; exceptions stand for errors.

    Raises:
        ForwardFormatError: see there.
    """
    items: object = _unpack(body, 2)[1]
    if not _is_list(items) or len(items) != count:
        raise ForwardFormatError(f"not {count} answers")
    return [_answer(item) for item in items]


def decode_index(leader: Leader, body: bytes) -> Index:
    """The index a leader answered.

    Raises:
        RaftError: what it answered instead.
    """
    try:
        index = decode_answers(body, 1)[0]
    except ForwardFormatError as error:
        text = f"the leader {leader.id} answered what cannot be read: {error}"
        raise ForwardError(text, leader=leader) from error
    if isinstance(index, RaftError):
        raise index
    if not isinstance(index, int):
        raise ForwardError(f"the leader {leader.id} answered no index", leader=leader)
    return index


def _item(packer: msgpack.Packer, answer: object) -> bytes:
    if isinstance(answer, RaftError):
        kind = next((n for n in _mro_names(answer) if n in _KINDS), ForwardError.__name__)
        leader = None if answer.leader is None else list(answer.leader)
        return packer.pack([_REFUSED, kind, str(answer), answer.outcome.value, leader])
    if isinstance(answer, Exception):
        return packer.pack([_RAISED, told(answer)])
    try:
        return packer.pack([_OK, answer])
    except (TypeError, ValueError, OverflowError) as error:
        packer.reset()
        text = f"applied, but its result of type {type(answer).__name__} cannot cross: {error}"
        return packer.pack([_RAISED, text])


def _mro_names(error: Exception) -> list[str]:
    return [cls.__name__ for cls in type(error).__mro__]


def _answer(item: Any) -> object:
    match item:
        case [0, result]:
            return result
        case [1, str(text)]:
            return RemoteApplyError(text)
        case [2, str(kind), str(text), str(outcome), leader]:
            return _KINDS.get(kind, ForwardError)(
                text, outcome=_outcome(outcome), leader=_leader(leader)
            )
        case _:
            raise ForwardFormatError("an answer of an unknown form")


def _outcome(text: str) -> Outcome:
    # What is not understood is not known.
    return Outcome.DEFINITE if text == Outcome.DEFINITE.value else Outcome.UNKNOWN


def _leader(value: Any) -> Leader | None:
    match value:
        case [str(server_id), str(address)]:
            return Leader(ServerID(server_id), ServerAddress(address))
        case _:
            return None


def _unpack(body: bytes, count: int) -> list[Any]:
    try:
        value: object = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ForwardFormatError(f"not msgpack: {error}") from error
    if not _is_list(value) or not value:
        raise ForwardFormatError("not an array")
    if value[0] != VERSION:
        raise ForwardFormatError(f"version {value[0]!r} is unknown here (this is {VERSION})")
    if len(value) < count:
        raise ForwardFormatError("fields are missing")
    return value


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _milliseconds(timeout: float) -> int:
    return max(1, int(timeout * 1000))


def _seconds(value: object) -> float:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 3_600_000:
        raise ForwardFormatError("a timeout that is none")
    return value / 1000


# -- the leader's side


class _Server(Protocol):
    """What a forward needs of `Raft`."""

    async def apply(self, data: bytes, *, timeout: float | None = None) -> Any: ...
    async def confirm_read_index(self, *, timeout: float | None = None) -> Index: ...
    def flush_commit(self) -> None: ...


async def answer(raft: _Server, op: str, body: bytes) -> bytes:
    """Do what a forward asks, on this server; it is never forwarded further.

    Raises:
        ForwardFormatError: the body or the operation is unknown; nothing was proposed.
    """
    if op == APPLY:
        commands, timeout = decode_commands(body)
        calls = [raft.apply(command, timeout=timeout) for command in commands]
        return encode_answers(await asyncio.gather(*calls, return_exceptions=True))
    if op == READ_INDEX:
        return encode_answers([await _confirm(raft, decode_read_index(body))])
    raise ForwardFormatError(f"operation {op[:40]!r} is unknown")


async def _confirm(raft: _Server, timeout: float) -> Index | RaftError:
    try:
        index = await raft.confirm_read_index(timeout=timeout)
    except RaftError as error:
        return error
    raft.flush_commit()  # the follower that asked waits until it is told of this commit
    return index


# -- batches

Send: TypeAlias = Callable[[Leader, bytes, float], Awaitable[bytes]]
"""PUTs one body to the leader within seconds; returns the answer's body or raises `RaftError`."""


@dataclass(slots=True, eq=False)
class _Item:
    data: bytes
    timeout: float
    answer: asyncio.Future[Any]
    sent: bool = False


class Forwarder:
    """Sends commands to the leader; those of one turn, and those that had to wait, in one request.

    Args:
        send: see `Send`.
        pending_bytes_max: bytes of commands waiting or under way, over which `OverloadedError`.
    """

    def __init__(self, send: Send, *, pending_bytes_max: int) -> None:
        self._send = send
        self._pending_bytes_max = pending_bytes_max
        self._pending_bytes = 0
        self._waiting: dict[Leader, list[_Item]] = {}
        self._inflight: dict[Leader, set[asyncio.Task[None]]] = {}
        self._scheduled = False

    async def apply(self, leader: Leader, data: bytes, timeout: float) -> Any:
        """The state machine's answer, within `timeout` seconds.

        Raises:
            RemoteApplyError: see there.
            OverloadedError: definite.
            RaftError: what the leader said, or `ForwardError`, `TimedOutError`.
        """
        if self._pending_bytes and self._pending_bytes + len(data) > self._pending_bytes_max:
            raise OverloadedError("too many bytes wait to be forwarded", leader=leader)
        loop = asyncio.get_running_loop()
        item = _Item(data, timeout, loop.create_future())
        self._pending_bytes += len(data)
        self._waiting.setdefault(leader, []).append(item)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        try:
            async with asyncio.timeout(timeout):
                return await item.answer
        except TimeoutError:
            raise TimedOutError(
                f"no answer from the leader {leader.id} within {timeout:g} s",
                outcome=Outcome.UNKNOWN if item.sent else Outcome.DEFINITE,
                leader=leader,
            ) from None
        finally:
            item.answer.cancel()
            self._pending_bytes -= len(data)

    async def close(self) -> None:
        """End what is under way: outcome unknown."""
        for items in self._waiting.values():
            for item in items:
                _fail(item, ShutdownError("the node was stopped", outcome=Outcome.DEFINITE))
        self._waiting.clear()
        tasks = [task for tasks in self._inflight.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _flush(self) -> None:
        self._scheduled = False
        for leader in list(self._waiting):
            self._flush_to(leader)

    def _flush_to(self, leader: Leader) -> None:
        tasks = self._inflight.setdefault(leader, set())
        while len(tasks) < INFLIGHT_FORWARDS_MAX:
            batch = self._take(leader)
            if not batch:
                break
            task = asyncio.get_running_loop().create_task(self._forward(leader, batch))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: self._flush_to(leader))
        if not tasks:
            self._inflight.pop(leader, None)

    def _take(self, leader: Leader) -> list[_Item]:
        waiting = self._waiting.pop(leader, [])
        batch: list[_Item] = []
        size = 0
        for position, item in enumerate(waiting):
            if item.answer.done():
                continue  # its caller has gone; it was never sent
            full = len(batch) == BATCH_COMMANDS_MAX or size + len(item.data) > BATCH_SIZE_BYTES_MAX
            if batch and full:
                self._waiting[leader] = waiting[position:]
                break
            batch.append(item)
            size += len(item.data)
        return batch

    async def _forward(self, leader: Leader, batch: list[_Item]) -> None:
        timeout = max(item.timeout for item in batch)
        for item in batch:
            item.sent = True
        try:
            body = encode_commands([item.data for item in batch], timeout)
            answers = decode_answers(await self._send(leader, body, timeout), len(batch))
        except RaftError as error:
            answers = [error] * len(batch)
        except ForwardFormatError as error:
            text = f"the leader {leader.id} answered what cannot be read: {error}"
            answers = [ForwardError(text, leader=leader)] * len(batch)
        except asyncio.CancelledError:
            for item in batch:
                _fail(item, ShutdownError("the node was stopped", outcome=Outcome.UNKNOWN))
            raise
        for item, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                _fail(item, answer)
            elif not item.answer.done():
                item.answer.set_result(answer)


def _fail(item: _Item, error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)


def raise_for_status(
    leader: Leader, status: int, text: str, *, nothing_done: bool = False
) -> NoReturn:
    """What an HTTP status other than 200 of a forward means.

    `nothing_done` is what the answer's header says: without it a 503 may be that of a proxy whose
    connection broke behind the request.

    Raises:
        RaftError: definite where the leader refused before it looked at the body.
    """
    said = f"the leader {leader.id} answered {status}" + (f": {text}" if text else "")
    if status == 405:
        raise ForwardRefusedError(
            f"the leader {leader.id} takes no forwarded commands; send them to {leader.address}",
            leader=leader,
        )
    if status in {400, 401, 403, 404, 411, 415, 426}:
        raise ForwardRefusedError(said, leader=leader)
    if status == 413:
        raise EntryTooLargeError(said, leader=leader)
    if status == 503 and nothing_done:
        raise UnknownLeaderError(said)
    raise ForwardError(said, outcome=Outcome.UNKNOWN, leader=leader)
