"""Plain and TLS connections to a peer, before any HTTP is spoken.

Knows addresses, sockets and TLS. A dial is any `async (address, timeout) -> TransportStream`:
another way to a peer (a SOCKS proxy, a Unix socket) gives the class to its own `create_connection`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Protocol

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
    `server_hostname` is the name to ask for (SNI) and to find in the certificate, where it is not
    the host of the address that is dialled.

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
    except ssl.SSLError as error:
        why = _tls_failure(error, server_hostname or host)
        raise PeerUnreachableError(f"no TLS with {address}: {why}") from error
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
        why = f": {error}" if context is None else f" within the TLS handshake; {_MAYBE_REFUSED}"
        raise PeerUnreachableError(f"{address} closed the connection{why}") from error
    except (OSError, UnicodeError) as error:
        raise PeerUnreachableError(f"cannot connect to {address}: {error}") from error
    return stream


# OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH.
_EXPIRED: Final = 10
_WRONG_NAME: Final = (62, 64)
_MAYBE_REFUSED: Final = "it may have refused the client certificate, or miss one"
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


def _tls_failure(error: ssl.SSLError, name: str) -> str:
    """Why no TLS connection came about, in one sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return "its certificate has expired"
        if error.verify_code in _WRONG_NAME:
            return f"its certificate is not for {name}"
        return f"its certificate is not trusted ({error.verify_message})"
    if error.reason in _NOT_TLS:
        return "it does not speak TLS there"
    if "ALERT" in (error.reason or "") or "EOF" in (error.reason or ""):
        return f"it broke off the handshake ({error.reason}); {_MAYBE_REFUSED}"
    return str(error.reason or error)


def closed_early(error: Exception | None, *, is_tls: bool) -> str:
    """What to say of a connection that ended before the answer to the first request.

    In TLS 1.3 a client has finished its handshake when the server looks at its certificate: a
    refused one looks like any end of the connection (RFC 8446 §4.4.2.4, §6.2).
    """
    if is_tls:
        why = "" if error is None else f" ({getattr(error, 'reason', None) or error})"
        return f"the peer closed the TLS connection before its answer{why}; {_MAYBE_REFUSED}"
    if error is not None:
        return f"the connection broke before the answer: {error}"
    return "the peer closed the connection before its answer"
