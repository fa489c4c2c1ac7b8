"""Two rare moments of a running server: its cluster begins, and it is removed from it.

Knows the driver's parts; neither is on anybody's way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rafthttp.raft.errors import ConfigError, ShutdownError
from rafthttp.raft.runtime.driver import Driver
from rafthttp.raft.types import Configuration, LogType, ServerID
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.raft.wire.entries import encode_log


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
    driver.cache.append([record])
    driver.wake()


def watch_removal(
    driver: Driver, local_id: ServerID, patience: float, on_removed: Callable[[], None]
) -> None:
    """Call `on_removed` once a committed configuration has this server no more that one had.

    A leader that removed itself first hears of the successor it told to campaign, for at most
    `patience` seconds.
    """
    core = driver.core
    was_member = False
    since_ns: int | None = None

    def is_gone() -> bool:
        nonlocal was_member, since_ns
        is_member = core.committed_configuration.get(local_id) is not None
        if is_member:
            since_ns = None
        elif was_member:
            since_ns = driver.now_ns()
        was_member = is_member
        return since_ns is not None and (
            not core.awaits_campaign or driver.now_ns() - since_ns > patience * 1e9
        )

    def done(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled() and watch.exception() is None:
            on_removed()

    driver.watch(is_gone).add_done_callback(done)
