"""`/kv/{key}`: the requests that a service is for, as one ASGI application.

Knows ASGI messages and the public `Node`; keeps nothing but the sum of the bodies in memory. Plain
ASGI, because Starlette's objects and layers cost a request as much as all the rest together
(docs/performance.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from starlette.datastructures import QueryParams

from rafthttp import EntryTooLargeError, Node, OverloadedError, SessionRequest
from rafthttp.kv.access import App, Receive, Scope, Send, error_response, route_path
from rafthttp.kv.commands import Operation, check_key, encode_checked
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.kv.idempotency import HEADER, parse
from rafthttp.kv.refusals import BadRequestError, NotSupportedError, refusal

# An entry of the largest size comes in this time over a line of 2.5 Mbit/s.
_BODY_SECONDS: Final = 60

_PREFIX: Final = "/kv/"
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_IDEMPOTENCY_KEY: Final = HEADER.lower().encode("ascii")
_NOT_FOR_KEYS: Final = {"Allow": "GET, HEAD, PUT, DELETE"}


class _Answer(NamedTuple):
    """What to send."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


_DONE: Final = _Answer(204, [], b"")

_Handler: TypeAlias = Callable[[Scope, Receive, str], Awaitable[_Answer | None]]


class Keys:
    """Answers requests for keys.

    Args:
        node: runs, or will run, the state machine.
        fsm: the same object that `node` was given.
        timeout: seconds for one request.
    """

    def __init__(self, node: Node, fsm: KVStateMachine, timeout: float) -> None:
        self._node = node
        self._fsm = fsm
        self._timeout = timeout
        self._bodies = _Budget(node.config.pending_bytes_max)
        self._handlers: dict[str, _Handler] = {
            "GET": self._get,
            "HEAD": self._get,
            "PUT": self._put,
            "DELETE": self._delete,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for which `is_for_key` holds."""
        handler = self._handlers.get(scope["method"])
        if handler is None:
            text = f"{scope['method']} is not for keys"
            await error_response(405, text, headers=_NOT_FOR_KEYS)(scope, receive, send)
            return
        try:
            answer = await handler(scope, receive, _key_of(scope))
        except Exception as error:
            refused = refusal(error, self._node.leader)
            if refused is None:
                raise
            await refused(scope, receive, send)
            return
        if answer is None:
            leader = self._node.leader
            known = None if leader is None else leader._asdict()
            missing = error_response(404, "there is no such key", leader=known)
            await missing(scope, receive, send)
            return
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _put(self, scope: Scope, receive: Receive, key: str) -> _Answer:
        """Store the body under the key."""
        head = encode_checked(Operation.PUT, check_key(key))
        request_id = self._request_id(scope)
        body = _Body(self._node.command_size_bytes_max - len(head), self._bodies)
        try:
            await self._apply(head + await body.read(scope, receive), request_id)
        finally:
            body.release()
        return _DONE

    async def _delete(self, scope: Scope, receive: Receive, key: str) -> _Answer:
        """Delete the key; it need not be there, so that the request can be repeated."""
        del receive
        command = encode_checked(Operation.DELETE, check_key(key))
        await self._apply(command, self._request_id(scope))
        return _DONE

    async def _get(self, scope: Scope, receive: Receive, key: str) -> _Answer | None:
        """The value, with its SHA-256 as entity tag; None where there is none."""
        del receive
        check_key(key)
        await wait_until_readable(self._node, scope, self._timeout)
        value = self._fsm.get(key)
        if value is None:
            return None
        tag = f'"{hashlib.sha256(value).hexdigest()}"'.encode("ascii")
        headers = [
            (b"etag", tag),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % len(value)),
            (b"content-type", b"application/octet-stream"),
        ]
        return _Answer(200, headers, value)

    def _request_id(self, scope: Scope) -> str | SessionRequest | None:
        """What the client calls this request, so that a repeat is known again.

        Raises:
            IdempotencyKeyError: it cannot be understood.
            NotSupportedError: nobody remembers it here.
        """
        fields = [value for name, value in scope["headers"] if name == _IDEMPOTENCY_KEY]
        if not fields:
            return None
        request_id = parse([value.decode("latin-1") for value in fields])
        if request_id is not None and not self._node.sessions:
            raise NotSupportedError(f"this service runs without sessions: {HEADER} means nothing")
        return request_id

    async def _apply(self, command: bytes, request_id: str | SessionRequest | None) -> None:
        payload = None if request_id is None else command
        await self._node.apply(
            command, timeout=self._timeout, request_id=request_id, request_payload=payload
        )


class KeysFirst:
    """ASGI middleware: what is for a key goes to `keys`, everything else to `app`."""

    def __init__(self, app: App, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        await (self._keys if is_for_key(scope) else self._app)(scope, receive, send)


def is_for_key(scope: Scope) -> bool:
    """Whether a connection is a request for a key."""
    return scope["type"] == "http" and route_path(scope).startswith(_PREFIX)


async def wait_until_readable(node: Node, scope: Scope, timeout: float) -> None:
    """Wait until the state machine may be read as the request's `consistency` asks.

    Raises:
        BadRequestError: there is no such consistency.
        RaftError: definite; as `Node.linearizable`.
    """
    consistency = "linearizable"
    if query := scope["query_string"]:
        consistency = QueryParams(query).get("consistency", consistency)
    if consistency == "linearizable":
        await node.linearizable(timeout=timeout)
    elif consistency != "stale":
        raise BadRequestError("consistency is `linearizable` or `stale`")


def _key_of(scope: Scope) -> str:
    """The key as the client wrote it: servers decode `path` leniently, `raw_path` is exact."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return route_path(scope).removeprefix(_PREFIX)
    encoded = raw.partition(b"?")[0].partition(b"/kv/")[2]
    if b"%" in encoded:
        if _BAD_ESCAPE.search(encoded):
            raise BadRequestError("the key has a % that is not followed by two hexadecimal digits")
        encoded = unquote_to_bytes(encoded)
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        raise BadRequestError("the key is not valid UTF-8") from error


class _Budget:
    """Bytes of bodies that are in memory now, and how many there may be."""

    def __init__(self, size_bytes_max: int) -> None:
        self.size = 0
        self.size_max = size_bytes_max


class _Body:
    """One request's body, within its own limit and the budget of all."""

    def __init__(self, size_bytes_max: int, budget: _Budget) -> None:
        self._size_max = size_bytes_max
        self._budget = budget
        self._size = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            EntryTooLargeError: it is over its own limit.
            OverloadedError: there are too many bodies.
            BadRequestError: it did not come whole, or not in time.
        """
        for name, value in scope["headers"]:
            if name == b"content-length":
                if value.isdigit():
                    self._check(int(value))
                break
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                return await self._read(receive)
        except TimeoutError as error:
            raise BadRequestError(f"the body took more than {_BODY_SECONDS} s") from error

    async def _read(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequestError("the body ended early")
            chunk: bytes = message.get("body", b"")
            self._check(self._size + len(chunk))
            self._size += len(chunk)
            self._budget.size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def release(self) -> None:
        """The body is no longer in memory. Idempotent."""
        self._budget.size -= self._size
        self._size = 0

    def _check(self, size: int) -> None:
        if size > self._size_max:
            raise EntryTooLargeError(f"the value is over {self._size_max} bytes, the entry limit")
        others = self._budget.size - self._size
        if others and others + size > self._budget.size_max:
            raise OverloadedError("too many bytes of bodies are under way")
