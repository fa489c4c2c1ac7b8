"""What a quorum holds: pure functions, over all small cases."""

from __future__ import annotations

from itertools import permutations, product

from rafthttp.raft.core.commitment import quorum_index


def test_the_order_of_the_peers_does_not_matter() -> None:
    """S33: a table of progress that is put in another order commits nothing more."""
    for matches in product(range(4), repeat=4):
        assert len({quorum_index(order, 3) for order in permutations(matches)}) == 1


def test_a_true_majority_holds_what_is_committed() -> None:
    """S24: of an even number of voters, half is none."""
    for voters in range(1, 6):
        quorum = voters // 2 + 1
        for matches in product(range(4), repeat=voters):
            held = quorum_index(matches, quorum)
            assert sum(match >= held for match in matches) > voters / 2
            assert sum(match >= held + 1 for match in matches) <= voters / 2
