"""How a node becomes a member while the application's port opens around it.

Knows the stream layer, URLs and the two notes it keeps in the stable store; nothing of consensus.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgpack

from rafthttp.http.layer import Layer
from rafthttp.raft.errors import ConfigError, HandshakeError, MembershipError, TransportError
from rafthttp.raft.types import ServerID

_log = logging.getLogger("rafthttp.node")

# How long a joiner waits for its own address to answer before it asks to join all the same: behind
# some networks a host cannot reach itself by the name the others use.
OWN_ADDRESS_WAIT: Final = 10.0
_OWN_ADDRESS_PAUSES: Final = (0.01, 0.25)
_JOIN_PAUSES: Final = (0.05, 2.0)


async def join(
    layer: Layer,
    server_id: ServerID,
    targets: Sequence[str],
    timeout: float,
    on_error: Callable[[str], None],
    on_released: Callable[[], None] | None = None,
) -> None:
    """Ask the targets until this server is a member.

    With `on_released`, for a server without state, first until none of them counts on votes and
    acknowledgements it may have forgotten; then `on_released` is called (S62).

    A refusal is no end: what is refused now (a wrong token, an address that does not answer) may be
    put right. `on_error` is told of each failure.
    """
    await _wait_for_own_address(layer, timeout)
    pause, last = _JOIN_PAUSES
    while True:
        try:
            if on_released is not None:
                await layer.release(server_id, targets, timeout)
                on_released()
                on_released = None
            await layer.join(server_id, targets, timeout)
        except (MembershipError, TransportError) as error:
            on_error(f"cannot join: {error}")
        else:
            return
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause = min(pause * 2, last)


async def _wait_for_own_address(layer: Layer, timeout: float) -> None:
    """The cluster dials back before it adds a server, whose port may open after its start."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + OWN_ADDRESS_WAIT
    pause, last = _OWN_ADDRESS_PAUSES
    reason = ""
    while loop.time() < deadline:
        try:
            stream = await layer.dial(layer.address, timeout)
        except TransportError as error:
            reason = str(error)
            if _is_refused(error):
                break
            await asyncio.sleep(pause)
            pause = min(pause * 2, last)
        else:
            stream.abort()
            return
    _log.warning("cannot reach %s, this node's own address: %s", layer.address, reason)


def _is_refused(error: TransportError) -> bool:
    """Whether somebody serves there who says no: waiting changes nothing, a closed port may."""
    status = error.__cause__.status if isinstance(error.__cause__, HandshakeError) else None
    return status is not None and 400 <= status < 500


def join_target(url: str) -> str:
    """The `HOST:PORT` of a member's URL.

    Raises:
        ConfigError: not an http or https URL.
    """
    try:
        parts = urlsplit(url)
        default_port = {"http": 80, "https": 443}[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):
        raise ConfigError(f"join URL {url!r} is not http://HOST:PORT") from None
    host = parts.hostname
    if not host:
        raise ConfigError(f"join URL {url!r} has no host")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def pack_targets(targets: Sequence[str]) -> bytes:
    """The stored form of join targets."""
    return msgpack.packb(list(targets))


def unpack_targets(packed: bytes | None) -> list[str]:
    """Read what `pack_targets` wrote; nothing stored is no target."""
    targets: Any = [] if packed is None else msgpack.unpackb(packed)
    return [str(target) for target in targets]
