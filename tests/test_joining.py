"""What a node remembers of being a member, and whom it asks."""

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest
from starlette.applications import Starlette

from rafthttp import (
    FSM,
    BytesSnapshot,
    Config,
    ConfigError,
    Configuration,
    Log,
    Node,
    Server,
    ServerAddress,
    ServerID,
)
from rafthttp.http.layer import Layer
from rafthttp.joining import LEFT, Membership, join_target
from rafthttp.raft.status import LatestConfiguration
from rafthttp.raft.storage.memory import MemoryStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.testing.cluster import in_loop
from rafthttp.testing.nodes import address_of, loopback_listener, served, until


class Nothing(FSM):
    def apply(self, log: Log) -> None: ...
    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: object) -> None: ...


def configuration(index: int, *ids: str) -> LatestConfiguration:
    servers = tuple(Server(ServerID(i), ServerAddress(f"{i}:1")) for i in ids)
    return LatestConfiguration(Configuration(servers), index)


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("http://h:1", "http", "h:1"),
        ("http://h:1/raft", "http", "h:1"),
        ("http://h", "http", "h:80"),
        ("https://h", "https", "h:443"),
        ("http://h:1", "https", "h:1"),
        ("h:1", "http", "h:1"),
        ("h:1", "https", "h:1"),
        ("[::1]:8101", "http", "[::1]:8101"),
        ("https://[::1]", "https", "[::1]:443"),
    ],
)
def test_whom_to_join_through(text: str, scheme: str, target: str) -> None:
    assert join_target(text, scheme) == target


@pytest.mark.parametrize(
    "text", ["", "h", "::1", "http://", "ftp://h:1", "h:0", "h:99999", "h:x", "a b:1", "/x"]
)
def test_what_names_no_member(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not http\[s\]://HOST:PORT or HOST:PORT"):
        join_target(text)


def test_a_node_without_tls_does_not_join_an_https_member_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="is https, but this node is to speak http"):
        join_target("https://h:1", "http")


@in_loop
async def test_a_member_until_it_leaves_and_again_once_a_later_configuration_has_it() -> None:
    store = MemoryStore()
    membership = Membership(ServerID("n2"), store, [])
    both = configuration(5, "n1", "n2")
    assert membership.is_member(both)
    assert not membership.is_member(configuration(3, "n1"))
    assert not membership.is_member(configuration(0))

    await membership.note_left(both)  # its own removal did not reach it
    for known in (membership, Membership(ServerID("n2"), store, [])):  # also after a restart
        assert known.has_left(both)
        assert not known.is_member(both)
        assert not known.is_member(configuration(6, "n1"))
        assert known.is_member(configuration(7, "n1", "n2"))
    assert store.get(LEFT) == b"5"


def test_leaving_is_done_though_the_note_cannot_be_written(tmp_path: Path) -> None:
    """A server with `shutdown_on_remove` closes its stores when it learns that it is gone."""

    async def scenario() -> None:
        store = SqliteStore.open(tmp_path, ServerID("n2"))
        membership = Membership(ServerID("n2"), store, [])
        store.close()
        await membership.note_left(configuration(6, "n1"))
        await membership.note_left(configuration(5, "n1", "n2"))
        assert membership.has_left(configuration(5, "n1", "n2"))

    asyncio.run(scenario())


def test_one_that_left_says_so_and_joining_makes_it_a_member_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        first, second = loopback_listener(), loopback_listener()
        n1 = node("n1", address_of(first), bootstrap=True)
        with second:
            at = address_of(second)
            async with served(app(n1), first):
                n2 = node("n2", at, data_dir=tmp_path, join=[n1.address])  # without a scheme
                assert not counted(n2)
                async with served(app(n2), second.dup()):
                    await until(lambda: not n2.joining, "n2 is a member")
                    assert counted(n2)
                    await n2.leave()
                    assert not counted(n2)

                with caplog.at_level(logging.WARNING, "rafthttp.node"):
                    out = node("n2", at, data_dir=tmp_path)
                    async with served(app(out), second.dup()):
                        assert not counted(out)
                assert "n2 left its cluster, or was removed" in caplog.text

                caplog.clear()
                back = node("n2", at, data_dir=tmp_path, join=[n1.address])
                async with served(app(back), second.dup()):
                    await until(lambda: not back.joining, "n2 is a member again")
                    assert counted(back)
                async with served(app(node("n2", at, data_dir=tmp_path)), second.dup()):
                    assert "left its cluster" not in caplog.text

    asyncio.run(asyncio.wait_for(scenario(), 30))


@in_loop
async def test_a_404_makes_one_think_of_the_path() -> None:
    first, second = loopback_listener(), loopback_listener()
    n1 = node("n1", address_of(first), bootstrap=True, path="/other")
    n2 = node("n2", address_of(second), join=[n1.address])
    async with served(app(n1), first), served(app(n2), second):
        await until(lambda: n2.join_error, "it is refused")
        assert "answered 404" in (n2.join_error or "")
        assert "no members' endpoint is at /raft there" in (n2.join_error or "")
        assert "--path" in (n2.join_error or "")


class BrokenLayer:
    """Fails in a way that nobody foresaw."""

    address = ServerAddress("n1:1")
    cluster_id = None

    async def dial(self, _address: ServerAddress, _timeout: float) -> None:
        raise RuntimeError("a bug")


@in_loop
async def test_an_end_that_nobody_foresaw_is_told() -> None:
    """A node that stopped asking, without a word, would wait for ever for others to add it."""
    membership = Membership(ServerID("n1"), MemoryStore(), ["n2:1"])
    with pytest.raises(RuntimeError):
        await membership.join(cast("Layer", BrokenLayer()), 1.0, None, lambda: ["n2:1"])
    assert membership.error == "asks no more to be added, after a bug: RuntimeError('a bug')"


def counted(member: Node) -> bool:
    return member.is_member


def node(
    node_id: str,
    address: str,
    *,
    data_dir: Path | None = None,
    bootstrap: bool = False,
    join: list[str] | None = None,
    path: str = "/raft",
) -> Node:
    config = Config(
        ServerID(node_id), heartbeat_timeout=0.1, election_timeout=0.1, leader_lease_timeout=0.1
    )
    return Node(
        node_id,
        address,
        fsm=Nothing(),
        config=config,
        data_dir=data_dir,
        bootstrap=bootstrap,
        join=join or [],
        path=path,
    )


def app(member: Node) -> Starlette:
    made = Starlette(lifespan=member.lifespan)
    member.mount(made)
    return made
