"""Clusters of Go and Python members, of any shape, as real processes; always gone at the end.

Knows members and what it means that replicas agree; which faults to inject is the test's.

    with mixed_cluster(tmp_path, "gpp") as cluster:      # g1 bootstraps, p1 and p2 join
        cluster.start_all()
        cluster.leader().apply(command("a"))
        cluster.wait_level()
        cluster.assert_logs_equal()
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from rafthttp.testing.interop_member import Language, Member, Option, RefusedError
from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import DEADLINE_SECONDS, eventually

LANGUAGES: Final[dict[str, Language]] = {"g": "go", "p": "python"}

FAST: Final[dict[str, Option]] = {
    "heartbeat_timeout": 0.5,
    "election_timeout": 0.5,
    "leader_lease_timeout": 0.5,
    "commit_timeout": 0.02,
}
"""Timeouts of both kinds of member: short, but not below what two busy cores give a process."""

PATIENT: Final[dict[str, Option]] = {
    "heartbeat_timeout": 2.0,
    "election_timeout": 2.0,
    "leader_lease_timeout": 1.5,
}
"""For tests of large data, in which no leader is to be lost on a busy machine."""


_OUTPUT_SHOWN: Final = 20_000


class MixedCluster:
    """Members `g1`, `g2`, … in Go and `p1`, `p2`, … in Python on free ports of the loopback.

    Args:
        directory: for data and output.
        shape: one letter a member, `g` or `p`; the first bootstraps, and so leads at first.
        durable: False keeps logs in memory.
        options: for every member, over `FAST`.
        go: further options of the Go members.
        python: further options of the Python members.
    """

    def __init__(
        self,
        directory: Path,
        shape: str,
        *,
        durable: bool = True,
        options: Mapping[str, Option] | None = None,
        go: Mapping[str, Option] | None = None,
        python: Mapping[str, Option] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.durable = durable
        self.http = httpx.Client(trust_env=False)
        self._options: dict[Language, dict[str, Option]] = {
            "go": {**FAST, **(options or {}), **(go or {})},
            "python": {**FAST, **(options or {}), **(python or {})},
        }
        self.members: list[Member] = []
        for letter in shape:
            self.add(letter)

    def add(self, letter: str) -> Member:
        """A further member that is not started yet."""
        number = 1 + sum(member.id[0] == letter for member in self.members)
        name, language = f"{letter}{number}", LANGUAGES[letter]
        member = Member(
            name,
            language,
            self.free_address(),
            self.directory / name if self.durable else None,
            self.directory / f"{name}.log",
            self.http,
            dict(self._options[language]),
        )
        self.members.append(member)
        return member

    def free_address(self) -> str:
        """An address that no member has."""
        taken = {member.address for member in self.members}
        found = (f"127.0.0.1:{port}" for port in free_ports(len(taken) + 1))
        return next(address for address in found if address not in taken)

    def __getitem__(self, member_id: str) -> Member:
        return next(member for member in self.members if member.id == member_id)

    @property
    def running(self) -> list[Member]:
        """The members whose process lives."""
        return [member for member in self.members if member.running]

    # -- shape

    def start_all(self) -> Member:
        """Begin the cluster with the first member; all others join through it. Returns the leader.

        A Go member joins with raft-http's own `Layer.Join`, a Python one with `Node(join=…)`.
        """
        first = self.members[0]
        first.start(bootstrap=True)
        self.wait_leader()
        for member in self.members[1:]:
            member.start(join=first.address)
        for member in self.members[1:]:
            self.wait_voter(member)
        return self.wait_whole()

    def join(self, member: Member, via: Member) -> None:
        """Start a member that joins through `via`, and wait until it votes."""
        member.start(join=via.address)
        self.wait_voter(member)

    def kill_all(self) -> None:
        """SIGKILL to all at once, as a power cut does it."""
        for member in self.running:
            assert member.process is not None
            member.process.kill()
        for member in self.members:
            member.kill()

    # -- waiting

    def leader(self) -> Member:
        """The running member that says of itself that it leads; waits for one."""
        return self.wait_leader()

    def wait_leader(
        self, among: Iterable[Member] | None = None, timeout: float = DEADLINE_SECONDS
    ) -> Member:
        """Wait until one of `among` (default: all) leads. Of several, the one of the last term."""

        def probe() -> Member | None:
            found: list[tuple[int, Member]] = []
            for member in self.running if among is None else among:
                stats = member.stats() if member.running else None
                if stats is not None and stats["state"] == "Leader":
                    found.append((stats["term"], member))
            return max(found, key=lambda pair: pair[0])[1] if found else None

        return eventually(probe, "a member leads", timeout)

    def wait_voter(self, member: Member) -> None:
        """Wait until the leader's configuration has `member` as a voter, at its address."""
        self.wait_suffrage(member, "voter")

    def wait_suffrage(self, member: Member, suffrage: str | None) -> None:
        """Wait until all running members but `member` say it has this suffrage; None: no member."""

        def probe() -> bool:
            seen: set[str | None] = set()
            for other in self.running:
                if other is not member:
                    if other.stats() is None:  # still starting
                        return False
                    address, found = other.servers().get(member.id, (None, None))
                    seen.add(found if address in {None, member.address} else "elsewhere")
            return seen == {suffrage}

        eventually(probe, f"{member.id} is {suffrage or 'no member'} everywhere")

    def wait_whole(self, timeout: float = DEADLINE_SECONDS) -> Member:
        """Wait until all running members follow one leader, which runs; returns it."""

        def probe() -> Member | None:
            seen = [member.stats() for member in self.running]
            leaders = {None if stats is None else stats["leader"] for stats in seen}
            name = leaders.pop() if len(leaders) == 1 else None
            return next((m for m in self.running if name and m.id == name), None)

        return eventually(probe, "all running members follow one leader", timeout)

    def wait_level(
        self, members: Iterable[Member] | None = None, timeout: float = DEADLINE_SECONDS
    ) -> dict[str, Any]:
        """Wait until all running members applied all that the leader has, and are alike.

        Returns the state machine's figures.

        Raises:
            AssertionError: they were not within `timeout` seconds.
        """
        chosen = list(self.running if members is None else members)
        last: list[Any] = []

        def probe() -> dict[str, Any] | None:
            seen = [member.stats() for member in chosen]
            last[:] = seen
            found = [stats for stats in seen if stats is not None]
            if len(found) < len(chosen):
                return None
            ends = {stats["last_index"] for stats in found}
            applied = {stats["applied_index"] for stats in found}
            if len(ends) != 1 or ends != applied:
                return None
            states = [stats["fsm"] for stats in found]
            # Go counts as applied what its state machine is about to be handed.
            fsm: dict[str, Any] = states[0]
            return fsm if all(state == fsm for state in states) else None

        try:
            return eventually(probe, "all running members are level", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None

    # -- agreement

    def assert_logs_equal(self, members: Iterable[Member] | None = None) -> int:
        """Compare the logs of running members entry by entry; returns how many entries.

        Index, term, type, data, extensions, and AppendedAt as an instant; from the highest first
        index that one of them still has to the lowest commit index.
        """
        chosen = list(self.running if members is None else members)
        seen = [member.wait_serving() for member in chosen]
        first = max(stats["first_index"] for stats in seen)
        last = min(stats["commit_index"] for stats in seen)
        mine = chosen[0].log(first, last)
        for other in chosen[1:]:
            theirs = other.log(first, last)
            # Either may have compacted its log since it was asked for its first index.
            first = max([first, *(log[0]["index"] for log in (mine, theirs) if log)])
            mine, theirs = (
                [entry for entry in log if entry["index"] >= first] for log in (mine, theirs)
            )
            if theirs != mine:
                pairs = zip(mine, theirs, strict=False)
                differing = next(((a, b) for a, b in pairs if a != b), (len(mine), len(theirs)))
                raise AssertionError(f"{chosen[0].id} and {other.id} differ: {differing}")
        assert [entry["index"] for entry in mine] == list(range(first, last + 1))
        return len(mine)

    def apply(self, data: bytes, extensions: bytes = b"") -> dict[str, Any]:
        """One command, on whoever leads; a definite refusal is tried again."""

        def probe() -> dict[str, Any] | None:
            try:
                return self.leader().apply(data, extensions)
            except RefusedError as error:
                if error.outcome != "definite":
                    raise
                return None

        return eventually(probe, "the command is applied")

    # -- the end

    def outputs(self) -> str:
        """The end of what each member printed, for a failing test."""
        return "\n".join(f"--- {m.id}\n{m.output()[-_OUTPUT_SHOWN:]}" for m in self.members)

    def close(self) -> None:
        """Kill what runs. Idempotent."""
        self.kill_all()
        self.http.close()


@contextmanager
def mixed_cluster(
    directory: Path,
    shape: str,
    *,
    durable: bool = True,
    options: Mapping[str, Option] | None = None,
    go: Mapping[str, Option] | None = None,
    python: Mapping[str, Option] | None = None,
) -> Generator[MixedCluster]:
    """A `MixedCluster` that is not started; afterwards its processes are gone in any case."""
    cluster = MixedCluster(directory, shape, durable=durable, options=options, go=go, python=python)
    try:
        yield cluster
    except BaseException:
        sys.stderr.write(cluster.outputs() + os.linesep)
        raise
    finally:
        cluster.close()
