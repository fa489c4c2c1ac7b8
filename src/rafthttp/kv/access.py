"""Who may use the key-value service: a shared token, and a list of networks.

Knows ASGI scopes; nothing of what is guarded. The endpoint of the members guards itself.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final, TypeAlias

from starlette.responses import JSONResponse

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Network: TypeAlias = IPv4Network | IPv6Network

_CHANGING: Final = frozenset({"PUT", "POST", "DELETE", "PATCH"})


class JSONLine(JSONResponse):
    """JSON that ends with a line feed, for people with a terminal."""

    def render(self, content: Any) -> bytes:
        """The body. What is no Unicode in a member's name is told as JSON escapes it."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace") + b"\n"


def error_response(
    status: int,
    text: str,
    *,
    outcome: str = "definite",
    leader: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """The body of every error: a sentence, whether the request may yet take effect, who leads."""
    body = {"error": text, "outcome": outcome, "leader": leader}
    return JSONLine(body, status, headers)


def route_path(scope: Mapping[str, Any]) -> str:
    """The path within the application, without the prefix it is served below."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


class Guard:
    """ASGI middleware: asks for the token, and for an address of the listed networks.

    A request that changes something and comes from a page of another site (its `Origin` is not
    its `Host`) is refused: browsers send such requests for anybody.

    Args:
        app: what is guarded.
        token: the shared secret, or None for no token.
        allow: networks; none means all.
        open_paths: paths within the application that are not guarded here.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None = None,
        allow: Sequence[Network] = (),
        open_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._allow = tuple(allow)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and route_path(scope) not in self._open_paths:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if not self._is_allowed(scope):
            return error_response(403, "this address may not use the service")
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = hmac.compare_digest(given.strip(), self._token)
            if scheme.lower() != b"bearer" or not known:
                return error_response(
                    401,
                    "a bearer token is needed: `Authorization: Bearer TOKEN`",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] in _CHANGING:
            site = origin.partition(b"://")[2]
            if site != headers.get(b"host"):
                return error_response(403, "changes asked for by pages of other sites are refused")
        return None

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._allow:
            return True
        client = scope.get("client")
        if client is None or any(_is_forwarding(name) for name, _ in scope["headers"]):
            return False  # the socket's address is a proxy's, not the asker's
        address = ip_address(client[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._allow)


def _is_forwarding(name: bytes) -> bool:
    return name in {b"forwarded", b"x-real-ip", b"via"} or name.startswith(b"x-forwarded-")
