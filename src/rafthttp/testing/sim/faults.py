"""`Faults`: everything that may go wrong in a simulated run, in one frozen object.

Knows names and ranges; not how a fault is done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Final

MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Faults:
    """What exists in a run. All zero is a perfect world. Times in simulated nanoseconds.

    `*_chance` is a probability each time; `*_rate` how often a simulated second.

    Network:
        latency_ns_max: a message takes up to this; those of different streams overtake each other.
        drop_chance: a message is lost; on a replication stream that breaks the stream.
        duplicate_chance: a request arrives once more, later.
        delay_chance: a message takes up to fifty times as long.
        clog_rate: one direction between two servers holds all messages back, then delivers them.
        partition_rate: two groups that do not hear each other.
        asymmetric_rate: one group hears the other, and is not heard.
        bridge_rate: two groups that only one server in the middle hears and reaches (S14, S15).
        reset_rate: a server sees all streams of another close, though it lives (decision 7).
    Disk:
        fsync_ns_max: a write takes up to this.
        slow_fsync_chance: a write takes up to thirty times as long.
        hung_fsync_rate: a disk does nothing for two to six election timeouts (S74).
        torn_write_chance: at a crash the write under way is left in the middle.
        eio_rate: the next write of a server fails; it takes no part until restarted (S6).
        enospc_rate: likewise, and half of that write's entries are there (S7).
        snapshot_failure_chance: a snapshot arrives broken (S41).
        flip_rate: a bit of what a server holds on its disk flips; its next start finds that by a
            checksum and is refused (S8), so it is wiped; done only where a quorum is left.
    Clock and process:
        skew_ppm_max: clocks run too fast or too slow by up to this.
        pause_rate: a process stops for one to four election timeouts and goes on (S70, S73).
        stall_rate: likewise for less than a heartbeat timeout (S75).
        crash_rate: a process dies; of its unsynced writes a random prefix survives.
        wipe_rate: a process dies and its disk is lost (S62); done only where a quorum is left.
    Operations, which are no faults but as hard:
        membership_rate: a server is added, removed, promoted or demoted.
        transfer_rate: leadership is handed over.
        snapshot_rate: a server takes a snapshot and drops its log but `trailing`.
        compact_to_tip: `trailing` is 0 (S44, S48).
    Mixed companies:
        mixed_pre_vote, mixed_early_campaign: each server has it or has it not (S18).
        mixed_batches: each server has its own batch sizes and pipeline depth.
        mixed_timeouts: each server has its own election timeout, up to twice the others'.
        lease_reads: reads are served by lease. Leases ask for equal timeouts, clocks that differ by
            less than a tenth, and no early campaigns: those faults are left out then, and Go too.
        go_followers: so many of the servers are models of a follower in Go.
        go_crash_rate: such a server dies, and forgets its leader and commit index.
        go_campaigns: such a server campaigns; one that wins dies before its first frame.
    """

    latency_ns_max: int = 1 * MS
    drop_chance: float = 0.0
    duplicate_chance: float = 0.0
    delay_chance: float = 0.0
    clog_rate: float = 0.0
    partition_rate: float = 0.0
    asymmetric_rate: float = 0.0
    bridge_rate: float = 0.0
    reset_rate: float = 0.0
    fsync_ns_max: int = 1 * MS
    slow_fsync_chance: float = 0.0
    hung_fsync_rate: float = 0.0
    torn_write_chance: float = 0.0
    eio_rate: float = 0.0
    enospc_rate: float = 0.0
    snapshot_failure_chance: float = 0.0
    skew_ppm_max: int = 0
    pause_rate: float = 0.0
    stall_rate: float = 0.0
    crash_rate: float = 0.0
    wipe_rate: float = 0.0
    membership_rate: float = 0.0
    transfer_rate: float = 0.0
    snapshot_rate: float = 0.0
    compact_to_tip: bool = False
    mixed_pre_vote: bool = False
    mixed_early_campaign: bool = False
    mixed_batches: bool = False
    mixed_timeouts: bool = False
    lease_reads: bool = False
    go_followers: int = 0
    flip_rate: float = 0.0
    go_crash_rate: float = 0.0
    go_campaigns: bool = False

    @classmethod
    def swarm(cls, rng: random.Random) -> Faults:
        """Each fault exists in about every other run, at its own rate (swarm testing).

        A run in which everything goes wrong at once hides what only a few faults together show.
        """
        chosen: dict[str, float] = {}
        for name, (least, most) in _SWARM.items():
            if rng.random() < _CHANCE:
                chosen[name] = least * (most / least) ** rng.random()
        whole = {name: int(value) for name, value in chosen.items() if name in _WHOLE}
        flags = {name: rng.random() < _CHANCE for name in _FLAGS}
        flags["lease_reads"] = rng.random() < 0.2
        if flags["lease_reads"]:
            flags["mixed_timeouts"] = flags["mixed_early_campaign"] = False
            whole["skew_ppm_max"] = min(whole.get("skew_ppm_max", 0), _LEASE_SKEW_PPM_MAX)
        elif rng.random() < 0.15:
            whole["go_followers"] = 1
        cls._draw_later(chosen, flags, go="go_followers" in whole)
        return replace(cls(), **{**chosen, **whole, **flags})  # type: ignore[arg-type] # by name

    @staticmethod
    def _draw_later(chosen: dict[str, float], flags: dict[str, bool], *, go: bool) -> None:
        """What joined `Faults` later: drawn aside, so that every older draw stays as it was."""
        aside = random.Random(repr(sorted(chosen.items())))  # noqa: S311 - histories must repeat
        if aside.random() < _CHANCE:
            chosen["flip_rate"] = 0.3 * 5 ** aside.random()
        if go and aside.random() < _CHANCE:
            chosen["go_crash_rate"] = 10 ** aside.random()
        flags["go_campaigns"] = go and aside.random() < _CHANCE

    @property
    def call(self) -> str:
        """The call that makes it, without what is as in a perfect world."""
        given = [f"{name}={getattr(self, name)!r}" for name in self.kinds()]
        return f"Faults({', '.join(given)})"

    def kinds(self) -> list[str]:
        """Names of what differs from a perfect world. For reports."""
        perfect = type(self)()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(perfect, f.name)]


# How often each exists in a run.
_CHANCE: Final = 0.5
# Least and most of each, when it exists. Rates are such that a run of about two simulated seconds
# sees a few of each.
_SWARM: Final[dict[str, tuple[float, float]]] = {
    "latency_ns_max": (0.2 * MS, 25 * MS),
    "drop_chance": (0.002, 0.1),
    "duplicate_chance": (0.01, 0.2),
    "delay_chance": (0.002, 0.1),
    "clog_rate": (1, 10),
    "partition_rate": (1, 8),
    "asymmetric_rate": (1, 6),
    "bridge_rate": (1, 6),
    "reset_rate": (1, 20),
    "fsync_ns_max": (0.1 * MS, 20 * MS),
    "slow_fsync_chance": (0.01, 0.2),
    "hung_fsync_rate": (0.5, 4),
    "torn_write_chance": (0.2, 1.0),
    "eio_rate": (0.5, 3),
    "enospc_rate": (0.5, 3),
    "snapshot_failure_chance": (0.05, 0.5),
    "skew_ppm_max": (100, 200_000),
    "pause_rate": (0.5, 6),
    "stall_rate": (1, 10),
    "crash_rate": (1, 10),
    "wipe_rate": (0.3, 2),
    "membership_rate": (2, 30),
    "transfer_rate": (1, 15),
    "snapshot_rate": (2, 30),
}
# Two clocks may then differ by just under a tenth.
_LEASE_SKEW_PPM_MAX: Final = 45_000
_WHOLE: Final = ("latency_ns_max", "fsync_ns_max", "skew_ppm_max")
_FLAGS: Final = (
    "compact_to_tip",
    "mixed_pre_vote",
    "mixed_early_campaign",
    "mixed_batches",
    "mixed_timeouts",
)
