"""What a state machine is handed: commands, and configurations where it wants them, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from rafthttp.raft.fsm import ConfigurationStore
from rafthttp.raft.runtime.applying import apply_entries, configuration_store
from rafthttp.raft.types import Configuration, Index, Log, LogType, Server, ServerAddress, ServerID
from rafthttp.raft.wire.configuration import encode_configuration
from rafthttp.sessions.fsm import SessionFSM
from rafthttp.testing.cluster import Cluster, Recorder, in_loop, until


class Keeper(Recorder):
    """A `ConfigurationStore`: remembers everything in the order it came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Index, object]] = []
        self.batches: list[int] = []

    def apply(self, log: Log) -> int:
        self.seen.append((log.index, log.data))
        return super().apply(log)

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        self.batches.append(len(logs))
        return super().apply_batch(logs)

    def store_configuration(self, index: Index, configuration: Configuration) -> None:
        self.seen.append((index, configuration))


def members(*ids: str) -> Configuration:
    return Configuration(tuple(Server(ServerID(i), ServerAddress(f"{i}:1")) for i in ids))


def configuration_entry(index: Index, *ids: str) -> Log:
    return Log(index, 1, LogType.CONFIGURATION, encode_configuration(members(*ids)))


def command(index: Index) -> Log:
    return Log(index, 1, LogType.COMMAND, b"%d" % index)


LOGS = [
    configuration_entry(1, "n1"),
    Log(2, 1, LogType.NOOP, b""),
    command(3),
    command(4),
    configuration_entry(5, "n1", "n2"),
    Log(6, 1, LogType.BARRIER, b""),
    command(7),
    configuration_entry(8, "n2"),
]


def test_configurations_stand_among_the_commands() -> None:
    keeper = Keeper()
    store = configuration_store(keeper)
    assert apply_entries(keeper, store, LOGS) == [1, 2, 3]
    assert keeper.seen == [
        (1, members("n1")),
        (3, b"3"),
        (4, b"4"),
        (5, members("n1", "n2")),
        (7, b"7"),
        (8, members("n2")),
    ]
    assert keeper.batches == [2, 1], "a batch is cut by configurations only"


def test_others_get_commands_only() -> None:
    recorder = Recorder()
    assert configuration_store(recorder) is None
    assert list(apply_entries(recorder, None, LOGS)) == [1, 2, 3]
    assert recorder.data == [b"3", b"4", b"7"]
    assert not apply_entries(recorder, None, LOGS[:2])


def test_sessions_hand_them_on() -> None:
    keeper = Keeper()
    fsm = SessionFSM(keeper)
    assert apply_entries(fsm, configuration_store(fsm), LOGS) == [1, 2, 3]
    assert [index for index, _ in keeper.seen] == [1, 3, 4, 5, 7, 8]
    plain = SessionFSM(Recorder())
    assert apply_entries(plain, configuration_store(plain), LOGS) == [1, 2, 3]


@pytest.mark.parametrize("logs", [LOGS, LOGS[2:4]])
def test_a_result_for_each_command(logs: list[Log]) -> None:
    class Short(Keeper):
        def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
            return super().apply_batch(logs)[1:]

    fsm = Short()
    with pytest.raises(RuntimeError, match="apply_batch answered 1 results for 2 commands"):
        apply_entries(fsm, configuration_store(fsm), logs)


@in_loop
async def test_every_member_is_told_and_told_again_by_a_replay() -> None:
    """From the cache while it runs, from disk after a restart."""
    async with Cluster(3, make_fsm=Keeper) as cluster:
        leader = await cluster.leader()
        await leader.apply(b"before")
        other = next(i for i in cluster.ids if i != leader.id)
        removed = await leader.remove_server(other)
        await leader.apply(b"after")
        keepers = [cast("Keeper", cluster.fsms[i]) for i in cluster.ids if i != other]
        await until(lambda: all(keeper.data == [b"before", b"after"] for keeper in keepers))
        assert keepers[0].seen == keepers[1].seen
        (_, first), (_, data), (index, configuration), (_, last) = keepers[0].seen
        assert isinstance(first, Configuration)
        assert isinstance(configuration, Configuration)
        assert {server.id for server in first} == set(cluster.ids)
        assert {server.id for server in configuration} == set(cluster.ids) - {other}
        assert (index, data, last) == (removed, b"before", b"after")

        seen = keepers[0].seen
        await cluster.stop(leader.id)
        await cluster.start(leader.id)
        again = cast("Keeper", cluster.fsms[leader.id])
        await until(lambda: again.seen == seen)
        assert isinstance(again, ConfigurationStore)
