"""What a cluster of three costs that nobody asks anything: CPU of leader and followers, memory.

    python -m bench.figures.idle [--quick] [--directory DIR]

`rafthttp serve` as shipped, a bare `Node` behind its own listener (no web framework), and Go's
hashicorp/raft, each with a disk and its defaults. Once all have joined and nothing has happened for
a while, the time on a CPU of all threads over 20 s (`/proc/PID/task/*/schedstat`, nanoseconds), and
the resident memory at the end. Nobody asks for anything meanwhile, not even for the status.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import pairs
from bench.figures.figure import Figure, Line, main, spread
from bench.peers import go, members, ours
from bench.peers.base import rss_bytes

CPU_GOAL_PERCENT = 1.5
RSS_GOAL_MIB = 60.0


@dataclass
class Subject:
    """One make, and what it cost each round."""

    name: str
    pids: Callable[[Path | None], Generator[Sequence[int]]]
    """Starts a cluster, yields its processes, the leader's first, and ends it."""
    has_goal: bool = True
    leader_percent: list[float] = field(default_factory=list[float])
    follower_percent: list[float] = field(default_factory=list[float])
    rss_mib: list[float] = field(default_factory=list[float])

    def add(self, percents: Sequence[float], rss: Sequence[float]) -> None:
        """A round: each process's CPU, in percent of a core, and memory."""
        self.leader_percent.append(percents[0])
        self.follower_percent += percents[1:]
        self.rss_mib += rss


def serve(directory: Path | None) -> Generator[Sequence[int]]:
    """`rafthttp serve` as shipped."""
    with members.running(members.Serve, directory) as cluster:
        yield cluster.pids()


def node(directory: Path | None) -> Generator[Sequence[int]]:
    """Nodes behind their own listener."""
    with pairs.running(ours.make("node", fsync=True), directory) as cluster:
        yield cluster.pids()


def hashicorp(directory: Path | None) -> Generator[Sequence[int]]:
    """Go nodes."""
    with pairs.running(go.make("Go", bolt=True), directory) as cluster:
        yield cluster.pids()


def cpu_ns(pid: int) -> int:
    """Time on a CPU of all threads that a process has now."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # the thread has ended
            continue
    return total


def observe(
    subjects: Sequence[Subject], settle: float, window: float, directory: Path | None
) -> None:
    """Start these clusters, let them settle, and watch all of them in one window.

    Raises:
        MissingPeerError: one of them cannot be had here.
    """
    with ExitStack() as stack, ThreadPoolExecutor(len(subjects)) as pool:
        begun = [pool.submit(_begin, stack, each, directory) for each in subjects]
        clusters = [future.result() for future in begun]
        time.sleep(settle)
        before = [[cpu_ns(pid) for pid in pids] for pids in clusters]
        began = time.perf_counter()
        time.sleep(window)
        after = [[cpu_ns(pid) for pid in pids] for pids in clusters]
        took_ns = (time.perf_counter() - began) * 1e9
        for subject, pids, starts, ends in zip(subjects, clusters, before, after, strict=True):
            used = [(end - start) / took_ns * 100 for start, end in zip(starts, ends, strict=True)]
            subject.add(used, [rss_bytes(pid) / (1 << 20) for pid in pids])


def _begin(stack: ExitStack, subject: Subject, directory: Path | None) -> Sequence[int]:
    return stack.enter_context(contextmanager(subject.pids)(directory))


def lines_of(subject: Subject) -> list[Line]:
    """CPU and memory of one make."""
    cpu, rss = statistics.median(subject.leader_percent), max(subject.rss_mib)
    goal = subject.has_goal
    return [
        Line(
            f"{subject.name}: the leader's CPU",
            spread(subject.leader_percent, "% of a core"),
            f"≤ {CPU_GOAL_PERCENT:g} %" if goal else "",
            cpu <= CPU_GOAL_PERCENT if goal else None,
            {"leader_cpu_percent": subject.leader_percent},
        ),
        Line(
            f"{subject.name}: a follower's CPU",
            spread(subject.follower_percent, "% of a core"),
            data={"follower_cpu_percent": subject.follower_percent},
        ),
        Line(
            f"{subject.name}: resident memory of a node",
            spread(subject.rss_mib, "MiB"),
            f"≤ {RSS_GOAL_MIB:g} MiB" if goal else "",
            rss <= RSS_GOAL_MIB if goal else None,
            {"rss_mib": subject.rss_mib},
        ),
    ]


def measure(quick: bool, directory: Path | None) -> Figure:
    """Each make alone, in turn, three times; in a quick run all at once, for one short window."""
    subjects = [
        Subject("rafthttp serve", serve),
        Subject("Node without a web framework", node),
        Subject("Go", hashicorp, has_goal=False),
    ]
    missing: list[str] = []
    if not go.BINARY.exists():
        missing.append(f"{subjects.pop().name}: the Go node is not built: make interop")
    if quick:
        observe(subjects, 1.5, 4.0, directory)
    else:
        for _ in range(3):
            for subject in subjects:
                observe([subject], 5.0, 20.0, directory)
    lines = [line for subject in subjects for line in lines_of(subject)]
    return Figure("An idle cluster of three", lines, missing)


if __name__ == "__main__":
    main(measure)
