"""Terms in runs and sizes in sums, against plain lists."""

from __future__ import annotations

import random

from rafthttp.raft.core import termruns
from rafthttp.raft.core.termruns import SizeWindow, TermRuns


def test_runs_agree_with_a_list_of_terms() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        base, base_term = rng.choice(((0, 0), (7, 3)))
        runs, terms = TermRuns(base, base_term), [base_term]
        first = base
        for _ in range(60):
            match rng.randrange(4):
                case 0 | 1:
                    count = rng.randrange(1, 5)
                    new = sorted(terms[-1] + rng.choice((0, 0, 1, 3)) for _ in range(count))
                    runs.extend(new)
                    terms += new
                case 2 if len(terms) > 1:
                    cut = rng.randrange(1, len(terms))
                    runs.truncate_from(first + cut)
                    del terms[cut:]
                case _ if rng.random() < 0.2:
                    drop = rng.randrange(len(terms))
                    runs.compact(first + drop)
                    del terms[:drop]
                    first += drop
                case _:
                    pass
            last = first + len(terms) - 1
            assert (runs.base_index, runs.last_index, runs.last_term) == (first, last, terms[-1])
            assert [runs.term_at(i) for i in range(first - 1, last + 2)] == [None, *terms, None]
            for index in range(first, last + 1):
                term = terms[index - first]
                assert runs.run_first(index) == first + terms.index(term)
                at_most = [i for i in range(first, index + 1) if terms[i - first] < term]
                assert runs.last_at_most(index, term - 1) == max(at_most, default=first)
            assert runs.last_at_most(last + 5, terms[-1]) == last


def test_memory_grows_with_elections_not_with_the_log() -> None:
    runs = TermRuns(0, 0)
    for term in range(1, 4):
        for _ in range(1000):
            runs.append(term, 1000)
    assert runs.last_index == 3_000_000
    assert runs.runs() == [(0, 0), (1, 1), (1_000_001, 2), (2_000_001, 3)]


def test_a_frame_is_clipped_by_bytes_by_count_and_never_to_nothing() -> None:
    sizes = SizeWindow(10)
    sizes.extend([100, 200, 300, 1000, 10])

    def clip(first: int, bytes_max: int, entries_max: int = 99) -> int:
        return sizes.clip(first, 15, bytes_max, entries_max, 2)

    assert clip(11, 10_000) == 15
    assert clip(11, 600) == 13
    assert clip(11, 599) == 12
    assert clip(11, 600, entries_max=1) == 11
    assert clip(14, 5) == 14, "one entry always fits"
    assert clip(15, 10) == 15
    assert clip(9, 10_000) == 10, "entries whose sizes are unknown are clipped by count"
    assert clip(9, 10_000, entries_max=1) == 9
    sizes.truncate_from(13)
    sizes.extend([1])
    assert sizes.clip(11, 13, 301, 99, 2) == 13
    sizes.truncate_from(5)
    sizes.extend([50])
    assert sizes.clip(5, 5, 1, 99, 7) == 5, "the window begins anew where the log was cut"


def test_the_window_of_sizes_is_bounded() -> None:
    kept = termruns.SIZES_KEPT
    sizes = SizeWindow(0)
    for _ in range(5):
        sizes.extend([7] * (kept // 2))
    last = 5 * (kept // 2)
    assert sizes.clip(last - 9, last, 70, 99, 3) == last
    assert sizes.clip(last - 9, last, 69, 99, 3) == last - 1
    assert sizes.clip(1, last, 1 << 40, 1 << 40, 3) == 3, "the oldest are forgotten"
