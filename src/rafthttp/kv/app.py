"""The key-value service's HTTP API, on one node's port.

Knows HTTP and the public `Node`; keeps no state. A request is answered by any node: writes go to
the leader through `Node.apply`, reads wait for `Node.linearizable` unless they may be stale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.types import Receive, Scope, Send

from rafthttp import ClusterHealth, Node, State
from rafthttp.kv.access import Guard, JSONLine, Network, error_response
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.kv.keys import Keys, KeysFirst, is_for_key, wait_until_readable
from rafthttp.kv.openapi import DESCRIPTION
from rafthttp.kv.refusals import BadRequestError, NotSupportedError, refusal

LIST_LIMIT_DEFAULT: Final = 1000
# One page is built in one go on the event loop: ten thousand keys take about 10 ms.
LIST_LIMIT_MAX: Final = 10_000

_LIMIT: Final = re.compile("[0-9]{1,5}")


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
        self.keys = Keys(node, fsm, timeout)
        """Answers `/kv/{key}`."""

    def routes(self) -> list[BaseRoute]:
        """For a Starlette application; FastAPI takes them too."""
        return [
            _KeyRoute(self.keys),
            Route("/kv", self._guarded(self.list_keys), methods=["GET"]),
            Route("/status", self._guarded(self.status), methods=["GET"]),
            Route("/healthz", self._guarded(self.health), methods=["GET"]),
            Route("/leave", self._guarded(self.leave), methods=["POST"]),
            Route("/transfer", self._guarded(self.transfer), methods=["POST"]),
            Route("/sessions", self._guarded(self.open_session), methods=["POST"]),
            Route("/openapi.json", self._guarded(self.openapi), methods=["GET"]),
        ]

    # -- keys

    async def open_session(self, request: Request) -> Response:
        """Begin a session, whose requests their client numbers in `Idempotency-Key`."""
        del request
        if not self._node.sessions:
            raise NotSupportedError("this service runs without sessions")
        session = await self._node.open_session(timeout=self._timeout)
        return JSONLine({"session": session.key.hex()}, 201)

    async def list_keys(self, request: Request) -> Response:
        """Keys with a prefix, in order, a page at a time."""
        query = request.query_params
        prefix, after = query.get("prefix", ""), query.get("after")
        limit = _limit(query.get("limit"))
        await wait_until_readable(self._node, request.scope, self._timeout)
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
        to = request.query_params.get("to")
        voters = self._node.raft.get_configuration().configuration.voters
        if to is not None and to not in {server.id for server in voters}:
            raise BadRequestError("`to` is the id of no voter of this cluster")
        leader = await self._node.leadership_transfer(to)
        return JSONLine({"leader": leader._asdict()})

    async def openapi(self, request: Request) -> Response:
        """This API, for machines."""
        del request
        return JSONLine(DESCRIPTION)

    # -- inside

    def _guarded(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            return await self._answered(lambda: endpoint(request))

        return guarded

    async def _answered(self, call: Callable[[], Any]) -> Response:
        """The answer, or what its error means in HTTP."""
        try:
            response: Response = await call()
        except Exception as error:
            refused = refusal(error, self._node.leader)
            if refused is None:
                raise
            return refused
        return response

    def _leader(self) -> dict[str, str] | None:
        leader = self._node.leader
        return None if leader is None else {"id": leader.id, "address": leader.address}


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
        middleware=[guard, Middleware(KeysFirst, keys=service.keys)],
        lifespan=node.lifespan if manage_node else None,
    )
    node.mount(app, path)
    return app


class _KeyRoute(BaseRoute):
    """`/kv/{key}`, where the key is any text: Starlette's own converters stop at a line feed."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if is_for_key(scope) else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._keys(scope, receive, send)


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


def _limit(text: str | None) -> int:
    if text is None:
        return LIST_LIMIT_DEFAULT
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= LIST_LIMIT_MAX:
        raise BadRequestError(f"limit is from 1 to {LIST_LIMIT_MAX}")
    return int(text)
