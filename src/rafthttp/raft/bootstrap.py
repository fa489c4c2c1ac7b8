"""What is done to the stores of a server that does not run: the first configuration."""

from __future__ import annotations

import time

from rafthttp.raft.config import Config
from rafthttp.raft.errors import ConfigError
from rafthttp.raft.runtime import restart
from rafthttp.raft.storage.protocols import LogStore, SnapshotStore, StableStore
from rafthttp.raft.types import Configuration


async def bootstrap_cluster(
    config: Config,
    log_store: LogStore,
    stable_store: StableStore,
    snapshot_store: SnapshotStore | None,
    configuration: Configuration,
) -> None:
    """Write the first configuration of a new cluster (index 1, term 1), before `Raft.start`.

    Raises:
        CantBootstrapError: there is state already, or nobody votes.
        ConfigError: this server is not in the configuration.
    """
    config.validate()
    if configuration.get(config.local_id) is None:
        raise ConfigError(f"local_id {config.local_id!r} is not in the configuration")
    restart.bootstrap(log_store, stable_store, snapshot_store, configuration, time.time_ns())


has_existing_state = restart.has_existing_state
