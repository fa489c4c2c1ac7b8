"""Mixed clusters behind relays, and what must hold of everything their members sent each other.

Knows which member is in which language; what single bytes must be is `wirecheck.py`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.tap import Recording, Taps
from rafthttp.testing.wirecheck import (
    RequestChecker,
    ViolationError,
    check_switching,
    check_upgrade,
    head_size,
    read_responses,
    sender_address,
)

# A Go process that could not read what it was sent, or died of it.
_COMPLAINT: Final = re.compile(
    r"panic|fatal error|goroutine \d|decod|msgpack|codec|unknown rpc|unexpected command|corrupt",
    re.IGNORECASE,
)
# What a connection ends with when its other end is killed or a relay cuts it.
_ENDED: Final = re.compile(r"connection reset|broken pipe|\bEOF\b|use of closed|i/o timeout")


def put_behind_relays(cluster: MixedCluster, taps: Taps) -> None:
    """The members' addresses become those of relays; before any is started."""
    for member in cluster.members:
        put_behind_relay(cluster, member, taps)


def put_behind_relay(cluster: MixedCluster, member: Member, taps: Taps) -> None:
    """As `put_behind_relays`, for one that was added later."""
    private = cluster.free_address()
    member.options["listen"] = private
    taps.front(member.id, member.address, private)


class Traffic:
    """All that was recorded, read strictly.

    Attributes:
        requests: what the Python members sent to Go ones, by kind.
        answers: what the Python members answered to Go ones, by kind.
        violations: where, and what is wrong there; of any sender.
        entries_max: most entries in one AppendEntries, by the id of who sent it.
        pre_votes: whether each pre-vote was granted, by the id of who asked for it.
    """

    def __init__(self, cluster: MixedCluster, recordings: list[Recording]) -> None:
        self.requests: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.violations: list[str] = []
        self.entries_max: Counter[str] = Counter()
        self.pre_votes: dict[str, list[bool]] = {member.id: [] for member in cluster.members}
        self._ids = {member.address.encode(): member.id for member in cluster.members}
        self._language = {member.id: member.language for member in cluster.members}
        for number, recording in enumerate(recordings):
            try:
                self._read(recording)
            except ViolationError as error:
                self.violations.append(f"connection {number} to {recording.target}: {error}")

    def _read(self, recording: Recording) -> None:
        there, back = recording.there, recording.back
        asked, answered = head_size(there), head_size(back)
        if asked is None or answered is None:
            return  # cut, or refused, before it was one of raft
        check_upgrade(there[:asked])
        check_switching(back[:answered])
        if recording.there_before_back > asked:
            raise ViolationError("bytes behind the head before the 101: Go's server loses them")
        address = sender_address(there, asked)
        if address is None:
            if len(back) > answered:
                raise ViolationError("a server that speaks first")
            return
        asking = self._ids.get(address)
        dialler = "python" if asking is None else self._language[asking]
        checker = RequestChecker(ours=dialler == "python")
        checker.read(there, asked)
        answers = read_responses(checker.sent.rpcs, back, answered)
        target = self._language[recording.target]
        if asking is not None:
            self.entries_max[asking] = max(self.entries_max[asking], checker.sent.entries_max)
        if asking is not None and not checker.sent.kinds["probes"]:
            self.pre_votes[asking] += answers.grants.get("RequestPreVote", [])
        if (dialler, target) == ("python", "go"):
            self.requests += checker.sent.kinds
        if (dialler, target) == ("go", "python"):
            self.answers += answers.kinds


def complaints(cluster: MixedCluster) -> list[str]:
    """Lines of Go members that tell of bytes they could not read, or of their end."""
    return [
        f"{member.id}: {line}"
        for member in cluster.members
        if member.language == "go"
        for line in member.output().splitlines()
        if _COMPLAINT.search(line) and not _ENDED.search(line)
    ]
