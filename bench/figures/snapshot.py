"""A snapshot of 256 MiB to a fresh follower, against Go's: `snapshot`.

    python -m bench.figures.snapshot [--quick]

A leader alone, with default timeouts, of a state machine that holds nothing of its state in memory
and keeps no log behind its snapshot, takes one, on disk. Then a fresh, empty server that runs
already is added without a vote, and has to be sent the snapshot: InstallSnapshot over the HTTP
upgrade, written and flushed to the follower's disk, read again into its state machine.

The same on both sides, in turn: the clock runs from the call that adds the follower until the
follower says that it has applied the snapshot's index, asked every few milliseconds. Extra memory
is a process's peak of resident memory in that time (the kernel's VmHWM, reset before) less what it
held before. No pages of files count into it. A term that grew is a lost leadership.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bench.figures.figure import Figure, Line, main, spread
from bench.peers.base import (
    LineProcess,
    MissingPeerError,
    cpu_seconds,
    free_ports,
    rss_bytes,
    wait_until,
)
from bench.peers.go import BINARY

SIZE_BYTES: Final = 256 << 20
RATE_GOAL: Final = 1.0
EXTRA_BYTES_GOAL: Final = 64 << 20
POLL_SECONDS: Final = 0.005
TRANSFER_SECONDS: Final = 120.0


class Member(Protocol):
    """A server of either make."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    def status(self) -> dict[str, Any]:
        """`leads`, `term`, `applied` and `snapshot_index`; nothing while it does not answer."""
        ...

    def snapshot(self) -> None:
        """Apply a command, and take a snapshot."""
        ...

    def add(self, server_id: str, address: str) -> None:
        """Add a member without a vote."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class OurMember:
    """A `blob_node` process (`Member`)."""

    def __init__(self, server_id: str, address: str, directory: Path, bootstrap: bool) -> None:
        command = [sys.executable, "-m", "bench.peers.blob_node", server_id, address, "--uvloop"]
        command += ["--data", str(directory), "--blob-bytes", str(SIZE_BYTES)]
        self._process = LineProcess([*command, *(["--bootstrap"] if bootstrap else [])])
        self.pid = self._process.pid

    def status(self) -> dict[str, Any]:
        """As it answers (`Member`)."""
        return self._process.ask({})

    def snapshot(self) -> None:
        """One (`Member`)."""
        self._process.ask({"snapshot": True})

    def add(self, server_id: str, address: str) -> None:
        """Add it (`Member`)."""
        self._process.ask({"add": [server_id, address]})

    def stop(self) -> None:
        """End it (`Member`)."""
        self._process.stop()


class GoMember:
    """A Go process with boltdb and its snapshots in files (`Member`)."""

    def __init__(self, server_id: str, address: str, directory: Path, bootstrap: bool) -> None:
        if not BINARY.exists():
            raise MissingPeerError("the Go node is not built: make interop")
        command = [str(BINARY), "-id", server_id, "-address", address, "-log-level", "ERROR"]
        command += ["-data-dir", str(directory), "-blob-bytes", str(SIZE_BYTES)]
        command += ["-trailing-logs", "0", *(["-bootstrap"] if bootstrap else [])]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.pid = self._process.pid
        self._http = http.client.HTTPConnection(address, timeout=TRANSFER_SECONDS)

    def status(self) -> dict[str, Any]:
        """From its admin API (`Member`)."""
        try:
            stats = self._call("GET", "/stats")
        except OSError:
            return {}
        return {
            "leads": stats["state"] == "Leader",
            "term": stats["term"],
            "applied": stats["applied_index"],
            "snapshot_index": int(stats["raft"]["last_snapshot_index"]),
        }

    def snapshot(self) -> None:
        """One (`Member`)."""
        self._call("POST", "/apply", b"x")
        self._call("POST", "/snapshot")

    def add(self, server_id: str, address: str) -> None:
        """Add it (`Member`)."""
        self._call("POST", f"/addnonvoter?id={server_id}&address={address}")

    def stop(self) -> None:
        """End it (`Member`)."""
        self._http.close()
        self._process.kill()
        self._process.wait()

    def _call(self, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            self._http.request(method, target, body)
            response = self._http.getresponse()
            found: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            self._http.close()  # else it goes on waiting for this answer
            raise OSError(f"no answer to {target}") from error
        if response.status != http.client.OK:
            raise RuntimeError(f"{target} was refused: {found}")
        return found


Start = Callable[[str, str, Path, bool], Member]


class _Memory:
    """The peak of a process's resident memory, from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.before_bytes = rss_bytes(pid)

    def extra_bytes(self) -> int:
        """How much more than at first there was at some time."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
        return max(0, peak - self.before_bytes)


@dataclass(frozen=True)
class Transfer:
    """One snapshot on its way; the leader's figures, then the follower's."""

    seconds: float
    extra_bytes: tuple[int, int]
    before_bytes: tuple[int, int]
    cpu_seconds: tuple[float, float]
    terms_begun: int

    @property
    def mib_a_second(self) -> float:
        """The rate."""
        return SIZE_BYTES / (1 << 20) / self.seconds


def measure(quick: bool, directory: Path | None) -> Figure:
    """The figure."""
    ours: list[Transfer] = []
    gos: list[Transfer] = []
    missing: list[str] = []
    for _ in range(1 if quick else 5):
        ours.append(_transfer(OurMember, directory))
        try:
            gos.append(_transfer(GoMember, directory))
        except MissingPeerError as error:
            missing = [f"Go's snapshot: {error}"]
    lines = [*_rate_lines(ours, gos), *_memory_lines(ours, gos)]
    title = f"A snapshot of {SIZE_BYTES >> 20} MiB to a fresh follower"
    return Figure(title, lines, missing)


def _transfer(start: Start, directory: Path | None) -> Transfer:
    """A leader and a follower, fresh, and one transfer."""
    with ExitStack() as stack:
        files = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="bench-"))
        )
        one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
        leader = start("n1", one, files / "n1", True)
        stack.callback(leader.stop)
        follower = start("n2", two, files / "n2", False)
        stack.callback(follower.stop)
        wait_until(lambda: leader.status().get("leads", False), "an election")
        wait_until(lambda: "term" in follower.status(), "the follower's start")
        leader.snapshot()
        before = leader.status()
        members = (leader, follower)
        memory = [_Memory(member.pid) for member in members]
        cpu = [cpu_seconds(member.pid) for member in members]
        seconds = _timed(leader, follower, two, before["snapshot_index"])
        sent, taken = (each.extra_bytes() for each in memory)
        used = [cpu_seconds(m.pid) - begun for m, begun in zip(members, cpu, strict=True)]
        return Transfer(
            seconds,
            (sent, taken),
            (memory[0].before_bytes, memory[1].before_bytes),
            (used[0], used[1]),
            leader.status()["term"] - before["term"],
        )


def _timed(leader: Member, follower: Member, address: str, index: int) -> float:
    """Add the follower; seconds until it has the snapshot.

    Raises:
        TimeoutError: it did not get it in time.
        RuntimeError: it came without a snapshot.
    """
    begin = time.perf_counter()
    leader.add("n2", address)
    while (status := follower.status()).get("applied", 0) < index:
        if time.perf_counter() - begin > TRANSFER_SECONDS:
            raise TimeoutError(f"no snapshot was installed within {TRANSFER_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    took = time.perf_counter() - begin
    if status["snapshot_index"] < index:
        raise RuntimeError(f"the follower got to {status['applied']} without a snapshot")
    return took


def _rate_lines(ours: Sequence[Transfer], gos: Sequence[Transfer]) -> Sequence[Line]:
    lines: list[Line] = []
    if len(gos) == len(ours):
        ratios = [
            mine.mib_a_second / theirs.mib_a_second for mine, theirs in zip(ours, gos, strict=True)
        ]
        ratio = statistics.median(ratios)
        lines.append(
            Line(
                "rate / Go's",
                spread(ratios, ""),
                f"≥ {RATE_GOAL:g}",
                ratio >= RATE_GOAL,
                {"ratios": ratios},
            )
        )
    for name, transfers in (("ours", ours), ("Go", gos)):
        if transfers:
            used = [spread([t.cpu_seconds[end] for t in transfers], "s") for end in (0, 1)]
            lines.append(
                Line(
                    f"{name}: rate",
                    f"{spread([t.mib_a_second for t in transfers], 'MiB/s')};"
                    f" CPU of the leader {used[0]}, of the follower {used[1]}",
                    data={"transfers": [vars(transfer) for transfer in transfers]},
                )
            )
    lost = sum(transfer.terms_begun for transfer in ours)
    lines.append(Line("ours: terms begun", str(lost), "0", lost == 0))
    return lines


def _memory_lines(ours: Sequence[Transfer], gos: Sequence[Transfer]) -> Sequence[Line]:
    lines: list[Line] = []
    for end, who in enumerate(("leader", "follower")):
        for name, transfers in (("ours", ours), ("Go", gos)):
            if not transfers:
                continue
            extra = [transfer.extra_bytes[end] for transfer in transfers]
            before = [transfer.before_bytes[end] / (1 << 20) for transfer in transfers]
            has_goal = transfers is ours
            lines.append(
                Line(
                    f"{name}: extra memory of the {who}",
                    f"{spread([each / (1 << 20) for each in extra], 'MiB')}"
                    f" beyond {spread(before, 'MiB')}",
                    f"≤ {EXTRA_BYTES_GOAL >> 20} MiB" if has_goal else "",
                    max(extra) <= EXTRA_BYTES_GOAL if has_goal else None,
                    {"extra_bytes": extra},
                )
            )
    return lines


if __name__ == "__main__":
    main(measure)
