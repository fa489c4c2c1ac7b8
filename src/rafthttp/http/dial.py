"""Plain and TLS connections to a peer, before any HTTP is spoken.

Knows addresses, sockets and TLS. A dial is any `async (address, timeout) -> TransportStream`:
another way to a peer (a SOCKS proxy, a Unix socket) gives the class to its own `create_connection`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from rafthttp.http.grammar import split_address
from rafthttp.http.stream import TransportStream
from rafthttp.raft.errors import ConfigError, PeerUnreachableError
from rafthttp.raft.types import ServerAddress


class Dial(Protocol):
    """Opens a connection; the caller upgrades it, within the same deadline."""

    async def __call__(self, address: ServerAddress, timeout: float) -> TransportStream:
        """A connected stream that is not started, within `timeout` seconds, TLS included.

        Raises:
            PeerUnreachableError: none came of it; no socket is left open.
        """
        ...


def dial_tcp() -> Dial:
    """Plain TCP (Go's `NewDialTCP`)."""

    async def dial(address: ServerAddress, timeout: float) -> TransportStream:
        return await connect(address, timeout)

    return dial


def dial_tls(context: ssl.SSLContext, *, server_hostname: str | None = None) -> Dial:
    """TLS over TCP (Go's `NewDialTLS`).

    The context is used as it is at each dial, so `context.load_cert_chain(…)` rotates the client
    certificate. Its ALPN is set to `http/1.1` here: an upgrade exists in no other version.
    `server_hostname` is the name the certificate must have, where it is not the address's host.

    Raises:
        ConfigError: the context is one for servers.
    """
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise ConfigError("dial_tls needs a client context (ssl.PROTOCOL_TLS_CLIENT)")
    context.set_alpn_protocols(["http/1.1"])

    async def dial(address: ServerAddress, timeout: float) -> TransportStream:
        return await connect(address, timeout, context=context, server_hostname=server_hostname)

    return dial


async def connect(
    address: str,
    timeout: float,
    *,
    context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> TransportStream:
    """Resolve, connect and shake TLS hands, all within `timeout` seconds.

    Raises:
        PeerUnreachableError: none came of it; no socket is left open.
    """
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise PeerUnreachableError(f"cannot dial {address!r}: {error}") from error
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            if context is None:
                _, stream = await loop.create_connection(TransportStream, host, port)
            else:
                _, stream = await loop.create_connection(
                    TransportStream,
                    host,
                    port,
                    ssl=context,
                    server_hostname=server_hostname or host,
                )
    except TimeoutError as error:
        raise PeerUnreachableError(f"{address} did not answer within {timeout:g} s") from error
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise PeerUnreachableError(f"cannot connect to {address}: {error}") from error
    return stream
