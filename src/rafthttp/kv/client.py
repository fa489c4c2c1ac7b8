"""A client of the key-value service that knows several nodes and goes on when one fails.

Knows the HTTP API; nothing of Raft but who may answer. Every request is idempotent (a put stores
the same bytes again), so that one whose outcome is unknown is simply sent again, to another node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ssl import SSLCertVerificationError, SSLContext, SSLError
from typing import Any, Final, Self, cast
from urllib.parse import quote, urlsplit

import httpx

from rafthttp import Outcome, RaftHttpError
from rafthttp.kv.commands import KeyInfo, check_key

# A follower answers 503 within the service's own timeout (5 s); this is for one that is stuck.
_ATTEMPT_TIMEOUT: Final = httpx.Timeout(10.0, connect=2.0)
_BACKOFF_FIRST: Final = 0.05
_BACKOFF_LAST: Final = 1.0
_PAGE_KEYS: Final = 1000
# A dot segment would be taken for a path's by every client and proxy on the way.
_DOTS: Final = {".": "%2E", "..": "%2E%2E"}


class ServiceError(RaftHttpError):
    """The service refused, or nobody answered in time.

    Attributes:
        status: HTTP status of the last answer, or None when there was none.
        outcome: whether the request may have taken effect.
    """

    def __init__(
        self, text: str, *, status: int | None = None, outcome: Outcome = Outcome.DEFINITE
    ) -> None:
        super().__init__(text)
        self.status = status
        self.outcome = outcome


@dataclass(slots=True)
class _Attempts:
    """What the tries of one request have come to."""

    error: str = "nobody was asked"
    status: int | None = None
    outcome: Outcome = Outcome.DEFINITE
    pause: float = field(default=_BACKOFF_FIRST)

    def failed(self, error: str, status: int | None, *, unknown: bool) -> None:
        self.error, self.status = error, status
        if unknown:
            self.outcome = Outcome.UNKNOWN  # and it stays so: a later refusal takes nothing back


class KVClient:
    """Reads and writes keys through any node of a cluster.

    Use it as an asynchronous context manager. Given one URL it asks that node for the others.

    Args:
        urls: of one or more nodes, `http://HOST:PORT`.
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
        self._urls = [_base_url(url) for url in urls]
        if not self._urls:
            raise ValueError("at least one URL is needed")
        self._timeout = timeout
        self._discovered = not discover
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
        await self._request("PUT", _key_path(key), content=value)

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
        await self._request("DELETE", _key_path(key))

    async def list(self, prefix: str = "", *, stale: bool = False) -> AsyncIterator[KeyInfo]:
        """All keys with a prefix, in order. Raises as `get`."""
        after: str | None = None
        while True:
            params = {"prefix": prefix, "limit": str(_PAGE_KEYS), **_consistency(stale)}
            if after is not None:
                params["after"] = after
            page = cast("dict[str, Any]", (await self._request("GET", "/kv", params=params)).json())
            for item in page["keys"]:
                yield KeyInfo(item["key"], item["size"])
            after = page["next"]
            if after is None:
                return

    async def status(self) -> dict[str, Any]:
        """The status of the first node that answers. Raises as `get`."""
        return cast("dict[str, Any]", (await self._request("GET", "/status")).json())

    async def leave(self) -> dict[str, Any]:
        """Ask the node of the first URL, and no other, to leave its cluster.

        Raises:
            ServiceError: it refused, or did not answer in time.
        """
        try:
            response = await self._http.post(f"{self._urls[0]}/leave", timeout=self._timeout)
        except httpx.HTTPError as error:
            text = f"{self._urls[0]}: {_sentence(error)}"
            raise ServiceError(text, outcome=_outcome_of(error)) from error
        if response.status_code != 200:
            raise _refusal(response)
        return cast("dict[str, Any]", response.json())

    # -- inside

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """Ask one node after the other until one has an answer or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        tries = _Attempts()
        while True:
            url = self._urls[0]
            response: httpx.Response | None = None
            try:
                async with asyncio.timeout_at(deadline):
                    response = await self._http.request(
                        method, url + path, params=params, content=content
                    )
            except (httpx.TransportError, TimeoutError) as error:
                unknown = _outcome_of(error) is Outcome.UNKNOWN
                tries.failed(f"{url}: {_sentence(error)}", None, unknown=unknown)
            if response is not None:
                if response.is_success or _is_no_such_key(response):
                    await self._discover(response, url)
                    return response
                if response.status_code < 500:
                    raise _refusal(response)
                unknown = response.status_code != 503
                tries.failed(_error_text(response), response.status_code, unknown=unknown)
            if loop.time() + tries.pause >= deadline:
                raise ServiceError(tries.error, status=tries.status, outcome=tries.outcome)
            self._turn_from(url)
            await asyncio.sleep(tries.pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            tries.pause = min(tries.pause * 2, _BACKOFF_LAST)

    def _turn_from(self, url: str) -> None:
        """Ask another node next, unless another request has turned already."""
        if self._urls[0] == url and len(self._urls) > 1:
            self._urls.append(self._urls.pop(0))

    async def _discover(self, answered: httpx.Response, url: str) -> None:
        """Learn the other members from a node that answers, once."""
        if self._discovered:
            return
        self._discovered = True
        try:
            status = answered
            if answered.url.path != "/status":
                status = await self._http.get(f"{url}/status")
            servers: list[dict[str, str]] = status.json()["servers"] if status.is_success else []
            known = urlsplit(url)  # a prefix is the same for all, as the endpoint's path is
            found = [f"{known.scheme}://{server['address']}{known.path}" for server in servers]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            self._discovered = False  # the answer at hand counts; the next one asks again
            return
        self._urls += [other for other in found if other not in self._urls]


def _consistency(stale: bool) -> dict[str, str]:
    return {"consistency": "stale"} if stale else {}


def _key_path(key: str) -> str:
    check_key(key)
    segments = [_DOTS.get(part, quote(part, safe="")) for part in key.split("/")]
    return "/kv/" + "/".join(segments)


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not http://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _outcome_of(error: Exception) -> Outcome:
    """A connection that never came about carried nothing."""
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Outcome.DEFINITE if never_sent else Outcome.UNKNOWN


def _sentence(error: Exception) -> str:
    tls = _tls_error(error)
    if isinstance(tls, SSLCertVerificationError):
        return f"its TLS certificate is not accepted: {tls.verify_message.rstrip('.')}"
    if tls is not None:
        return f"TLS failed: {(tls.reason or str(tls)).replace('_', ' ').lower()}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "cannot connect"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "no answer in time"
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) and _is_https(error):
        # TLS 1.3: a client learns that its certificate was refused only when it reads, or never.
        return "it closed the connection before its answer; it may ask for a client certificate"
    return str(error) or type(error).__name__


def _is_https(error: httpx.TransportError) -> bool:
    return error.request.url.scheme == "https"


def _tls_error(error: BaseException | None) -> SSLError | None:
    """What the TLS library said; httpx and httpcore wrap it."""
    for _ in range(5):
        if error is None or isinstance(error, SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_no_such_key(response: httpx.Response) -> bool:
    """A 404 of the service; a proxy's or another application's says nothing about a key."""
    try:
        return response.status_code == 404 and "outcome" in response.json()
    except (ValueError, TypeError):
        return False


def _error_text(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url.host}:{response.url.port} answered {response.status_code}"


def _refusal(response: httpx.Response) -> ServiceError:
    unknown = response.status_code >= 500 and response.status_code != 503
    return ServiceError(
        _error_text(response),
        status=response.status_code,
        outcome=Outcome.UNKNOWN if unknown else Outcome.DEFINITE,
    )
