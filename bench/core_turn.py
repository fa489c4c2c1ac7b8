"""What one turn of the core costs: propose, a write, two frames, two answers, a commit.

    python bench/core_turn.py

The core keeps no object per entry: what grows with the batch is the sum of its sizes alone.
"""

from __future__ import annotations

import random
import time

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import CoreConfig, HardState, InitialState, Ready
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

TURNS = 5_000
ROUNDS = 10
NOW_NS = 3_000_000_000


def answer(core: Consensus, ready: Ready | None) -> None:
    """Complete the write, and let both followers accept."""
    assert ready is not None
    if ready.persist is not None:
        core.on_persisted(ready.persist.seq, NOW_NS)
    for send in ready.sends:
        core.on_append_entries_response(send, send.term, True, 0, False, NOW_NS)
    core.ready()


def elected() -> Consensus:
    """A leader of three, its no-op committed."""
    servers = tuple(Server(ServerID(i), ServerAddress(i)) for i in "abc")
    state = InitialState(
        HardState(1, None),
        last_index=1,
        term_runs=((1, 1),),
        configurations=((1, Configuration(servers)),),
    )
    config = CoreConfig(local_id=ServerID("a"), pre_vote=False)
    core = Consensus(config, state, random.Random(1), 0)
    core.tick(NOW_NS)
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    core.on_persisted(ready.persist.seq, NOW_NS)
    ready = core.ready()
    assert ready is not None
    for vote in ready.votes:
        core.on_vote_response(vote, vote.term, True, NOW_NS)
    answer(core, core.ready())
    return core


def main() -> None:
    """Print microseconds a turn for three sizes of batch, the best of several rounds."""
    for entries in (1, 64, 512):
        core = elected()
        sizes = [100] * entries
        best = float("inf")
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(TURNS):
                core.propose(sizes, NOW_NS)
                answer(core, core.ready())
            best = min(best, (time.perf_counter() - began) / TURNS)
        print(f"{entries:4d} entries: {best * 1e6:.1f} µs a turn")


if __name__ == "__main__":
    main()
