"""Which terms a server takes over from one message."""

import random

import pytest

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.ready import CoreConfig, HardState, InitialState
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.runtime.plausible import (
    NUMBER_MAX,
    TERM_STEP_MAX,
    check_numbers,
    is_plausible_term,
)
from rafthttp.raft.types import ServerID


def core(term: int, last: int) -> Consensus:
    runs = ((1, term),) if last else ()
    state = InitialState(
        hard_state=HardState(term, None),
        snapshot_index=0,
        snapshot_term=0,
        last_index=last,
        term_runs=runs,
        configurations=(),
    )
    return Consensus(CoreConfig(ServerID("n1")), state, random.Random(1), 0)


def test_a_server_with_a_log_takes_steps_of_a_bounded_size() -> None:
    server = core(7, 3)
    assert is_plausible_term(server, 0)
    assert is_plausible_term(server, 7 + TERM_STEP_MAX)
    assert not is_plausible_term(server, 8 + TERM_STEP_MAX)


def test_a_new_server_takes_the_term_of_its_cluster_while_there_is_room_for_more() -> None:
    server = core(0, 0)
    assert is_plausible_term(server, 1 << 60)
    assert not is_plausible_term(server, NUMBER_MAX)


def test_terms_end_where_the_log_store_does() -> None:
    server = core(NUMBER_MAX - 1, 1)
    assert is_plausible_term(server, NUMBER_MAX)
    assert not is_plausible_term(server, NUMBER_MAX + 1)


def test_indexes_too() -> None:
    server = core(1, 1)
    check_numbers(server, 1, 0, NUMBER_MAX)
    with pytest.raises(ProtocolError, match="index"):
        check_numbers(server, 1, 0, NUMBER_MAX + 1)
    with pytest.raises(ProtocolError, match="term"):
        check_numbers(server, 1 << 50, 0)
