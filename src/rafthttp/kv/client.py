"""A client of the key-value service that knows several nodes and goes on when one fails.

Knows the HTTP API; nothing of Raft but who may answer. A request whose outcome is unknown is sent
again, to another node, under the same `Idempotency-Key`: the cluster knows it again.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from rafthttp import ClientSession, Outcome, SessionRequest
from rafthttp.kv import answers
from rafthttp.kv.answers import IdRefusedError, ServiceError
from rafthttp.kv.commands import KeyInfo, check_key
from rafthttp.kv.idempotency import HEADER, render

__all__ = ["KVClient", "ServiceError"]

# A follower answers 503 within the service's own timeout (5 s); this is for one that is stuck.
_ATTEMPT_TIMEOUT: Final = httpx.Timeout(10.0, connect=2.0)
_BACKOFF_FIRST: Final = 0.05
_BACKOFF_LAST: Final = 1.0
_PAGE_KEYS: Final = 1000
_UNREADABLE: Final = (ValueError, KeyError, TypeError, RecursionError)
# A dot segment would be taken for a path's by every client and proxy on the way.
_DOTS: Final = {".": "%2E", "..": "%2E%2E"}


@dataclass(slots=True)
class _Attempts:
    """What the tries of one request have come to. An answer says more than a later silence."""

    changes: bool
    answer: str | None = None
    silence: str = "nobody was asked"
    status: int | None = None
    outcome: Outcome = Outcome.DEFINITE
    pause: float = field(default=_BACKOFF_FIRST)

    def answered(self, error: str, status: int) -> None:
        self.answer, self.status = error, status
        self._may_be_done(unknown=status != 503)

    def silent(self, error: str, *, unknown: bool) -> None:
        self.silence = error
        self._may_be_done(unknown=unknown)

    def error(self) -> ServiceError:
        text = self.silence if self.answer is None else self.answer
        return ServiceError(text, status=self.status, outcome=self.outcome)

    def _may_be_done(self, *, unknown: bool) -> None:
        if unknown and self.changes:
            self.outcome = Outcome.UNKNOWN  # and it stays so: a later refusal takes nothing back


class KVClient:
    """Reads and writes keys through any node of a cluster.

    Use it as an asynchronous context manager. Given one URL it asks that node for the others.

    Args:
        urls: of one or more nodes, `http://HOST:PORT`; without a scheme, https where `ssl` is given
            and http otherwise.
        token: the cluster's token.
        timeout: seconds for one call, all its tries together.
        ssl: the context for https URLs: which authorities, which certificate of our own.
        discover: learn the other members from the first one that answers, and turn to them.

    Raises:
        ValueError: no URL, or not an http or https one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token: str | None = None,
        timeout: float = 30.0,
        ssl: SSLContext | None = None,
        discover: bool = True,
    ) -> None:
        self._urls = [_base_url(url, "http" if ssl is None else "https") for url in urls]
        if not self._urls:
            raise ValueError("at least one URL is needed")
        self._timeout = timeout
        self._discovered = not discover
        self._numbering = _Numbering(self._open_session)
        # The members speak to each other directly; a proxy of the environment is not for them.
        self._http = httpx.AsyncClient(
            timeout=_ATTEMPT_TIMEOUT,
            trust_env=False,
            verify=True if ssl is None else ssl,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._http.aclose()

    @property
    def urls(self) -> Sequence[str]:
        """The nodes known by now; the one asked next is first."""
        return tuple(self._urls)

    async def put(self, key: str, value: bytes) -> None:
        """Store `value`.

        Raises:
            CommandError: nobody may use this key.
            ServiceError: see its `outcome`.
        """
        await self._write("PUT", _key_path(key), content=value)

    async def get(self, key: str, *, stale: bool = False) -> bytes | None:
        """The value, or None where there is no such key.

        Raises:
            ServiceError: nobody answered in time, or refused.
        """
        response = await self._request("GET", _key_path(key), params=_consistency(stale))
        return None if response.status_code == 404 else response.content

    async def get_with_digest(self, key: str, *, stale: bool = False) -> tuple[bytes, str] | None:
        """The value and the SHA-256 the node has of it, in hexadecimal. Raises as `get`."""
        response = await self._request("GET", _key_path(key), params=_consistency(stale))
        if response.status_code == 404:
            return None
        return response.content, response.headers.get("etag", "").strip('"')

    async def delete(self, key: str) -> None:
        """Delete a key; it need not be there. Raises as `put`."""
        await self._write("DELETE", _key_path(key))

    async def list(self, prefix: str = "", *, stale: bool = False) -> AsyncIterator[KeyInfo]:
        """All keys with a prefix, in order. Raises as `get`."""
        after: str | None = None
        while True:
            params = {"prefix": prefix, "limit": str(_PAGE_KEYS), **_consistency(stale)}
            if after is not None:
                params["after"] = after
            keys, after = answers.page(await self._request("GET", "/kv", params=params))
            for info in keys:
                yield info
            if after is None:
                return

    async def status(self) -> dict[str, Any]:
        """The status of the first node that answers. Raises as `get`."""
        return answers.status(await self._request("GET", "/status"))

    async def leave(self) -> dict[str, Any]:
        """Ask the node of the first URL, and no other, to leave its cluster.

        Raises:
            ServiceError: it refused, or did not answer in time.
        """
        url = f"{self._urls[0]}/leave"
        try:
            response = await self._http.post(url, timeout=self._timeout)
        except httpx.RequestError as error:
            text = f"{self._urls[0]}: {answers.sentence(error)}"
            raise ServiceError(text, outcome=answers.outcome_of(error)) from error
        if response.status_code != 200:
            raise answers.refusal(response, self._urls[0])
        return answers.left(response)

    async def transfer(self, to: str | None = None) -> dict[str, Any]:
        """Ask the leader to let another member lead; returns who leads then.

        Raises:
            ServiceError: it refused, nobody leads, or there was no answer in time.
        """
        status = await self.status()
        leader = status["leader"]
        if leader is None:
            raise ServiceError("no leader is known: there is nobody to take over from")
        known = urlsplit(self._urls[0])
        url = f"{known.scheme}://{leader['address']}{known.path}"
        params = {} if to is None else {"to": to}
        try:
            response = await self._http.post(
                f"{url}/transfer", params=params, timeout=self._timeout
            )
        except httpx.RequestError as error:
            text = f"{url}: {answers.sentence(error)}"
            raise ServiceError(text, outcome=answers.outcome_of(error)) from error
        if response.status_code != 200:
            raise answers.refusal(response, url)
        return answers.transferred(response)

    # -- inside

    async def _write(self, method: str, path: str, *, content: bytes | None = None) -> None:
        """One write, applied once; only a service without sessions may do it twice."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        while True:
            request_id = await self._numbering.begin(deadline)
            headers = {} if request_id is None else {HEADER: render(request_id)}
            try:
                await self._request(
                    method, path, content=content, headers=headers, deadline=deadline
                )
            except IdRefusedError as error:
                if error.outcome is Outcome.UNKNOWN or request_id is None:
                    raise
                self._numbering.refused(request_id, error)
            else:
                return
            finally:
                self._numbering.end(request_id)

    async def _open_session(self, deadline: float) -> ClientSession:
        """Where it is not known whether one was opened, it is left unused, and expires."""
        response = await self._request("POST", "/sessions", deadline=deadline)
        return ClientSession(answers.session(response))

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        deadline: float | None = None,
    ) -> httpx.Response:
        """Ask one node after the other until one has an answer or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout if deadline is None else deadline
        tries = _Attempts(changes=method != "GET")
        while True:
            url = self._urls[0]
            response: httpx.Response | None = None
            try:
                async with asyncio.timeout_at(deadline):
                    response = await self._http.request(
                        method, url + path, params=params, content=content, headers=headers
                    )
            except (httpx.RequestError, TimeoutError) as error:
                unknown = answers.outcome_of(error) is Outcome.UNKNOWN
                tries.silent(f"{url}: {answers.sentence(error)}", unknown=unknown)
            if response is not None:
                if answers.is_done(response):
                    await self._discover(response, url, deadline)
                    return response
                if not answers.is_worth_another_try(response):
                    refusal = answers.refusal(response, url)
                    if tries.outcome is Outcome.UNKNOWN:
                        refusal.outcome = Outcome.UNKNOWN
                    raise refusal
                tries.answered(answers.error_text(response, url), response.status_code)
            if loop.time() + tries.pause >= deadline:
                raise tries.error()
            self._turn_from(url)
            await asyncio.sleep(tries.pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            tries.pause = min(tries.pause * 2, _BACKOFF_LAST)

    def _turn_from(self, url: str) -> None:
        """Ask another node next, unless another request has turned already."""
        if self._urls[0] == url and len(self._urls) > 1:
            self._urls.append(self._urls.pop(0))

    async def _discover(self, answered: httpx.Response, url: str, deadline: float) -> None:
        """Learn the other members from a node that answers, once."""
        if self._discovered:
            return
        self._discovered = True
        try:
            status = answered
            if answered.url.path != "/status":
                async with asyncio.timeout_at(deadline):
                    status = await self._http.get(f"{url}/status")
            servers: list[dict[str, str]] = status.json()["servers"] if status.is_success else []
            known = urlsplit(url)  # a prefix is the same for all, as the endpoint's path is
            found = [f"{known.scheme}://{server['address']}{known.path}" for server in servers]
        except (httpx.HTTPError, TimeoutError, *_UNREADABLE):
            self._discovered = False  # the answer at hand counts; the next one asks again
            return
        self._urls += [other for other in found if other not in self._urls]


class _Numbering:
    """Under which id a write goes: the first under a key, those that follow in a session.

    One write alone, as of the command line, is not worth a session.
    """

    def __init__(self, open_session: Callable[[float], Awaitable[ClientSession]]) -> None:
        self._open_session = open_session
        self._lock = asyncio.Lock()
        self._session: ClientSession | None = None
        self._has_written = False
        self._is_off = False

    async def begin(self, deadline: float) -> str | SessionRequest | None:
        """The id of the next write; None where the service knows none. `end` it.

        Raises:
            ServiceError: no session was opened before the deadline; nothing was written.
        """
        if self._is_off:
            return None
        if self._has_written and self._session is None:
            async with self._lock:
                await self._open(deadline)
        self._has_written = True
        return uuid.uuid4().hex if self._session is None else self._session.begin()

    def end(self, request_id: str | SessionRequest | None) -> None:
        """The write is answered or given up."""
        if isinstance(request_id, SessionRequest) and self._is_of_session(request_id):
            assert self._session is not None, "it is this one's"
            self._session.end(request_id)

    def refused(self, request_id: str | SessionRequest, error: IdRefusedError) -> None:
        """The service does not know the session, or knows none at all."""
        self._is_off = self._is_off or error.status == answers.NO_SESSIONS
        if isinstance(request_id, SessionRequest) and self._is_of_session(request_id):
            self._session = None  # it expired while nothing was written

    def _is_of_session(self, request_id: SessionRequest) -> bool:
        return self._session is not None and self._session.key == request_id.session

    async def _open(self, deadline: float) -> None:
        if self._session is not None or self._is_off:
            return
        try:
            self._session = await self._open_session(deadline)
        except IdRefusedError:
            self._is_off = True
        except ServiceError as error:
            # A key of its own for each write does as well, if there is time for one.
            if asyncio.get_running_loop().time() + _BACKOFF_LAST >= deadline:
                raise ServiceError(str(error), status=error.status) from error


def _consistency(stale: bool) -> dict[str, str]:
    return {"consistency": "stale"} if stale else {}


def _key_path(key: str) -> str:
    check_key(key)
    segments = [_DOTS.get(part, quote(part, safe="")) for part in key.split("/")]
    return "/kv/" + "/".join(segments)


def _base_url(text: str, default_scheme: str) -> str:
    url = text if "://" in text else f"{default_scheme}://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        if usable and httpx.URL(url).host and not any(map(str.isspace, url)):
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    except (ValueError, httpx.InvalidURL):
        pass
    raise ValueError(f"{text!r} is not http[s]://HOST:PORT")
