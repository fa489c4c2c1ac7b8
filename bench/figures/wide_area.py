"""Five regions, 20 to 150 ms of round trip apart: how close a commit is to the light.

    python -m bench.figures.wide_area [--quick]

Simulated, and so the same on every machine: the real driver, transport and log run on virtual time
(`rafthttp.testing.driversim`) with the default configuration. A piece of bytes takes half of the
round trip between two regions and up to 0.5 ms more; a flush takes up to 1 ms; computing takes no
time, and the lines carry any number of bytes. Clients are in the leader's region and keep one
command of 64 bytes under way each, begun at random instants of a round trip.

A commit needs the leader and two more of the five: the quorum's round trip is the one to the second
nearest. Latency is measured from `Raft.apply` to its answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.figures.figure import Figure, Line, main

from rafthttp.raft.config import Config
from rafthttp.raft.types import Log, State
from rafthttp.testing.driversim.disk import Disk
from rafthttp.testing.driversim.jobs import DEVICE
from rafthttp.testing.driversim.loop import VirtualLoop, virtual_loop
from rafthttp.testing.driversim.machine import COMMAND, Registers
from rafthttp.testing.driversim.member import Member, RaftMember, configuration_of, server_id
from rafthttp.testing.driversim.network import VirtualNetwork
from rafthttp.testing.driversim.patches import determined

REGIONS = ("Virginia", "Oregon", "California", "Ireland", "Frankfurt")
# Round trips; each row goes on from its own region to those behind it.
_ROUND_TRIPS_MS = ((62, 60, 68, 90), (20, 125, 145), (135, 150), (24,))
JITTER_SECONDS = 0.0005
FLUSH_SECONDS = 0.001
WINDOW_BYTES = 4 << 20
"""What one connection may have in flight: as Linux allows by default."""
SIZE_BYTES = 64
SETTLE_SECONDS = 30.0
SEED = 1
GOAL = 1.1


@dataclass(frozen=True)
class Setup:
    """One run: who leads, under how many clients, for how long (virtual seconds).

    Attributes:
        inflight: AppendEntries under way to one peer; None for the default.
    """

    leader: int
    clients: int
    seconds: float
    inflight: int | None = None


@dataclass(frozen=True)
class Found:
    """What a run gave, in virtual time; sorted latencies."""

    setup: Setup
    latencies_ms: Sequence[float]

    @property
    def commits_a_second(self) -> float:
        """The rate."""
        return len(self.latencies_ms) / self.setup.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.latencies_ms[len(self.latencies_ms) // 2]

    @property
    def p99_ms(self) -> float:
        """Of a hundred, one takes longer."""
        return self.latencies_ms[len(self.latencies_ms) * 99 // 100]

    @property
    def quorum_ms(self) -> float:
        """The quorum's round trip."""
        return quorum_ms(self.setup.leader)


def round_trip_ms(one: int, other: int) -> float:
    """Between two regions."""
    low, high = sorted((one, other))
    return _ROUND_TRIPS_MS[low][high - low - 1]


def quorum_ms(leader: int) -> float:
    """The round trip to the second nearest of the others."""
    others = [each for each in range(len(REGIONS)) if each != leader]
    return sorted(round_trip_ms(leader, each) for each in others)[1]


class _World:
    """Five servers and the lines between them (`driversim.member.World`)."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, inflight: int | None) -> None:
        self.loop, self.rng = loop, rng
        self.ballast_bytes = 0
        self.network = VirtualNetwork(loop, rng, self.tell)
        self.network.latency_max = JITTER_SECONDS
        self.network.window_bytes = WINDOW_BYTES
        self.members = [self._member(number, inflight) for number in range(len(REGIONS))]
        for member in self.members:
            member.first = configuration_of(list[Member](self.members))
        for one, source in enumerate(self.members):
            for other, target in enumerate(self.members):
                if one != other:
                    seconds = round_trip_ms(one, other) / 2000
                    self.network.distances[source.host, target.host] = seconds

    def _member(self, number: int, inflight: int | None) -> RaftMember:
        config = Config(server_id(number))
        if inflight is not None:
            config = replace(config, inflight_appends_max=inflight)
        disk = Disk(self.loop, self.rng, Counter())
        disk.busy_max = FLUSH_SECONDS
        return RaftMember(self, number, config, disk, rate=1.0)

    def tell(self, what: object) -> None:
        """Nobody listens (`World`)."""

    def on_applied(self, member: Member, machine: Registers, log: Log) -> None:
        """Nobody checks (`World`)."""


async def _settle(world: _World, leader: int) -> RaftMember:
    """Begin; until the wanted member leads and all have what it has.

    Raises:
        TimeoutError: it did not come to that.
    """
    for member in world.members:
        member.start()
    wanted = world.members[leader]
    for _ in range(int(SETTLE_SECONDS / 0.1)):
        await asyncio.sleep(0.1)
        rafts = [member.raft for member in world.members]
        leads = next((m for m in world.members if m.raft and m.raft.state is State.LEADER), None)
        if leads is None or None in rafts:
            continue
        assert leads.raft is not None
        if leads is not wanted:
            move = leads.raft.leadership_transfer_to_server(wanted.config.local_id, wanted.address)
            await asyncio.wait({leads.spawn(move)})  # refused while another change is under way
        elif len({raft.applied_index for raft in rafts if raft is not None}) == 1:
            return wanted
    raise TimeoutError(f"{REGIONS[leader]} does not lead within {SETTLE_SECONDS:g} virtual s")


async def _run(world: _World, setup: Setup) -> Found:
    """Settle, then load the leader; what is answered in the first half second does not count."""
    leader = await _settle(world, setup.leader)
    raft, loop = leader.raft, world.loop
    assert raft is not None
    latencies_ms: list[float] = []
    begin = loop.now + 0.5
    end = begin + setup.seconds
    padding = bytes(SIZE_BYTES - COMMAND.size)
    values = iter(range(1, 1 << 62))

    async def client(delay: float) -> None:
        await asyncio.sleep(delay)
        while loop.now < end:
            started = loop.now
            await raft.apply(COMMAND.pack(0, next(values)) + padding)
            if begin <= loop.now < end:
                latencies_ms.append((loop.now - started) * 1e3)

    spread = quorum_ms(setup.leader) / 1e3
    delays = [spread * world.rng.random() for _ in range(setup.clients)]
    await asyncio.gather(*[leader.spawn(client(delay)) for delay in delays])
    for member in world.members:
        await member.spawn(member.stop())
    assert not loop.complaints, loop.complaints
    return Found(setup, sorted(latencies_ms))


def simulate(setup: Setup) -> Found:
    """One run, the same each time."""
    rng = random.Random(SEED)
    loop = virtual_loop()
    with _silence():
        try:
            with determined(loop, rng):
                loop.executor_delay = lambda: DEVICE.get().busy()
                return loop.run(_run(_World(loop, rng, setup.inflight), setup))
        finally:
            loop.close()


@contextmanager
def _silence() -> Generator[None]:
    """Elections are no news."""
    log = logging.getLogger("rafthttp")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def latency_line(found: Found) -> Line:
    """Latency over the quorum's round trip."""
    p50, p99 = found.p50_ms / found.quorum_ms, found.p99_ms / found.quorum_ms
    return Line(
        f"commit latency / quorum's round trip, leader in {REGIONS[found.setup.leader]}"
        f" ({found.quorum_ms:g} ms), {_clients(found)}",
        f"p50 {p50:.3f}, p99 {p99:.3f} ({found.p50_ms:.1f} and {found.p99_ms:.1f} ms)",
        f"≤ {GOAL:g}",
        max(p50, p99) <= GOAL,
        _data(found),
    )


def rate_line(found: Found, alone: Found) -> Line:
    """How far the rate grows with the clients."""
    share = found.commits_a_second / (alone.commits_a_second * found.setup.clients)
    return Line(
        f"commits a virtual second, {_clients(found)}",
        f"{found.commits_a_second:.0f}, {share:.3f} of {found.setup.clients} times that of one",
        f"≥ {1 / GOAL:.2f} of clients / round trip",
        found.commits_a_second >= found.setup.clients / (found.quorum_ms * GOAL / 1e3),
        _data(found) | {"share_of_linear": share},
    )


def contrast_line(found: Found, default: Found) -> Line:
    """What it would be with fewer AppendEntries under way."""
    return Line(
        f"{found.setup.clients} clients with {found.setup.inflight} AppendEntries under way a peer",
        f"{found.commits_a_second:.0f} commits/s,"
        f" {found.commits_a_second / default.commits_a_second:.2f} of the default's;"
        f" p50 {found.p50_ms / found.quorum_ms:.2f} round trips",
        data=_data(found),
    )


def _clients(found: Found) -> str:
    return f"{found.setup.clients} client" + ("s" if found.setup.clients > 1 else "")


def _data(found: Found) -> dict[str, float | int | str | None]:
    return {
        "leader": REGIONS[found.setup.leader],
        "clients": found.setup.clients,
        "inflight_appends_max": found.setup.inflight,
        "virtual_seconds": found.setup.seconds,
        "quorum_round_trip_ms": found.quorum_ms,
        "commits_a_second": found.commits_a_second,
        "p50_ms": found.p50_ms,
        "p99_ms": found.p99_ms,
        "mean_ms": statistics.fmean(found.latencies_ms),
    }


def measure(quick: bool, directory: Path | None) -> Figure:
    """The figure; `directory` is not needed, nothing is on disk."""
    del directory
    seconds = 1.0 if quick else 5.0
    begin = time.perf_counter()
    home = 0
    by_clients = [simulate(Setup(home, clients, seconds)) for clients in (1, 64, 512)]
    most = by_clients[-1]
    lines = [latency_line(found) for found in by_clients]
    away = range(1, len(REGIONS)) if not quick else (len(REGIONS) - 1,)
    lines += [latency_line(simulate(Setup(leader, 512, seconds))) for leader in away]
    lines += [rate_line(found, by_clients[0]) for found in by_clients]
    for inflight in (1, 2):  # stop and wait; hashicorp/raft's pipeline
        found = simulate(Setup(home, most.setup.clients, seconds, inflight))
        lines.append(contrast_line(found, most))
    took = time.perf_counter() - begin
    lines.append(Line("all of this took", f"{took:.1f} s of real time"))
    title = "Wide area, simulated: five regions, 20-150 ms round trips"
    return Figure(title, lines)


if __name__ == "__main__":
    main(measure)
