"""A state machine or a handler that blocks the event loop, and a disk that hangs.

For a while a blocked loop costs nothing. A follower that blocks answers nothing, and a leader gives
up after `leader_lease_timeout` without a quorum's answers: where all block, the bound is 0.8 of it.
A leader that blocks alone may do so for 0.8 of `heartbeat_timeout`: followers wait for that at
least, and are told ten times in it that the leader lives. Past it they take over, as from any
leader that says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from rafthttp import Config, ServerID
from rafthttp.testing.nemesis.relays import Relays
from rafthttp.testing.nemesis.servers import Server, ServeServers
from rafthttp.testing.nemesis.troubled import BLOCKING_PATH, BLOCKS, HEALTHY
from rafthttp.testing.processes import eventually

pytestmark = pytest.mark.process

DEFAULTS = Config(ServerID("any"))
EVERYWHERE_SECONDS = 0.8 * DEFAULTS.leader_lease_timeout
ALONE_SECONDS = 0.8 * DEFAULTS.heartbeat_timeout
PAST_SECONDS = 4 * DEFAULTS.heartbeat_timeout
WRITES = 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeServers]:
    """One for all tests, each of which leaves it whole. A node would send a write again by itself
    where it is applied once, and there would be nothing unknown to see."""
    network = Relays(3)
    servers = ServeServers(tmp_path_factory.mktemp("stalls"), network, 3, ["--no-sessions"])
    network.watch(servers.servers)
    try:
        servers.start_all()
        yield servers
    finally:
        servers.close()
        network.close()


def leader_of(cluster: ServeServers) -> Server:
    return eventually(lambda: next((s for s in cluster.servers if s.leads()), None), "one leads")


def term_of(cluster: ServeServers, server: Server) -> int:
    status = eventually(lambda: cluster.status(cluster[server.id]), f"{server.id} answers")
    return int(status["term"])


def put(cluster: ServeServers, server: Server, key: str, value: bytes) -> httpx.Response:
    return cluster.http.put(f"http://{server.address}/kv/{key}", content=value, timeout=20)


def block_in_handlers(cluster: ServeServers, servers: Sequence[Server]) -> list[str]:
    """A request to each of them at once, whose handler blocks; what role each had then."""

    def ask(server: Server) -> str:
        return cluster.http.get(f"http://{server.address}{BLOCKING_PATH}", timeout=20).text

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(ask, servers))


@pytest.mark.parametrize("what", ["state machine", "handler"])
def test_up_to_the_bound_leadership_stays(cluster: ServeServers, what: str) -> None:
    """S75. On the leader alone, on a follower, and on all at once."""
    for who, seconds in (
        ("leader", ALONE_SECONDS),
        ("follower", ALONE_SECONDS),
        ("all", EVERYWHERE_SECONDS),
    ):
        # A fifth of a second is left to the machine, which may be busier than that.
        assert any(leadership_stays(cluster, what, who, seconds) for _ in range(4)), who


def leadership_stays(cluster: ServeServers, what: str, who: str, seconds: float) -> bool:
    leader = leader_of(cluster)
    term = term_of(cluster, leader)
    follower = next(server for server in cluster.servers if server is not leader)
    hit = {"leader": [leader], "follower": [follower], "all": cluster.servers}[who]
    for server in cluster.servers:
        blocks = seconds if server in hit else 0.0
        server.trouble = replace(HEALTHY, apply_blocks=blocks, handler_blocks=blocks)
    for number in range(2):
        if what == "handler":
            block_in_handlers(cluster, hit)
        else:
            put(cluster, leader, f"stays-{number}", BLOCKS)
    cluster.wait_until_whole()
    return term_of(cluster, leader_of(cluster)) == term


def test_a_hung_disk_costs_leadership_in_time(cluster: ServeServers) -> None:
    """S74: within twice the election timeout of the first write that does not return."""
    old = leader_of(cluster)
    others = [server for server in cluster.servers if server is not old]
    old.trouble = replace(old.trouble, disk_hangs=True)
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(put, cluster, old, "hung", b"v")
        eventually(lambda: not old.leads(), "the leader steps down")
        # And half a second for asking, on a busy machine.
        assert time.monotonic() - begin < 2 * DEFAULTS.election_timeout + 0.5
        put_at_last(cluster, others, "after")
        assert answer.result(30).status_code in (204, 503, 504)
    old.trouble = replace(old.trouble, disk_hangs=False)
    cluster.wait_until_whole()
    assert cluster.http.get(f"http://{old.address}/kv/after").status_code == 200


def test_past_the_bound_the_others_take_over(cluster: ServeServers) -> None:
    """S75, S35: what the old leader could not commit before ends as unknown, and is told once.

    1. The followers' disks hang, so that what blocks is not committed at once. 2. The leader's
    links to them are cut: what is written now reaches nobody. 3. The disks go on, the answer
    comes, and the leader blocks with writes pending. 4. The others elect. 5. It wakes up.
    """
    # All of 2 has half a second, which a busy machine may not give.
    assert any(pending_ends_as_unknown(cluster, f"{number}-") for number in range(4))


def pending_ends_as_unknown(cluster: ServeServers, prefix: str) -> bool:
    """False: the leader gave up before all was proposed."""
    old = leader_of(cluster)
    others = [server for server in cluster.servers if server is not old]
    old.trouble = replace(old.trouble, apply_blocks=PAST_SECONDS)
    put_at_last(cluster, [old], prefix + "before")
    term, before = term_of(cluster, old), last_index(cluster, old)
    keys = [f"{prefix}{number}" for number in range(WRITES)]
    with ThreadPoolExecutor(WRITES + 1) as pool:
        for server in others:
            server.trouble = replace(server.trouble, disk_hangs=True)
        blocking = pool.submit(put, cluster, old, prefix + "blocking", BLOCKS)
        eventually(lambda: last_index(cluster, old) > before, "what blocks is proposed")
        cluster.network.cut([(old.number, server.number) for server in others])
        pending = [pool.submit(put, cluster, old, key, b"v") for key in keys]
        proposed = wait_proposed(cluster, old, before + 1 + WRITES)
        proposed = proposed and term_of(cluster, old) == term
        for server in others:
            server.trouble = replace(server.trouble, disk_hangs=False)
        put_at_last(cluster, others, prefix + "of-the-new")
        cluster.network.heal()
        answers = [each.result(30) for each in pending]
        assert blocking.result(30).status_code in (204, 503, 504)
    cluster.wait_until_whole()
    put_at_last(cluster, cluster.servers, prefix + "last")
    if not proposed:
        return False
    assert term_of(cluster, old) > term
    assert_unknown(cluster, old, answers, keys, [f"{prefix}before", f"{prefix}of-the-new"])
    return True


def test_a_handler_past_the_bound_costs_leadership(cluster: ServeServers) -> None:
    """S75, S35: as above, and the leader blocks in a handler while writes are pending.

    1. The leader's links are cut: what is written now reaches nobody. 2. It blocks with writes
    pending. 3. The others elect. 4. It wakes up.
    """
    # All of 1 has half a second, which a busy machine may not give.
    assert any(pending_behind_a_handler(cluster, f"h{number}-") for number in range(4))


def pending_behind_a_handler(cluster: ServeServers, prefix: str) -> bool:
    """False: the leader gave up before it blocked, or before all was proposed."""
    old = leader_of(cluster)
    others = [server for server in cluster.servers if server is not old]
    old.trouble = replace(HEALTHY, handler_blocks=PAST_SECONDS)
    put_at_last(cluster, [old], prefix + "before")
    term, before = term_of(cluster, old), last_index(cluster, old)
    keys = [f"{prefix}{number}" for number in range(WRITES)]
    with ThreadPoolExecutor(WRITES + 1) as pool:
        cluster.network.cut([(old.number, server.number) for server in others])
        pending = [pool.submit(put, cluster, old, key, b"v") for key in keys]
        proposed = wait_proposed(cluster, old, before + WRITES)
        blocking = pool.submit(block_in_handlers, cluster, [old])
        put_at_last(cluster, others, prefix + "of-the-new")
        cluster.network.heal()
        answers = [each.result(30) for each in pending]
        led = blocking.result(30) == ["leader"]
    cluster.wait_until_whole()
    put_at_last(cluster, cluster.servers, prefix + "last")
    if not proposed or not led:
        return False
    assert term_of(cluster, old) > term
    assert_unknown(cluster, old, answers, keys, [f"{prefix}before", f"{prefix}of-the-new"])
    return True


def wait_proposed(cluster: ServeServers, leader: Server, last: int) -> bool:
    """Whether its log reaches to `last` within a second, and no further."""
    end = time.monotonic() + 1.0
    while last_index(cluster, leader) < last and time.monotonic() < end:
        pass
    return last_index(cluster, leader) == last


def assert_unknown(
    cluster: ServeServers,
    old: Server,
    answers: Sequence[httpx.Response],
    keys: Sequence[str],
    kept: Sequence[str],
) -> None:
    """What the old leader had pending ended as unknown, and none of it was done."""
    for answer in answers:
        assert (answer.status_code, answer.json()["outcome"]) == (504, "unknown")
    for key in kept:
        assert cluster.http.get(f"http://{old.address}/kv/{key}").status_code == 200
    for key in keys:
        assert cluster.http.get(f"http://{old.address}/kv/{key}").status_code == 404


def put_at_last(cluster: ServeServers, among: Sequence[Server], key: str) -> None:
    """Write at whoever of them leads; leadership may change on a busy machine."""

    def attempt() -> bool:
        leading = next((server for server in among if server.leads()), None)
        return leading is not None and put(cluster, leading, key, b"v").status_code == 204

    eventually(attempt, f"{key} is written")


def last_index(cluster: ServeServers, server: Server) -> int:
    status = cluster.status(cluster[server.id])
    return 0 if status is None else int(status["last_index"])
