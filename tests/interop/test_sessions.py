"""Applied once in mixed company: both state machines decide alike on the envelopes of sessions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rafthttp.sessions.envelope import HEAD, MAGIC, VERSION, Kind
from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member, RefusedError
from rafthttp.testing.processes import eventually

pytestmark = pytest.mark.interop

ClusterFactory = Callable[..., MixedCluster]
Answer = tuple[str, Any]


def envelope(kind: int, name: int, a: int = 0, b: int = 0, command: bytes = b"") -> bytes:
    return HEAD.pack(MAGIC, VERSION, kind, name.to_bytes(16, "big"), a, b) + command


REFUSALS = {"SessionFormatError", "SessionExpiredError", "RequestReusedError", "OverloadedError"}


def send(member: Member, data: bytes) -> Answer:
    """What the state machine answered: a value, or a refusal by name."""
    try:
        return "ok", member.apply(data)["response"]
    except RefusedError as error:
        name = str(error).partition(":")[0]
        if name not in REFUSALS:
            raise
        return name, None


def hand_over(cluster: MixedCluster, language: str) -> Member:
    """Leadership to a member in this language."""
    leader = cluster.leader()
    if leader.language == language:
        return leader
    heir = next(member for member in cluster.members if member.language == language)
    leader.post("transfer", id=heir.id, address=heir.address)
    return eventually(lambda: heir if cluster.wait_leader() is heir else None, f"{heir.id} leads")


def assert_same_snapshots(cluster: MixedCluster) -> None:
    """The table of sessions and the ledger, byte for byte, at one index."""
    cluster.apply(b"last of all")  # once the ledgers have it, the tables have all before it
    cluster.wait_level()
    taken = [member.post("snapshot") for member in cluster.members]
    assert all(snapshot == taken[0] for snapshot in taken), taken


def test_a_retry_over_a_change_of_leader(make_cluster: ClusterFactory) -> None:
    """The answer that Go remembers is Python's, and the other way round."""
    cluster = make_cluster("gp")
    cluster.start_all()
    request = envelope(Kind.REQUEST, 1, 1, 1, b"once")
    keyed = envelope(Kind.ONCE, 2, 0, 77, b"keyed")
    go = hand_over(cluster, "go")
    assert send(go, envelope(Kind.OPEN, 1)) == ("ok", None)
    assert [send(go, request), send(go, keyed)] == [("ok", 1), ("ok", 2)]
    for language in ("python", "go"):
        leader = hand_over(cluster, language)
        assert [send(leader, request), send(leader, keyed)] == [("ok", 1), ("ok", 2)]
        assert send(leader, envelope(Kind.ONCE, 2, 0, 78, b"keyed")) == ("RequestReusedError", None)
    figures = cluster.wait_level()
    assert (figures["applied"], figures["twice"]) == (2, [])
    assert_same_snapshots(cluster)


def random_envelope(rng: random.Random, number: int) -> bytes:
    command = b"%d" % (number if rng.random() < 0.9 else rng.randrange(number + 1))
    name = rng.randrange(4)
    match rng.choice(["open", "request", "request", "request", "once", "once", "odd", "bare"]):
        case "open":
            return envelope(Kind.OPEN, name)
        case "request":
            sequence = rng.randrange(1, 12)
            return envelope(Kind.REQUEST, name, sequence, rng.choice([0, 1, sequence]), command)
        case "once":
            return envelope(Kind.ONCE, rng.randrange(40), 0, rng.randrange(3), command)
        case "odd":
            whole = envelope(rng.choice([Kind.PLAIN, 4, 255]), 0, 0, 0, command)
            return rng.choice([whole, whole[: rng.randrange(6, 40)]])
        case _:
            return command


@pytest.mark.parametrize("seed", [1])
def test_any_envelopes_are_decided_alike(make_cluster: ClusterFactory, seed: int) -> None:
    """Answers, ledgers and snapshots of both kinds after what no sane client sends."""
    rng = random.Random(seed)
    cluster = make_cluster("pg")
    cluster.start_all()
    seen: set[str] = set()
    for round_number, language in enumerate(("python", "go", "python", "go")):
        leader = hand_over(cluster, language)
        for number in range(75):
            seen.add(send(leader, random_envelope(rng, 75 * round_number + number))[0])
        cluster.wait_level()
    assert seen == {"ok", *REFUSALS} - {"OverloadedError"}
    assert_same_snapshots(cluster)


@pytest.mark.parametrize("shape", ["gpp", "pgg"])
def test_a_wiped_follower_gets_the_table(make_cluster: ClusterFactory, shape: str) -> None:
    """InstallSnapshot to the other language, then the retry on whoever was installed."""
    cluster = make_cluster(shape, options={"trailing_logs": 0})
    leader = cluster.start_all()
    request = envelope(Kind.REQUEST, 1, 1, 1, b"once")
    send(leader, envelope(Kind.OPEN, 1))
    send(leader, request)
    for number in range(50):
        leader.apply(b"%d" % number)
    wiped = cluster.members[2]
    assert wiped.language != leader.language
    leader.post("remove", id=wiped.id)
    wiped.kill()
    wiped.wipe()
    # hashicorp/raft takes no snapshot while a configuration is the last thing applied.
    leader.apply(b"after-the-removal")
    leader.post("snapshot")
    cluster.join(wiped, via=leader)
    cluster.apply(b"after-the-join")
    cluster.wait_level()
    assert wiped.wait_serving()["first_index"] > 10
    heir = hand_over(cluster, wiped.language)
    assert send(heir, request) == ("ok", 1)
    assert_same_snapshots(cluster)
