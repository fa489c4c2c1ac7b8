"""Lease reads: what makes one stale when it is allowed, and random histories where nothing may.

S70, S73. The rules themselves are told in `testdata/lease*.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from rafthttp.raft.config import Config
from rafthttp.raft.core.lease import ReadLease, lease_length_ns
from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import ServerID
from rafthttp.testing.coreinvariants import InvariantError
from rafthttp.testing.corenet import CoreNet
from rafthttp.testing.dialogue import Dialogue

HISTORIES = 120


class HistoryLike(Protocol):
    net: CoreNet


# b hears a to the end, c does not: it is what elects b the moment that b campaigns.
CUT_OFF = """
cluster a b c lease=on early={early}
start
timeout a
settle
sleep 60ms
settle
"""
HEARTBEATS_TO_B = """
sleep 300ms a c
drop a->c
drop c->*
deliver a->b
deliver b->a
"""
EARLY_CAMPAIGN = """
closed a at b
sleep 100ms b
drop b->a dial
deliver b->c pre-vote
deliver c->b pre-vote
"""
ELECTION = """
write b
deliver b->c vote
write c
deliver c->b vote
write b
deliver b->c append
write c
deliver c->b append
"""
COMMIT = """
propose b
write b
deliver b->c append
write c
deliver c->b append
"""


def told(dialogue: Dialogue, *parts: str) -> str:
    return "\n".join(line for part in parts for line in dialogue.run(part))


def test_the_planted_stale_read() -> None:
    """Lease reads next to early campaign: what the configuration refuses, done all the same.

    1. a leads, and b has just answered its heartbeat: a's lease holds for 900 ms.
    2. The network cuts a off. b sees its streams close, dials in vain, and campaigns after a tenth
       of a second; c grants it, for it has not heard a for long.
    3. b leads and commits. a still serves reads by its lease, and they do not see that.
    """
    dialogue = Dialogue()
    told(dialogue, CUT_OFF.format(early="on"), *[HEARTBEATS_TO_B] * 8)
    assert "b  leader" in told(dialogue, EARLY_CAMPAIGN, ELECTION, COMMIT)
    with pytest.raises(InvariantError, match="fresh reads"):
        dialogue.run("read a 1")


def test_without_early_campaign_there_is_no_stale_read() -> None:
    """The same schedule: b waits, and the read by a's lease is fresh."""
    dialogue = Dialogue()
    told(dialogue, CUT_OFF.format(early="off"), *[HEARTBEATS_TO_B] * 8)
    assert "dials" not in told(dialogue, "closed a at b\nsleep 100ms b")
    assert told(dialogue, "read a 1") == "a  read 1 at 2 by lease"


def test_the_configuration_refuses_both_together() -> None:
    with pytest.raises(ConfigError, match=r"lease_reads .* early_campaign"):
        Config(ServerID("a"), lease_reads=True).validate()
    Config(ServerID("a"), lease_reads=True, early_campaign=False).validate()


def test_a_lease_is_shorter_than_the_promise() -> None:
    assert lease_length_ns(1_000_000_000, 1_000_000_000) == 900_000_000
    assert lease_length_ns(1_000_000_000, 5_000_000_000) == 900_000_000
    assert lease_length_ns(5_000_000, 3_000_000) == 2_700_000


def test_what_was_sent_before_a_suspend_proves_nothing() -> None:
    """However late it is answered, and whoever promised what by it."""
    b, c = ServerID("b"), ServerID("c")
    lease = ReadLease(900)
    lease.answered(b, 100)
    assert lease.holds(150, [b, c], 1)
    lease.begin_anew(200)
    assert not lease.holds(200, [b, c], 1)
    lease.answered(c, 199)
    assert not lease.holds(200, [b, c], 1)
    lease.answered(c, 200)
    assert lease.holds(1099, [b, c], 1)
    assert not lease.holds(1100, [b, c], 1)


@pytest.mark.parametrize("batch", range(4))
def test_histories_serve_no_stale_read(
    batch: int, lease_history: Callable[[int], HistoryLike]
) -> None:
    """Cut-off and paused leaders, transfers, voters that restart: no read misses a commit."""
    served = 0
    for seed in range(batch, HISTORIES, 4):
        try:
            served += lease_history(seed).net.lease_reads
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert served > HISTORIES  # else they check nothing
