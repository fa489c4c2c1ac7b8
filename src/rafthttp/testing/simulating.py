"""`simulate`: an application's own state machine under the simulator of the core.

Knows how a run is set up and what is told of a failure; `replicas` knows what is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from rafthttp.raft.fsm import FSM, check_fsm
from rafthttp.testing.replicas import Replica, Seen
from rafthttp.testing.salted import check_other_salt
from rafthttp.testing.sim.cluster import Cluster, swarm_of
from rafthttp.testing.sim.faults import Faults
from rafthttp.testing.sim.runs import Report
from rafthttp.testing.sim.schedule import EVENTS

SEEDS = 30


def simulate(
    fsm: Callable[[], FSM],
    workload: Callable[[random.Random], bytes],
    *,
    seeds: int | Iterable[int] = SEEDS,
    faults: Faults | None = None,
    state: Callable[[FSM], object] | None = None,
    events: int = EVENTS,
) -> Report:
    """Replicate a state machine through crashes, restores, partitions; its replicas must agree.

        def commands(rng: random.Random) -> bytes:
            return rng.choice([b"add 1", b"add 2", b"take 1"])

        def test_my_state_machine() -> None:
            simulate(MyFSM, commands)

    Every seed is one history: commands are proposed to a cluster in which things go wrong, servers
    crash and begin from snapshots, and fall so far behind that they are sent one. All replicas must
    give the same answer to each command and be in the same state after it. At last the commands of
    one history are applied in another process, where strings hash differently.

    Args:
        fsm: makes a new state machine, most often its class. At the top level of its module: else
            the other process cannot make one, and is left out.
        workload: draws the next command; only `rng` may decide.
        seeds: how many from 0, or which.
        faults: what may happen; without them each seed picks, with more snapshots than elsewhere.
        state: what of a state machine must be equal on all replicas; without it, the bytes that its
            snapshot writes.
        events: of each history, before it heals.

    Raises:
        AssertionError: it is not deterministic, or a snapshot does not hold all of it. The text
            tells the command, both answers, and the seed.
        ConfigError: `fsm` makes no `FSM`.
    """
    check_fsm(fsm())
    report = Report()
    longest: Seen | None = None
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        seen = Seen(fsm, state)
        chosen = faults_for_state_machines(swarm_of(seed)) if faults is None else faults
        cluster = Cluster(seed, chosen, machine=partial(Replica, seen), workload=workload)
        try:
            cluster.run(events)
        except Exception as error:
            told = str(error) if isinstance(error, AssertionError) else repr(error)
            text = f"{told} (seed {seed}; simulate(..., seeds=[{seed}]) repeats it)"
            raise AssertionError(text) from error
        report.add(cluster)
        if longest is None or len(seen.answers) > len(longest.answers):
            longest = seen
    if longest is not None:
        check_other_salt(longest)
    return report


def faults_for_state_machines(swarm: Faults) -> Faults:
    """The seed's faults, with what makes replicas begin from snapshots."""
    return replace(
        swarm,
        go_followers=0,
        go_crash_rate=0.0,
        go_campaigns=False,
        compact_to_tip=True,
        snapshot_rate=max(swarm.snapshot_rate, 20.0),
        crash_rate=max(swarm.crash_rate, 6.0),
    )
