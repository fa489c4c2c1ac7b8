"""Who may open a stream, join, leave, or have a command forwarded.

Knows requests and addresses; no server. The question is asked before the 101 and before any body is
read; whatever goes wrong while it is answered refuses.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from rafthttp.http.messages import Headers, PeerCertificate, SocketAddress
from rafthttp.raft.errors import ConfigError


class Purpose(StrEnum):
    """What a request to the endpoint is for."""

    STREAM = "stream"
    JOIN = "join"
    LEAVE = "leave"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What is known of who asks.

    Attributes:
        purpose: what the request is for.
        headers: as they came; only as true as the peer or the proxy in front.
        client: the socket peer; a proxy's where one stands in front. None for a socket without.
        certificate: `getpeercert()` of a TLS client certificate that was verified, or None.
        path: of the request, percent-encoded.
    """

    purpose: Purpose
    headers: Headers
    client: SocketAddress | None
    certificate: PeerCertificate | None
    path: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who may. `name` is for logs."""

    name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody who may not, and what to tell them."""

    text: str = "not authorised"
    status: int = 401


Authorize: TypeAlias = Callable[[PeerInfo], Awaitable[Principal | Refusal]]
"""Decides; slow is fine within the handler's timeout, and an exception refuses."""

HeadersFactory: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]
"""Headers to add to each request a `Layer` sends; asked every time, so a token may be renewed."""

FORWARDING_HEADERS: Final = ("Forwarded", "X-Real-IP", "Via")
"""With the `X-Forwarded-` family: signs that the socket peer is not who asks."""


def is_forwarded(headers: Headers) -> bool:
    """Whether a proxy says that it stands between the asker and the socket."""
    return any(name in headers for name in FORWARDING_HEADERS) or any(
        name.startswith("x-forwarded-") for name, _ in headers
    )


def socket_address(peer: PeerInfo) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The asker's IP address, or None where the socket does not prove it."""
    if peer.client is None or is_forwarded(peer.headers):
        return None
    try:
        address = ipaddress.ip_address(peer.client[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


async def allow_loopback(peer: PeerInfo) -> Principal | Refusal:
    """The default: only this machine, and not through a proxy on it."""
    address = socket_address(peer)
    if address is not None and address.is_loopback:
        return Principal(str(address))
    return Refusal("not authorised: only loopback peers are, unless authorize= is given")


def allow_cidrs(networks: Iterable[str]) -> Authorize:
    """Whoever's socket address lies in one of the networks, as `10.0.0.0/8` or `fd00::/8`.

    A request that came through a proxy is refused: its socket address is the proxy's.

    Raises:
        ConfigError: one of them is no network, or there is none.
    """
    parsed: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for network in networks:
        try:
            parsed.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise ConfigError(f"{network!r} is no network in CIDR notation: {error}") from None
    if not parsed:
        raise ConfigError("a list of networks without one lets nobody in")

    async def authorize(peer: PeerInfo) -> Principal | Refusal:
        address = socket_address(peer)
        if address is not None and any(address in network for network in parsed):
            return Principal(str(address))
        return Refusal("not authorised: the address is in no allowed network")

    return authorize


def bearer_token(token: str) -> Authorize:
    """Whoever shows `Authorization: Bearer TOKEN` (RFC 6750 §2.1). Works behind a proxy.

    Raises:
        ConfigError: the token is empty or cannot stand in a header.
    """
    expected = _check_token(token).encode("ascii")

    async def authorize(peer: PeerInfo) -> Principal | Refusal:
        shown = peer.headers.get_all("Authorization")
        if len(shown) == 1:
            scheme, _, credentials = shown[0].partition(" ")
            # Compared in constant time; the length of a token is no secret.
            given = credentials.strip().encode("utf-8", "replace")
            if scheme.lower() == "bearer" and hmac.compare_digest(given, expected):
                return Principal("bearer token")
        return Refusal("not authorised: no valid bearer token")

    return authorize


async def client_certificate(peer: PeerInfo) -> Principal | Refusal:
    """Whoever showed a TLS client certificate that the server's context verified.

    For a context with `verify_mode` CERT_REQUIRED and an authority that signs for members only.
    Behind a proxy that ends TLS nobody has one.
    """
    if peer.certificate is None:
        return Refusal("not authorised: no TLS client certificate was verified", 403)
    subject: tuple[tuple[tuple[str, str], ...], ...] = peer.certificate.get("subject", ())
    names = [value for part in subject for name, value in part if name == "commonName"]
    return Principal(names[0] if names else "client certificate")


def require_all(*rules: Authorize) -> Authorize:
    """Whoever passes every rule; the first refusal is the answer.

    Raises:
        ConfigError: there is no rule.
    """
    if not rules:
        raise ConfigError("no rule lets everybody in; say which")

    async def authorize(peer: PeerInfo) -> Principal | Refusal:
        names: list[str] = []
        for rule in rules:
            verdict = await rule(peer)
            if isinstance(verdict, Refusal):
                return verdict
            names.append(verdict.name)
        return Principal(", ".join(names))

    return authorize


async def allow_everybody(peer: PeerInfo) -> Principal | Refusal:
    """Everybody; only for a network that is closed otherwise."""
    return Principal("anybody" if peer.client is None else peer.client[0])


def token_headers(token: str) -> HeadersFactory:
    """What a `Layer` sends to peers that use `bearer_token`.

    Raises:
        ConfigError: the token is empty or cannot stand in a header.
    """
    headers = {"Authorization": f"Bearer {_check_token(token)}"}

    async def factory() -> Mapping[str, str]:
        return headers

    return factory


def _check_token(token: str) -> str:
    if not token:
        raise ConfigError("the token is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the token must be printable ASCII without spaces")
    return token
