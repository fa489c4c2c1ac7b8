"""A web application with one `Node`, for any ASGI server: `rafthttp.testing.asgi_app:app`.

Knows public names, Starlette, and its environment: `RAFT_ID`, `RAFT_ADDRESS`, `RAFT_JOIN` (empty
bootstraps), `RAFT_INSIDE` (`starlette`, `fastapi` or `django`). It keeps one value.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, BinaryIO

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from rafthttp import FSM, BytesSnapshot, Log, Node, Suffrage


class LastValue(FSM):
    """A state machine of one value."""

    def __init__(self) -> None:
        self.value = b""

    def apply(self, log: Log) -> object:
        """Keep it; its length is the answer."""
        self.value = log.data
        return len(log.data)

    def snapshot(self) -> BytesSnapshot:
        """The value."""
        return BytesSnapshot(self.value)

    def restore(self, source: BinaryIO) -> None:
        """Replace the value."""
        self.value = source.read()


fsm = LastValue()
_join = os.environ.get("RAFT_JOIN", "")
node = Node(
    os.environ.get("RAFT_ID", "n1"),
    os.environ.get("RAFT_ADDRESS", "127.0.0.1:8000"),
    fsm=fsm,
    bootstrap=not _join,
    join=[_join] if _join else [],
    timeout=5.0,
)


async def put(request: Request) -> Response:
    """Replicate a value."""
    return JSONResponse(await node.apply(await request.body()))


async def get(request: Request) -> Response:
    """Read it, linearizably."""
    del request
    await node.linearizable()
    return Response(hashlib.sha256(fsm.value).hexdigest())


async def state(request: Request) -> Response:
    """Who leads, and how many voters there are."""
    del request
    leader = node.leader
    servers = node.raft.get_configuration().configuration.servers
    voters = [server for server in servers if server.suffrage is Suffrage.VOTER]
    return JSONResponse({"leader": None if leader is None else leader.id, "voters": len(voters)})


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware of the kind that never sees a WebSocket."""
    response = await call_next(request)
    response.headers["X-Guarded"] = "yes"
    return response


def _make() -> Starlette:
    routes: list[BaseRoute] = [
        Route("/value", put, methods=["PUT"]),
        Route("/value", get, methods=["GET"]),
        Route("/state", state),
    ]
    inside = os.environ.get("RAFT_INSIDE", "starlette")
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=_guard)]
    if inside == "fastapi":
        from fastapi import FastAPI

        made: Starlette = FastAPI(lifespan=node.lifespan, routes=routes, middleware=middleware)
    else:
        made = Starlette(lifespan=node.lifespan, routes=routes, middleware=middleware)
    node.mount(made)
    if inside == "django":
        made.mount("/", _django())
    return made


def _django() -> Any:
    """A Django project without a database, as what answers all other paths."""
    # Django has no types of its own: what it hands out is Any here.
    settings = import_module("django.conf").settings
    answer = import_module("django.http").HttpResponse
    path = import_module("django.urls").path

    def hello(request: Any) -> Any:
        return answer(f"hello {request.path}")

    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=(path("hello", hello),),
        SECRET_KEY="of a test",  # noqa: S106 - signs nothing
    )
    return import_module("django.core.asgi").get_asgi_application()


app = _make()
