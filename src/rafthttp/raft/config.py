"""Settings of a `Raft` server, with hashicorp/raft's names and defaults.

All durations are seconds. `Config.validate` names the field and the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import ServerID

# Each bound: (least, most). Least values are hashicorp/raft's ValidateConfig where it has one;
# most values only catch a wrong unit (milliseconds given where seconds are meant).
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "heartbeat_timeout": (0.005, 3600),
    "election_timeout": (0.005, 3600),
    "commit_timeout": (0.001, 60),
    "leader_lease_timeout": (0.005, 3600),
    "trailing_logs": (0, 1 << 40),
    "snapshot_interval": (0.005, 7 * 86400),
    "snapshot_threshold": (1, 1 << 40),
    "entry_size_bytes_max": (1, 128 << 20),
    "append_size_bytes_max": (1, 128 << 20),
    "append_entries_max": (1, 1 << 20),
    "inflight_appends_max": (1, 4096),
    "pending_applies_max": (1, 1 << 24),
    "pending_bytes_max": (1, 1 << 40),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one server. Frozen: derive a changed one with `dataclasses.replace`.

    Attributes:
        local_id: this server's id; the only field without a default.
        heartbeat_timeout: silence of the leader after which a follower campaigns (at random, up to
            twice this).
        election_timeout: how long a candidate waits for votes (at random, up to twice this).
        commit_timeout: within how long an idle follower is told of a commit.
        leader_lease_timeout: how long a leader goes on without hearing from a quorum.
        pre_vote: ask before disturbing (Raft thesis §9.6). Off for peers older than Go's 1.7.
        early_campaign: a closed stream of the leader is a signal to campaign (decision 7).
        lease_reads: the leader serves linearizable reads without a round trip while a quorum's
            promise holds. Needs itself on, and `early_campaign` off, on every voter.
        snapshot_interval: how often to check whether a snapshot is due.
        snapshot_threshold: entries since the last snapshot that make one due.
        trailing_logs: entries kept behind a snapshot for followers that lag.
        shutdown_on_remove: a leader that has removed itself shuts down. A follower does not, as in
            Go: nobody tells it that its removal is committed. Off, unlike in Go: the process is the
            application's, it has an answer to give to whoever asked, and may join again; a removed
            server disturbs nobody (S53).
        no_snapshot_restore_on_start: the state machine keeps its state itself, durably, at least as
            far as each snapshot taken: at start it is not restored from one. What stands behind the
            snapshot is applied again: it has to know those entries by their index, and answer as it
            did before. A leader's snapshot is restored all the same. The table of a `SessionFSM` is
            not part of that state: it is restored.
        entry_size_bytes_max: largest command. 16 MiB: an entry is copied a few times in memory on
            every member, and one that takes an election timeout to send costs leadership.
        append_size_bytes_max: most bytes of entries in one AppendEntries; one alone may exceed it.
        append_entries_max: most entries in one AppendEntries; stays below what a receiver of ours
            accepts in one frame (`WireLimits.entries_max`).
        inflight_appends_max: AppendEntries sent to one peer and not answered. Go keeps 2.
        pending_applies_max: proposals not yet committed, beyond which `OverloadedError`.
        pending_bytes_max: bytes of such proposals, likewise.
    """

    local_id: ServerID
    heartbeat_timeout: float = 1.0
    election_timeout: float = 1.0
    commit_timeout: float = 0.05
    leader_lease_timeout: float = 0.5
    pre_vote: bool = True
    early_campaign: bool = True
    lease_reads: bool = False
    snapshot_interval: float = 120.0
    snapshot_threshold: int = 8192
    trailing_logs: int = 10240
    shutdown_on_remove: bool = False
    no_snapshot_restore_on_start: bool = False
    entry_size_bytes_max: int = 16 << 20
    append_size_bytes_max: int = 1 << 20
    append_entries_max: int = 8192
    inflight_appends_max: int = 64
    pending_applies_max: int = 65536
    pending_bytes_max: int = 256 << 20

    def validate(self) -> None:
        """Check every field.

        Raises:
            ConfigError: names the field and the bound.
        """
        for field in fields(self):
            _check(field.name, str(field.type), getattr(self, field.name))
        if self.election_timeout < self.heartbeat_timeout:
            raise ConfigError(
                f"election_timeout is {self.election_timeout}; it must be at least"
                f" heartbeat_timeout ({self.heartbeat_timeout})"
            )
        if self.leader_lease_timeout > self.heartbeat_timeout:
            raise ConfigError(
                f"leader_lease_timeout is {self.leader_lease_timeout}; it must be at most"
                f" heartbeat_timeout ({self.heartbeat_timeout})"
            )
        if self.lease_reads and self.early_campaign:
            raise ConfigError(
                "lease_reads and early_campaign are both on; one must be off: a follower that"
                " campaigns early breaks the promise that a lease rests on"
            )


@dataclass(frozen=True, slots=True)
class ReloadableConfig:
    """The fields of `Config` that a running server takes over (`Raft.reload_config`)."""

    trailing_logs: int
    snapshot_interval: float
    snapshot_threshold: int
    heartbeat_timeout: float
    election_timeout: float

    @classmethod
    def of(cls, config: Config) -> ReloadableConfig:
        """Those of `config`; change them with `dataclasses.replace`."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def applied_to(self, config: Config) -> Config:
        """`config` with these fields; checked.

        Raises:
            ConfigError: names the field and the bound.
        """
        changed = replace(config, **{f.name: getattr(self, f.name) for f in fields(self)})
        changed.validate()
        for name in ("heartbeat_timeout", "election_timeout"):
            if config.lease_reads and getattr(changed, name) != getattr(config, name):
                raise ConfigError(
                    f"{name} is {getattr(config, name)}, and stays so while lease_reads is on:"
                    " leases rest on what every voter was started with"
                )
        return changed


def _check(name: str, kind: str, value: object) -> None:
    """One field: its type, then its bounds."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; it must be True or False")
    elif kind == "ServerID":
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name} is {value!r}; it must be text, and not empty")
    else:
        least, most = _BOUNDS[name]
        whole = kind == "int"
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        # A NaN is not between anything.
        if not number or not least <= value <= most:  # type: ignore[operator] # a number by now
            what = "a whole number" if whole else "a number"
            raise ConfigError(f"{name} is {value!r}; it must be {what} from {least:g} to {most:g}")
