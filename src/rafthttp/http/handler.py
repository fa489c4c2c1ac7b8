"""`Handler`: the endpoint. It decides what a request is, who may, and what the answer is.

Knows requests and answers, in the words of `messages.py`; no server, no parser, no Raft. It is an
ASGI application; `listener.py` and `uvicorn.py` serve it with the socket at hand.

A stream is accepted before its 101 is sent, never after: the upgrade waits in a bounded mailbox
until `Layer.accept` takes it; the 101 leaves in that turn. Closing refuses what waits, with 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from rafthttp.http import asgi, grammar
from rafthttp.http.access import (
    Authorize,
    PeerInfo,
    Principal,
    Purpose,
    Refusal,
    allow_loopback,
)
from rafthttp.http.carriers import Open, how_to_open
from rafthttp.http.handshake import printable
from rafthttp.http.mailbox import Mailbox, MailboxClosedError
from rafthttp.http.membership import ChangeKind, ChangeRequest, refusal_of
from rafthttp.http.messages import (
    CLUSTER_ID_HEADER,
    OUTCOME_HEADER,
    RELEASED_HEADER,
    ForwardResponse,
    Headers,
    Request,
    Response,
    text_response,
)
from rafthttp.http.websocket import PING_SECONDS
from rafthttp.raft.errors import (
    ConfigError,
    PeerUnreachableError,
    RaftHttpError,
    RequestRefusedError,
    ShutdownError,
)
from rafthttp.raft.transport.protocols import Stream

__all__ = ["ForwardRequest", "ForwardResponse", "Handler"]

log: Final = logging.getLogger("rafthttp.http")

QUERY_LENGTH_MAX: Final = 4096
"""Characters of a query. The longest id and address, every character escaped, take 1,600."""

RETRY_AFTER: Final = (("Retry-After", "1"),)
"""With each 503: an election takes one to two seconds with the default timeouts."""

NOTHING_DONE: Final = (*RETRY_AFTER, (OUTCOME_HEADER, "definite"))
"""Headers of a 503 that was decided before anything was done."""

FORWARD_SIZE_BYTES_MAX: Final = 17 << 20
"""Bytes of a forwarded body: the default largest entry (16 MiB) and room for its envelope."""


DRAIN_SECONDS: Final = 1.0
DRAIN_SIZE_BYTES_MAX: Final = 64 << 20
"""How long, and how much, of the body of a refused request is read before the answer."""

UNTOLD_SECONDS_MAX: Final = 3.0
"""How long an upgrade may wait in all, to be authorised and accepted, where the web server keeps
its socket: not all of these tell an application that they stop, and then they wait for it. As long
as hypercorn's own grace; a member that runs accepts in the very turn."""


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A call forwarded by another member.

    Attributes:
        op: what to do, as `op=` says.
        headers: as they came.
        body: the whole body.
        principal: who `authorize` says it is.
    """

    op: str
    headers: Headers
    body: bytes
    principal: Principal


ForwardHandler: TypeAlias = Callable[[ForwardRequest], Awaitable[ForwardResponse]]


@dataclass(eq=False, slots=True)
class _Upgrade:
    """An upgrade that waits for `accept`; `outcome` is done once the 101 is out, or refused."""

    request: Request
    open: Open
    outcome: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Handler:
    """The endpoint of one server (Go's `rafthttp.Handler`).

    Args:
        timeout: seconds an upgrade may wait to be authorised and accepted (3 at most where the web
            server keeps its socket), a change of membership to be made, and a body to come.
        authorize: who may; by default loopback peers only.
        forward: answers forwarded calls; without it they get 405, as from Go.
        cluster_id: of the cluster this server belongs to, where known.
        requests_max: change requests waiting; more get 503. They are rare.
        upgrades_max: upgrades waiting; more get 503. A restarted cluster of 50 dials each member
            with a few streams from each other.
        forwards_max: forwarded calls at a time; more get 503.
        forward_size_bytes_max: of a forwarded body; more gets 413.
        ping_seconds: how long an accepted WebSocket stream may send nothing before it sends a ping;
            a web server that frames WebSockets itself has its own setting.

    Attributes:
        forward: may be set later.
        cluster_id: may be set later, when it is minted or adopted.

    Raises:
        ConfigError: the timeout is not positive, or the cluster id is against the grammar.
    """

    def __init__(
        self,
        timeout: float = 10.0,
        authorize: Authorize | None = None,
        *,
        forward: ForwardHandler | None = None,
        cluster_id: str | None = None,
        requests_max: int = 64,
        upgrades_max: int = 256,
        forwards_max: int = 1024,
        forward_size_bytes_max: int = FORWARD_SIZE_BYTES_MAX,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be more than 0")
        if not ping_seconds > 0:
            raise ConfigError(f"ping_seconds is {ping_seconds}; it must be more than 0")
        self._ping_seconds = ping_seconds
        self.timeout = timeout
        self.forward = forward
        self._cluster_id: str | None = None
        self.cluster_id = cluster_id
        self._authorize: Authorize = allow_loopback if authorize is None else authorize
        self._upgrades: Mailbox[_Upgrade] = Mailbox(upgrades_max)
        self._requests: Mailbox[ChangeRequest] = Mailbox(requests_max)
        self._unanswered: set[ChangeRequest] = set()
        self._forwards = 0
        self._forwards_max = forwards_max
        self._forward_size_bytes_max = forward_size_bytes_max

    # -- for the owner

    @property
    def cluster_id(self) -> str | None:
        """The cluster this server belongs to, where known."""
        return self._cluster_id

    @cluster_id.setter
    def cluster_id(self, value: str | None) -> None:
        if value is not None:
            try:
                value = grammar.parse_cluster_id(value)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        self._cluster_id = value

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._upgrades.closed

    async def requests(self) -> AsyncIterator[ChangeRequest]:
        """The change requests, each for one reader, until the handler is closed."""
        while True:
            try:
                request = await self._requests.get()
            except MailboxClosedError:
                return
            if not request.done:
                yield request

    async def accept(self) -> Stream:
        """The next inbound stream; its 101 is sent by this call.

        Raises:
            PeerUnreachableError: the handler is closed.
        """
        while True:
            try:
                upgrade = await self._upgrades.get()
            except MailboxClosedError:
                raise PeerUnreachableError("the handler is closed") from None
            if upgrade.outcome.done():
                continue  # it gave up waiting
            try:
                stream = upgrade.open(self._cluster_id)
            except ConnectionError as error:
                upgrade.outcome.set_exception(error)
                continue
            upgrade.outcome.set_result(None)
            log.debug("accepted a stream from %s", stream.peer)
            return stream

    async def close(self) -> None:
        """Refuse everything from now on, and end `requests()` and `accept()`. Idempotent."""
        for upgrade in self._upgrades.close():
            if not upgrade.outcome.done():
                upgrade.outcome.set_exception(self._closed_refusal())
        self._requests.close()
        for request in list(self._unanswered):
            request.fail(ShutdownError("the server is shutting down"))

    # -- for servers

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve one ASGI connection."""
        await asgi.serve(self.handle, scope, receive, send)

    async def handle(self, request: Request) -> Response | None:
        """Answer one request; None when it became a stream."""
        try:
            return await self._dispatch(request)
        except RequestRefusedError as error:
            log.debug("refused %s from %s: %s", request.method, request.client, error)
            if error.status != 408:
                await _drain(request)
            return text_response(error.status, str(error), error.headers, close=True)
        except ConnectionError as error:
            log.debug("lost %s while it waited: %s", request.client, error)
            return text_response(400, "the connection is closed", close=True)
        except Exception:
            log.exception("could not answer %s from %s", request.method, request.client)
            return text_response(500, "internal error", close=True)

    async def _dispatch(self, request: Request) -> Response | None:
        purpose = self._purpose(request.method)
        if purpose is Purpose.LEAVE and "address" in _query_fields(request.query):
            purpose = Purpose.JOIN  # a release: the first half of a join, checked by dialling back
        seconds = self.timeout
        if purpose is Purpose.STREAM and request.take is None:
            seconds = min(seconds, UNTOLD_SECONDS_MAX)
        deadline = asyncio.get_running_loop().time() + seconds
        principal = await self._admit(purpose, request, deadline)
        if self.closed:
            raise self._closed_refusal()
        if purpose is Purpose.STREAM:
            await self._upgrade(request, deadline)
            return None
        fields = _query_fields(request.query)
        if purpose is Purpose.FORWARD:
            return await self._forward(request, fields, principal)
        return await self._change(purpose, request, fields)

    def _purpose(self, method: str) -> Purpose:
        purposes = {"GET": Purpose.STREAM, "POST": Purpose.JOIN, "DELETE": Purpose.LEAVE}
        if self.forward is not None:
            purposes["PUT"] = Purpose.FORWARD
        if method not in purposes:
            # RFC 9110 §15.5.6: a 405 has Allow.
            allow = (("Allow", ", ".join(purposes)),)
            raise RequestRefusedError(405, "unknown action", headers=allow)
        return purposes[method]

    async def _admit(self, purpose: Purpose, request: Request, deadline: float) -> Principal:
        if "Origin" in request.headers:
            # A browser sends it; no member does. No page may reach a node near its visitor.
            raise RequestRefusedError(403, "requests from web pages are refused")
        peer = PeerInfo(purpose, request.headers, request.client, request.certificate, request.path)
        try:
            async with asyncio.timeout_at(deadline):
                verdict = await self._authorize(peer)
        except TimeoutError:
            raise self._busy("authorisation took too long") from None
        if isinstance(verdict, Refusal):
            challenge = (("WWW-Authenticate", "Bearer"),) if verdict.status == 401 else ()
            raise RequestRefusedError(verdict.status, verdict.text, headers=challenge)
        theirs = request.headers.get(CLUSTER_ID_HEADER)
        if theirs is not None and self._cluster_id is not None and theirs != self._cluster_id:
            raise RequestRefusedError(
                409,
                f"this server belongs to the cluster {self._cluster_id},"
                f" you to {printable(theirs, grammar.CLUSTER_ID_LENGTH_MAX)}",
            )
        return verdict

    async def _upgrade(self, request: Request, deadline: float) -> None:
        upgrade = _Upgrade(request, how_to_open(request, self._ping_seconds))
        if not self._upgrades.put(upgrade):
            raise self._busy("too many upgrades are waiting")
        try:
            async with asyncio.timeout_at(deadline):
                await upgrade.outcome
        except TimeoutError:
            if upgrade.outcome.done() and not upgrade.outcome.cancelled():
                return  # accepted in the very turn the deadline passed: the 101 is out
            raise self._busy("nobody accepted the stream in time") from None
        finally:
            self._upgrades.discard(upgrade)

    async def _change(self, purpose: Purpose, request: Request, fields: dict[str, str]) -> Response:
        kind = ChangeKind.LEAVE
        if purpose is Purpose.JOIN:
            kind = ChangeKind.JOIN if request.method == "POST" else ChangeKind.RELEASE
        try:
            server_id = grammar.parse_id(fields.get("id", ""))
            address = (
                grammar.parse_address(fields.get("address", ""))
                if kind is not ChangeKind.LEAVE
                else None
            )
        except ValueError as error:
            raise RequestRefusedError(400, str(error)) from None
        deadline = asyncio.get_running_loop().time() + self.timeout
        change = ChangeRequest(kind, server_id, address, deadline=deadline)
        if not self._requests.put(change):
            raise self._busy("too many changes of membership are waiting")
        self._unanswered.add(change)
        try:
            async with asyncio.timeout_at(deadline):
                released = await change.wait()
        except TimeoutError:
            raise self._busy(f"could not {change} in time") from None
        except RaftHttpError as error:
            raise refusal_of(error, change, request) from error
        finally:
            self._unanswered.discard(change)
            self._requests.discard(change)
            change.abandon()
        log.info("%s: done, asked by %s", change, request.client)
        headers = self._cluster_headers()
        if released is not None:
            headers = (*headers, (RELEASED_HEADER, f"{released.term}/{released.index}"))
        return Response(200, headers=headers)

    async def _forward(
        self, request: Request, fields: dict[str, str], principal: Principal
    ) -> Response:
        forward = self.forward
        assert forward is not None, "checked by _purpose"
        try:
            op = grammar.parse_operation(fields.get("op", ""))
        except ValueError as error:
            raise RequestRefusedError(400, str(error)) from None
        if self._forwards >= self._forwards_max:
            raise RequestRefusedError(503, "too many forwarded calls", headers=NOTHING_DONE)
        self._forwards += 1
        try:
            try:
                async with asyncio.timeout(self.timeout):
                    body = await request.read_body(self._forward_size_bytes_max)
            except TimeoutError:
                raise RequestRefusedError(408, "the body did not come in time") from None
            answer = await forward(ForwardRequest(op, request.headers, body, principal))
        finally:
            self._forwards -= 1
        headers = (*answer.headers, *self._cluster_headers())
        return Response(answer.status, answer.body, headers)

    def _cluster_headers(self) -> tuple[tuple[str, str], ...]:
        return () if self._cluster_id is None else ((CLUSTER_ID_HEADER, self._cluster_id),)

    @staticmethod
    def _busy(text: str) -> RequestRefusedError:
        return RequestRefusedError(503, text, headers=RETRY_AFTER)

    def _closed_refusal(self) -> RequestRefusedError:
        return RequestRefusedError(503, "the server is shutting down", headers=NOTHING_DONE)


async def _drain(request: Request) -> None:
    """Read what is left of the body, and drop it, so that the answer is read.

    The connection is closed after a refusal. A client that still writes its body then meets a
    reset and never sees why; a forwarded call that was refused would count as of unknown outcome.
    """
    length = request.headers.get("Content-Length")
    is_empty = length in (None, "0") and "Transfer-Encoding" not in request.headers
    if is_empty or "Expect" in request.headers:
        return
    with contextlib.suppress(TimeoutError, ConnectionError, RequestRefusedError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await request.read_body(DRAIN_SIZE_BYTES_MAX, keep=False)


def _query_fields(query: str) -> dict[str, str]:
    """The query's fields; each may stand once.

    Raises:
        RequestRefusedError: 400.
    """
    if len(query) > QUERY_LENGTH_MAX:
        raise RequestRefusedError(
            400, f"the query has {len(query)} characters, more than {QUERY_LENGTH_MAX}"
        )
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError as error:
        raise RequestRefusedError(400, "malformed query") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RequestRefusedError(400, "a field stands twice in the query")
    return fields
