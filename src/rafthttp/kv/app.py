"""The key-value service's HTTP API, on one node's port.

Knows HTTP and the public `Node`; keeps no state. A request is answered by any node: writes go to
the leader through `Node.apply`, reads wait for `Node.linearizable` unless they may be stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.types import Receive, Scope, Send

from rafthttp import (
    ClusterHealth,
    EntryTooLargeError,
    MembershipError,
    Node,
    Outcome,
    OverloadedError,
    RaftError,
    RemoteApplyError,
    RequestReusedError,
    SessionExpiredError,
    SessionRequest,
    State,
)
from rafthttp.kv.access import Guard, JSONLine, Network, error_response, route_path
from rafthttp.kv.commands import (
    Command,
    CommandError,
    Operation,
    check_key,
    command_overhead,
    encode,
)
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.kv.idempotency import HEADER, IdempotencyKeyError, parse
from rafthttp.kv.openapi import DESCRIPTION

LIST_LIMIT_DEFAULT: Final = 1000
# One page is built in one go on the event loop: ten thousand keys take about 10 ms.
LIST_LIMIT_MAX: Final = 10_000

# An entry of the largest size comes in this time over a line of 2.5 Mbit/s.
_BODY_SECONDS: Final = 60

_RETRY_AFTER: Final = {"Retry-After": "1"}
_LIMIT: Final = re.compile("[0-9]{1,5}")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class _BadRequestError(ValueError):
    """What the client sent cannot be understood; the text says why."""


class _NotSupportedError(ValueError):
    """The client asks for what this service was started without; the text says what."""


class KVService:
    """The routes over one node and its state machine.

    Args:
        node: runs, or will run, the state machine.
        fsm: the same object that `node` was given.
        timeout: seconds for one request.
        on_leave: called when this node has left its cluster on request.
    """

    def __init__(
        self,
        node: Node,
        fsm: KVStateMachine,
        *,
        timeout: float = 5.0,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        self._node = node
        self._fsm = fsm
        self._timeout = timeout
        self._on_leave = on_leave
        self._bodies = _Budget(node.config.pending_bytes_max)

    def routes(self) -> list[BaseRoute]:
        """For a Starlette application; FastAPI takes them too."""
        return [
            _KeyRoute(self._key),
            Route("/kv", self._guarded(self.list_keys), methods=["GET"]),
            Route("/status", self._guarded(self.status), methods=["GET"]),
            Route("/healthz", self._guarded(self.health), methods=["GET"]),
            Route("/leave", self._guarded(self.leave), methods=["POST"]),
            Route("/transfer", self._guarded(self.transfer), methods=["POST"]),
            Route("/sessions", self._guarded(self.open_session), methods=["POST"]),
            Route("/openapi.json", self._guarded(self.openapi), methods=["GET"]),
        ]

    # -- keys

    async def put(self, request: Request, key: str) -> Response:
        """Store the body under the key."""
        request_id = self._request_id(request)
        room = self._node.command_size_bytes_max - command_overhead(key)
        body = _Body(request, room, self._bodies)
        try:
            value = await body.read()
            command = encode(Command(Operation.PUT, key, value))
            await self._apply(command, request_id)
        finally:
            body.release()
        return Response(status_code=204)

    async def delete(self, request: Request, key: str) -> Response:
        """Delete the key; it need not be there, so that the request can be repeated."""
        command = encode(Command(Operation.DELETE, key))
        await self._apply(command, self._request_id(request))
        return Response(status_code=204)

    async def open_session(self, request: Request) -> Response:
        """Begin a session, whose requests their client numbers in `Idempotency-Key`."""
        del request
        if not self._node.sessions:
            raise _NotSupportedError("this service runs without sessions")
        session = await self._node.open_session(timeout=self._timeout)
        return JSONLine({"session": session.key.hex()}, 201)

    async def get(self, request: Request, key: str) -> Response:
        """The value, with its SHA-256 as entity tag."""
        await self._wait_until_readable(request)
        value = self._fsm.get(key)
        if value is None:
            return error_response(404, "there is no such key", leader=self._leader())
        headers = {"ETag": f'"{hashlib.sha256(value).hexdigest()}"', "Cache-Control": "no-store"}
        return Response(value, 200, headers, media_type="application/octet-stream")

    async def list_keys(self, request: Request) -> Response:
        """Keys with a prefix, in order, a page at a time."""
        query = request.query_params
        prefix, after = query.get("prefix", ""), query.get("after")
        limit = _limit(query.get("limit"))
        await self._wait_until_readable(request)
        found = self._fsm.list(prefix, after=after, limit=limit + 1)
        page = found[:limit]
        keys = [{"key": info.key, "size": info.size} for info in page]
        following = page[-1].key if len(found) > limit else None
        return JSONLine({"prefix": prefix, "keys": keys, "next": following})

    # -- the node

    async def status(self, request: Request) -> Response:
        """What this node knows of itself and of the cluster."""
        del request
        node, raft = self._node, self._node.raft
        latest = raft.get_configuration()
        servers = [
            {"id": s.id, "address": s.address, "suffrage": s.suffrage.name.lower()}
            for s in latest.configuration
        ]
        return JSONLine(
            {
                "id": raft.id,
                "address": raft.address,
                "pid": os.getpid(),
                "path": node.path,
                "cluster_id": node.cluster_id,
                "state": raft.state.value,
                "term": raft.current_term,
                "leader": self._leader(),
                "last_contact": raft.last_contact,
                "commit_index": raft.commit_index,
                "applied_index": raft.applied_index,
                "last_index": raft.last_index,
                "configuration_index": latest.index,
                "servers": servers,
                "member": node.is_member,
                "join_error": node.join_error,
                "health": _health(node.health()),
                "keys": len(self._fsm),
                "stats": raft.stats(),
            }
        )

    async def health(self, request: Request) -> Response:
        """200 while the node takes part, whether or not there is a leader now."""
        del request
        raft = self._node.raft
        alive = raft.state is not State.SHUTDOWN
        body = {"healthy": alive, "leader_known": raft.leader_with_id() is not None}
        return JSONLine(body, 200 if alive else 503)

    async def leave(self, request: Request) -> Response:
        """Remove this node from its cluster."""
        del request
        servers = self._node.raft.get_configuration().configuration
        if [server.id for server in servers.voters] == [self._node.id]:
            text = f"{self._node.id} is the last voter of its cluster: just stop it"
            return error_response(409, text, leader=self._leader())
        await self._node.leave()
        if self._on_leave is not None:
            self._on_leave()
        return JSONLine({"id": self._node.id, "left": True})

    async def transfer(self, request: Request) -> Response:
        """This node leads: let another lead, the one named by `to` or the one that has most."""
        leader = await self._node.leadership_transfer(request.query_params.get("to"))
        return JSONLine({"leader": leader._asdict()})

    async def openapi(self, request: Request) -> Response:
        """This API, for machines."""
        del request
        return JSONLine(DESCRIPTION)

    # -- inside

    def _request_id(self, request: Request) -> str | SessionRequest | None:
        """What the client calls this request, so that a repeat is known again.

        Raises:
            IdempotencyKeyError: it cannot be understood.
        """
        request_id = parse(request.headers.getlist(HEADER))
        if request_id is not None and not self._node.sessions:
            raise _NotSupportedError(f"this service runs without sessions: {HEADER} means nothing")
        return request_id

    async def _apply(self, command: bytes, request_id: str | SessionRequest | None) -> None:
        payload = None if request_id is None else command
        await self._node.apply(
            command, timeout=self._timeout, request_id=request_id, request_payload=payload
        )

    async def _key(self, request: Request) -> Response:
        handlers = {"GET": self.get, "HEAD": self.get, "PUT": self.put, "DELETE": self.delete}
        handler = handlers.get(request.method)
        if handler is None:
            headers = {"Allow": "GET, HEAD, PUT, DELETE"}
            return error_response(405, f"{request.method} is not for keys", headers=headers)

        async def call() -> Response:
            key = _key_of(request.scope)
            check_key(key)
            return await handler(request, key)

        return await self._answered(call)

    def _guarded(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            return await self._answered(lambda: endpoint(request))

        return guarded

    async def _answered(self, call: Callable[[], Any]) -> Response:
        """The answer, or what its error means in HTTP."""
        try:
            response: Response = await call()
        except (_BadRequestError, CommandError, IdempotencyKeyError) as error:
            return error_response(400, str(error), leader=self._leader())
        except _NotSupportedError as error:
            return error_response(501, str(error), leader=self._leader())
        except EntryTooLargeError as error:
            return error_response(413, str(error), leader=self._leader())
        except RaftError as error:
            leader = self._leader() if error.leader is None else error.leader._asdict()
            if error.outcome is Outcome.UNKNOWN:
                return error_response(504, str(error), outcome="unknown", leader=leader)
            if isinstance(error, RequestReusedError | SessionExpiredError):
                status = 422 if isinstance(error, RequestReusedError) else 410
                return error_response(status, str(error), leader=leader)
            return error_response(503, str(error), leader=leader, headers=_RETRY_AFTER)
        except MembershipError as error:
            refused = error.status in {400, 401, 403}
            status = error.status if refused and error.status else 503
            return error_response(status, str(error), leader=self._leader(), headers=_RETRY_AFTER)
        except RemoteApplyError as error:
            return error_response(500, str(error), leader=self._leader())
        return response

    def _leader(self) -> dict[str, str] | None:
        leader = self._node.leader
        return None if leader is None else {"id": leader.id, "address": leader.address}

    async def _wait_until_readable(self, request: Request) -> None:
        consistency = request.query_params.get("consistency", "linearizable")
        if consistency == "linearizable":
            await self._node.linearizable(timeout=self._timeout)
        elif consistency != "stale":
            raise _BadRequestError("consistency is `linearizable` or `stale`")


def create_app(
    node: Node,
    fsm: KVStateMachine,
    *,
    token: str | None = None,
    allow: Sequence[Network] = (),
    timeout: float = 5.0,
    on_leave: Callable[[], None] | None = None,
    manage_node: bool = True,
    path: str | None = None,
) -> Starlette:
    """The whole service of one node as one ASGI application: API, status, members' endpoint.

    Args:
        node: runs `fsm`; its endpoint is mounted too, and guards itself.
        fsm: see `KVService`.
        token: guards everything but `/healthz` and the endpoint.
        allow: likewise, networks that may use the service; none means all.
        timeout: see `KVService`.
        on_leave: see `KVService`.
        manage_node: start and stop the node with the application.
        path: of the members' endpoint within the application, where that is served below a prefix
            (ASGI's `root_path`); the node's path otherwise.
    """
    service = KVService(node, fsm, timeout=timeout, on_leave=on_leave)
    open_paths = ("/healthz", node.path if path is None else path)
    guard = Middleware(Guard, token=token, allow=allow, open_paths=open_paths)
    app = Starlette(
        routes=service.routes(),
        middleware=[guard],
        lifespan=node.lifespan if manage_node else None,
    )
    node.mount(app, path)
    return app


class _KeyRoute(BaseRoute):
    """`/kv/{key}`, where the key is any text: Starlette's own converters stop at a line feed."""

    def __init__(self, endpoint: Callable[[Request], Any]) -> None:
        self._endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found = scope["type"] == "http" and route_path(scope).startswith("/kv/")
        return (Match.FULL if found else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self._endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _health(health: ClusterHealth | None) -> dict[str, Any] | None:
    """How the members are, where this node leads."""
    if health is None:
        return None
    servers = [
        {
            "id": server.id,
            "healthy": server.healthy,
            "last_contact": server.last_contact,
            "lag": server.lag,
            "stable_for": server.stable_for,
            "silent_for": server.silent_for,
        }
        for server in health.servers
    ]
    return {
        "healthy": health.healthy,
        "failure_tolerance": health.failure_tolerance,
        "servers": servers,
    }


def _key_of(scope: Mapping[str, Any]) -> str:
    """The key as the client wrote it: servers decode `path` leniently, `raw_path` is exact."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return route_path(scope).removeprefix("/kv/")
    encoded = raw.partition(b"?")[0].partition(b"/kv/")[2]
    if _BAD_ESCAPE.search(encoded):
        raise _BadRequestError("the key has a % that is not followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError as error:
        raise _BadRequestError("the key is not valid UTF-8") from error


class _Budget:
    """Bytes of bodies that are in memory now, and how many there may be."""

    def __init__(self, size_bytes_max: int) -> None:
        self.size = 0
        self.size_max = size_bytes_max


class _Body:
    """One request's body, within its own limit and the budget of all."""

    def __init__(self, request: Request, size_bytes_max: int, budget: _Budget) -> None:
        self._request = request
        self._size_max = size_bytes_max
        self._budget = budget
        self._size = 0

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            EntryTooLargeError: it is over its own limit.
            OverloadedError: there are too many bodies.
        """
        length = self._request.headers.get("content-length", "")
        if length.isdecimal():
            self._check(int(length))
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in self._request.stream():
                    self._check(self._size + len(chunk))
                    self._size += len(chunk)
                    self._budget.size += len(chunk)
                    chunks.append(chunk)
        except ClientDisconnect as error:
            raise _BadRequestError("the body ended early") from error
        except TimeoutError as error:
            raise _BadRequestError(f"the body took more than {_BODY_SECONDS} s") from error
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


def _limit(text: str | None) -> int:
    if text is None:
        return LIST_LIMIT_DEFAULT
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= LIST_LIMIT_MAX:
        raise _BadRequestError(f"limit is from 1 to {LIST_LIMIT_MAX}")
    return int(text)
