"""Mixed clusters under kills and changes of every kind, with all they sent each other recorded.

What a client was told must be so on every member, the logs must be equal, and everything that a
Python member sent must be what a real hashicorp/raft server takes.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member, RefusedError
from rafthttp.testing.interop_sessions import SessionClients
from rafthttp.testing.interop_tapped import Traffic, complaints, put_behind_relays
from rafthttp.testing.interop_writer import Writer
from rafthttp.testing.processes import eventually
from rafthttp.testing.tap import Taps

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]

WHOLE_LOG = ("p1", "g1")  # keep every entry; what was acknowledged is compared on these for good
COMPACTING = ("p2", "g2")  # keep few entries behind a snapshot: a wiped follower needs it
TRAILING_LOGS = 500  # enough for who is a moment behind


class Chaos:
    """What befalls the cluster. Each action leaves it whole, and returns while clients write."""

    def __init__(self, cluster: MixedCluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.done: set[str] = set()

    def on_leader(self, call: str, by: Member | None = None, **query: str) -> dict[str, Any]:
        """What the leader, or `by`, answers; asked again where it could not."""

        def probe() -> list[dict[str, Any]]:
            try:
                return [(by or self.cluster.leader()).post(call, None, **query)]
            except (RefusedError, httpx.TransportError):
                return []

        return eventually(probe, f"{call} {query} is done")[0]

    def lead(self, heir: Member) -> None:
        """Leadership to `heir`, over however many attempts."""

        def probe() -> bool:
            leader = self.cluster.leader()
            if leader is not heir:
                try:
                    leader.post("transfer", id=heir.id, address=heir.address)
                except (RefusedError, httpx.TransportError):
                    return False
            return self.cluster.leader() is heir

        eventually(probe, f"{heir.id} leads")

    def kill(self, victim: Member) -> None:
        was = "leader" if self.cluster.leader() is victim else "follower"
        victim.kill()
        self.cluster.wait_leader()
        time_is_up = time.monotonic() + self.rng.random() / 2
        eventually(lambda: time.monotonic() > time_is_up, "writes go on without it")
        victim.start()
        victim.wait_serving()
        self.done.add(f"{victim.language} {was} killed")

    def kill_leader(self, language: str) -> None:
        heir = next(m for m in self.cluster.members if m.language == language)
        if self.cluster.leader().language != language:
            self.lead(heir)
        self.kill(self.cluster.leader())

    def kill_follower(self, language: str) -> None:
        leader = self.cluster.leader()
        followers = [m for m in self.cluster.members if m is not leader and m.language == language]
        self.kill(self.rng.choice(followers))

    def transfer(self, language: str) -> None:
        leader = self.cluster.leader()
        heirs = [m for m in self.cluster.members if m is not leader and m.language == language]
        self.lead(self.rng.choice(heirs))
        self.done.add(f"transfer to {language}")

    def change_suffrage(self, language: str) -> None:
        """A follower loses its vote and gets it back, under a leader of the other language."""
        leader = self.cluster.leader()
        subjects = [m for m in self.cluster.members if m is not leader and m.language == language]
        subject = self.rng.choice(subjects)
        self.on_leader("demote", id=subject.id)
        self.on_leader("addvoter", id=subject.id, address=subject.address)
        self.cluster.wait_voter(subject)
        self.done.add(f"{language} changed")

    def sleep(self, language: str) -> None:
        """The leader is stopped as it is, another one elected, and the old one wakes up."""
        self.lead(next(m for m in self.cluster.members if m.language == language))
        old = self.cluster.leader()
        old.pause()
        try:
            others = [member for member in self.cluster.members if member is not old]
            self.cluster.wait_leader(others)
        finally:
            old.resume()
        self.cluster.wait_whole()
        self.done.add(f"{language} leader slept")

    def reinstall(self, language: str) -> None:
        """A follower in `language` is removed, wiped and brought back by a snapshot."""
        wiped = self.cluster[language[0] + "2"]
        leader = self.cluster["p2" if language == "go" else "g2"]
        # Where another takes over meanwhile, that one sends its whole log: once more, then.
        eventually(lambda: self._is_installed(wiped, leader), f"{wiped.id} was sent a snapshot")
        self.done.add(f"snapshot to {language}")

    def _is_installed(self, wiped: Member, leader: Member) -> bool:
        self.lead(leader)
        self.on_leader("remove", id=wiped.id)
        wiped.kill()
        wiped.wipe()
        # Who was killed just now is to catch up with entries: those of `WHOLE_LOG` keep all.
        end = leader.wait_serving()["last_index"]
        for name in WHOLE_LOG:
            self._wait_applied(self.cluster[name], end)
        # Go takes none while a configuration is the last thing applied: writes go on meanwhile.
        taken = self.on_leader("snapshot", by=leader)["index"]
        wiped.start(join=self.cluster.leader().address)
        self.cluster.wait_voter(wiped)
        # A leader in Go makes it a voter at once; in Python it votes once it has caught up (ADR 9).
        self._wait_applied(wiped, max(taken + 1, leader.wait_serving()["last_index"]))
        return bool(wiped.wait_serving()["first_index"] > taken)

    def _wait_applied(self, member: Member, index: int) -> None:
        applied = f"{member.id} has applied entry {index}"
        eventually(lambda: member.wait_serving()["applied_index"] >= index, applied)

    def actions(self) -> Iterator[Callable[[], None]]:
        """For ever: every action once in either language, then again in another order."""
        kinds = [
            self.kill_leader,
            self.kill_follower,
            self.transfer,
            self.reinstall,
            self.change_suffrage,
            self.sleep,
        ]
        rounds = [(kind, language) for kind in kinds for language in ("go", "python")]
        while True:
            self.rng.shuffle(rounds)
            for kind, language in rounds:
                yield partial(kind, language)


@contextmanager
def tapped(make_cluster: ClusterFactory, directory: Path) -> Generator[tuple[MixedCluster, Taps]]:
    """`pgpg` behind relays, started; nothing is compacted unless a member is told to."""
    with Taps(directory / "tapped") as taps:
        cluster = make_cluster(
            "pgpg", options={"snapshot_threshold": 1 << 40, "trailing_logs": 1 << 40}
        )
        for name in COMPACTING:
            cluster[name].options["trailing_logs"] = TRAILING_LOGS
        put_behind_relays(cluster, taps)
        cluster.start_all()
        yield cluster, taps


ALL_DONE = {
    f"{language} {what}"
    for language in ("go", "python")
    for what in ("leader killed", "follower killed", "changed", "leader slept")
} | {f"{what} to {language}" for language in ("go", "python") for what in ("transfer", "snapshot")}


def assert_alike(cluster: MixedCluster, writer: Writer, sessions: SessionClients) -> None:
    """The same state everywhere, and the same logs as far back as each of two members goes."""
    cluster.wait_whole()
    cluster.wait_level()
    for one, other in itertools.combinations(cluster.members, 2):
        compared = cluster.assert_logs_equal([one, other])
        if {one.id, other.id} == set(WHOLE_LOG):
            assert compared > len(writer.acknowledged) + len(sessions.answers)
    for member in cluster.members:
        writer.assert_kept(member)
        sessions.assert_kept(member)


def assert_sound(cluster: MixedCluster, taps: Taps) -> None:
    """Every kind of message went both ways, none that Go would not take."""
    traffic = Traffic(cluster, taps.recordings())
    print("sent to Go:", dict(traffic.requests), "answered to Go:", dict(traffic.answers))
    assert traffic.violations == []
    kinds = {"AppendEntries", "RequestVote", "RequestPreVote", "InstallSnapshot", "TimeoutNow"}
    assert kinds | {"entries", "configurations", "heartbeats"} <= traffic.requests.keys()
    assert kinds <= traffic.answers.keys()
    assert complaints(cluster) == []


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [
        pytest.param(60, 1, marks=pytest.mark.timeout(300)),
        pytest.param(60, 2, marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
        pytest.param(600, 3, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_a_mixed_cluster_under_everything(
    make_cluster: ClusterFactory, tmp_path: Path, seconds: int, seed: int
) -> None:
    """No acknowledged write lost, no id twice, logs equal, and only what Go takes was sent."""
    # Much of a long run would only be more to compare.
    batch, clients = (20, 2) if seconds < 300 else (2, 1)
    with tapped(make_cluster, tmp_path) as (cluster, taps):
        chaos = Chaos(cluster, random.Random(seed))
        deadline = time.monotonic() + seconds
        sessions = SessionClients(cluster, clients)
        with Writer(cluster, batch=batch, clients=clients) as writer, sessions:
            for act in chaos.actions():
                act()
                writer.wait_acknowledged(batch)
                if time.monotonic() > deadline and chaos.done >= ALL_DONE:
                    break
            cluster.wait_whole()
        print(f"{len(writer.acknowledged)} commands, {len(writer.unknown)} of unknown outcome,")
        print(f"{len(sessions.answers)} session requests, {sessions.retried} sent again")
        assert_alike(cluster, writer, sessions)
        assert_sound(cluster, taps)
