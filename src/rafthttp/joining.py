"""How a node becomes a member, and what it remembers of being one.

Knows the stream layer, URLs and the notes it keeps in the stable store; of consensus only the
latest configuration.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgpack

from rafthttp.http.grammar import parse_address
from rafthttp.http.layer import Layer
from rafthttp.http.membership_client import Changed
from rafthttp.raft.errors import (
    ConfigError,
    HandshakeError,
    MembershipError,
    StorageError,
    TransportError,
)
from rafthttp.raft.status import LatestConfiguration
from rafthttp.raft.types import ServerID

_log = logging.getLogger("rafthttp.node")

CLUSTER_ID: Final = b"ClusterID"
"""Stable key: text minted at bootstrap, adopted at join."""

PENDING_JOIN: Final = b"PendingJoin"
"""Stable key: whom to ask, from the first request to join until it is done."""

LEFT: Final = b"Left"
"""Stable key: index of the latest configuration known when this node left. Its own removal may not
have reached it; a configuration that counts it again has a higher index, or it has joined anew,
which deletes the note."""

# How long a joiner waits for its own address to answer before it asks to join all the same: behind
# some networks a host cannot reach itself by the name the others use.
OWN_ADDRESS_WAIT: Final = 10.0
_OWN_ADDRESS_PAUSES: Final = (0.01, 0.25)
_JOIN_PAUSES: Final = (0.05, 2.0)


class NoteStore(Protocol):
    """Where a node keeps its notes."""

    @property
    def blocking(self) -> bool:
        """Whether `set` waits for a disk."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """A note, or None."""
        ...

    def set(self, values: Mapping[bytes, bytes | None]) -> None:
        """Keep notes durably; None deletes one."""
        ...


class Membership:
    """What one node knows of being a member: whom it asks, and whether it has left.

    Args:
        server_id: the node.
        store: where the notes are.
        targets: whom to ask to be added; else those of a join that a crash cut short.

    Attributes:
        targets: who is asked; empty where nothing is to be joined.
        is_joining: whether this node is asking to be made a member.
        error: why joining has not succeeded yet, or None.
    """

    def __init__(self, server_id: ServerID, store: NoteStore, targets: Sequence[str]) -> None:
        self._id = server_id
        self._store = store
        self._left_index = int(store.get(LEFT) or 0)
        self.targets = list(targets) or unpack_targets(store.get(PENDING_JOIN))
        self.is_joining = False
        self.error: str | None = None

    def has_left(self, latest: LatestConfiguration) -> bool:
        """Whether this node left, and no configuration has counted it since; as far as it knows."""
        return 0 < latest.index <= self._left_index

    def is_member(self, latest: LatestConfiguration) -> bool:
        """Whether it is in the latest configuration, and has not left since; as far as it knows."""
        return latest.configuration.get(self._id) is not None and not self.has_left(latest)

    async def note_left(self, latest: LatestConfiguration) -> None:
        """The cluster has removed this node, which is done whatever becomes of the note.

        Where the removal has reached the log there is nothing to note; a server that shuts down on
        it (`shutdown_on_remove`) has closed its stores.
        """
        self._left_index = latest.index
        if latest.configuration.get(self._id) is not None:
            try:
                await self._set({LEFT: b"%d" % latest.index})
            except StorageError as error:
                _log.warning("%s: could not note that it left: %s", self._id, error)

    async def join(
        self,
        layer: Layer,
        timeout: float,
        on_released: Callable[[Changed], Awaitable[None]] | None,
        others: Callable[[], Sequence[str]],
    ) -> None:
        """Ask to be added until it is done. As `join`, with notes.

        The others of the latest configuration are asked too: a server that was added gets the log,
        and the one member it was told of may be dead by then.
        """
        await self._set({PENDING_JOIN: pack_targets(self.targets)})
        _log.info("%s: asks %s to be added", self._id, " or ".join(self.targets))

        def targets() -> list[str]:
            return [*self.targets, *(a for a in others() if a not in self.targets)]

        try:
            await join(layer, self._id, targets, timeout, self._on_error, on_released)
        except Exception as error:  # the task's end, which nobody awaits before the node's
            self._on_error(f"asks no more to be added, after a bug: {error!r}")
            raise
        self.is_joining, self.error, self._left_index = False, None, 0
        _log.info("%s: a member of cluster %s", self._id, layer.cluster_id)
        values: dict[bytes, bytes | None] = {PENDING_JOIN: None, LEFT: None}
        if layer.cluster_id is not None:
            values[CLUSTER_ID] = layer.cluster_id.encode()
        await self._set(values)

    def _on_error(self, text: str) -> None:
        if text != self.error:
            _log.warning("%s: %s", self._id, text)
        self.error = text

    async def _set(self, values: Mapping[bytes, bytes | None]) -> None:
        if self._store.blocking:
            await asyncio.to_thread(self._store.set, values)
        else:
            self._store.set(values)


async def join(
    layer: Layer,
    server_id: ServerID,
    targets: Callable[[], Sequence[str]],
    timeout: float,
    on_error: Callable[[str], None],
    on_released: Callable[[Changed], Awaitable[None]] | None = None,
) -> None:
    """Ask the targets until this server is a member.

    With `on_released`, for a server without state, first until none of them counts on votes and
    acknowledgements it may have forgotten; then `on_released` gets that answer (S62), and where it
    fails, the release is asked for again.

    A refusal is no end: what is refused now (a wrong token, an address that does not answer) may be
    put right. `on_error` is told of each failure.
    """
    await _wait_for_own_address(layer, timeout)
    pause, last = _JOIN_PAUSES
    while True:
        try:
            if on_released is not None:
                await on_released(await layer.release(server_id, targets(), timeout))
                on_released = None
            await layer.join(server_id, targets(), timeout)
        except (MembershipError, TransportError, StorageError) as error:
            on_error(f"cannot join: {error}{_hint(error, layer.path)}")
        else:
            return
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause = min(pause * 2, last)


def _hint(error: Exception, path: str) -> str:
    """What to look at first, where the answer alone does not say."""
    if isinstance(error, MembershipError) and error.status == HTTPStatus.NOT_FOUND:
        return f"; no members' endpoint is at {path} there: is the path (--path) the same on both?"
    return ""


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


def join_target(url: str, scheme: str = "http") -> str:
    """The `HOST:PORT` of a member's URL; a `HOST:PORT` without a scheme has that of `scheme`.

    Raises:
        ConfigError: neither an http or https URL nor HOST:PORT; or it is https where this node
            dials without TLS, which would send what is meant to be secret in the clear.
    """
    try:
        parts = urlsplit(url if "://" in url else f"{scheme}://{url}")
        default_port = {"http": 80, "https": 443}[parts.scheme] if "://" in url else 0
        port = parts.port or default_port
        host = parts.hostname or ""
        target = parse_address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except (ValueError, KeyError):
        raise ConfigError(f"join URL {url!r} is not http[s]://HOST:PORT or HOST:PORT") from None
    if (parts.scheme, scheme) == ("https", "http"):
        raise ConfigError(f"join URL {url!r} is https, but this node is to speak http")
    return target


def pack_targets(targets: Sequence[str]) -> bytes:
    """The stored form of join targets."""
    return msgpack.packb(list(targets))


def unpack_targets(packed: bytes | None) -> list[str]:
    """Read what `pack_targets` wrote; nothing stored is no target."""
    targets: Any = [] if packed is None else msgpack.unpackb(packed)
    return [str(target) for target in targets]
