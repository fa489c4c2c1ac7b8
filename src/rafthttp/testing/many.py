"""Many seeds, on one core or on several: shared out in batches, and stopped in time.

Knows processes and time; not what a seed does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count, islice
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

R = TypeVar("R")


class Failure(NamedTuple):
    """A seed that broke a property; alone it breaks it again."""

    seed: int
    text: str


def run_many(
    run: Callable[[range], R],
    first: int,
    seeds: int | None,
    *,
    batch: int,
    jobs: int = 1,
    seconds_max: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[R]:
    """Run `seeds` seeds from `first` on, in `jobs` processes; yields what `run` says of each few.

    Args:
        run: runs a few; at the top level of its module, for other processes find it by its name.
        first: the first seed.
        seeds: how many; None for as many as the time allows.
        batch: how many are a piece of work.
        jobs: processes; 1 for this one alone.
        seconds_max: no batch is begun after so long.
        clock: seconds.
    """
    end = None if seconds_max is None else clock() + seconds_max
    batches = _batches(first, seeds, batch)
    if jobs == 1:
        for few in batches:
            if end is not None and clock() >= end:
                return
            yield run(few)
        return
    # Not forked: a progress bar has a thread.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running: set[Future[R]] = set()
        try:
            while True:
                if end is None or clock() < end:
                    # Two for each process, so that none waits for this one.
                    more = islice(batches, 2 * jobs - len(running))
                    running |= {pool.submit(run, few) for few in more}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _batches(first: int, seeds: int | None, batch: int) -> Iterator[range]:
    starts = count(first, batch) if seeds is None else range(first, first + seeds, batch)
    for start in starts:
        end = start + batch
        yield range(start, end if seeds is None else min(end, first + seeds))
