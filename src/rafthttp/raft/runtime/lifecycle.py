"""Rare moments of a running server: its cluster begins, counts on it no more, and removes it.

Knows the driver's parts; none is on anybody's way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rafthttp.raft.errors import ConfigError, ShutdownError
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.runtime.plausible import check_numbers
from rafthttp.raft.runtime.restart import VOTES_FROM, encode_votes_from
from rafthttp.raft.storage.protocols import StableStore
from rafthttp.raft.types import Configuration, LogPosition, LogType, ServerID, State
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import decode_log, encode_log


def bootstrap_live(driver: Driver, configuration: Configuration, local_id: ServerID) -> None:
    """Put the first configuration into the log of a server that has nothing.

    Raises:
        CantBootstrapError: it has something.
        ConfigError: it does not vote in the configuration.
    """
    if driver.closed:
        raise ShutdownError("raft is shut down")
    if not configuration.has_vote(local_id):
        raise ConfigError(f"local_id {local_id!r} is no voter of the configuration")
    data = encode_configuration(configuration)
    record = encode_log(1, 1, LogType.CONFIGURATION, data, b"", time.time_ns())
    driver.core.bootstrap(configuration, len(record), driver.now_ns())
    driver.cache.append([record], [decode_log(record)])
    driver.wake()


async def take_part(driver: Driver, stable_store: StableStore, votes_from: LogPosition) -> None:
    """Note what the log must reach before a vote, durably; then take part (ADR 9).

    Raises:
        StorageError: it could not be noted; the server takes no part.
        ProtocolError: no correct leader is there.
        ShutdownError: definite.
    """
    if driver.closed:
        raise ShutdownError("raft is shut down")
    check_numbers(driver.core, votes_from.term, votes_from.index)
    note = {VOTES_FROM: encode_votes_from(votes_from)}
    await driver.disk.call(stable_store.set, note)
    driver.core.take_part(votes_from, driver.now_ns())
    driver.inbound.has_no_part = False
    driver.wake()


def watch_removal(
    driver: Driver, local_id: ServerID, patience: float, on_removed: Callable[[], None]
) -> None:
    """Call `on_removed` once this server has led until its own removal was committed.

    It first hears of the successor it told to campaign, for at most `patience` seconds. A follower
    may meet with its removal, an old one, when it is added again: it is not called for that.
    """
    core = driver.core
    led = False
    since_ns: int | None = None

    def is_gone() -> bool:
        nonlocal led, since_ns
        if core.committed_configuration.get(local_id) is not None:
            led, since_ns = core.state is State.LEADER, None
        elif led:
            led, since_ns = False, driver.now_ns()
        return since_ns is not None and (
            not core.awaits_campaign or driver.now_ns() - since_ns > patience * 1e9
        )

    def done(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled() and watch.exception() is None:
            on_removed()

    driver.watch(is_gone).add_done_callback(done)
