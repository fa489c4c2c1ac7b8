"""The core's settings, from a server's: seconds become nanoseconds."""

from __future__ import annotations

from rafthttp.raft.config import Config
from rafthttp.raft.core.ready import CoreConfig


def core_config(config: Config) -> CoreConfig:
    """What the core is to know of them."""

    def ns(seconds: float) -> int:
        return int(seconds * 1e9)

    return CoreConfig(
        local_id=config.local_id,
        heartbeat_timeout_ns=ns(config.heartbeat_timeout),
        election_timeout_ns=ns(config.election_timeout),
        commit_timeout_ns=ns(config.commit_timeout),
        leader_lease_timeout_ns=ns(config.leader_lease_timeout),
        disk_timeout_ns=ns(config.election_timeout),
        pre_vote=config.pre_vote,
        early_campaign=config.early_campaign,
        lease_reads=config.lease_reads,
        append_size_bytes_max=config.append_size_bytes_max,
        append_entries_max=config.append_entries_max,
        inflight_appends_max=config.inflight_appends_max,
    )
