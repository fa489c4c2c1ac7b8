"""An observer alone: kinds, bounds, the end."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.raft.errors import ConfigError
from rafthttp.raft.observer import FailedHeartbeatObservation, LeaderObservation, Observer
from rafthttp.raft.types import ServerID


def failed(number: int) -> FailedHeartbeatObservation:
    return FailedHeartbeatObservation(ServerID(str(number)))


def test_a_slow_observer_loses_the_oldest_and_counts_them() -> None:
    async def run() -> None:
        observer = Observer(size=3)
        for number in range(5):
            observer.tell(failed(number))
        observer.end()
        assert [o async for o in observer] == [failed(2), failed(3), failed(4)]
        assert observer.dropped == 2

    asyncio.run(run())


def test_only_the_kinds_asked_for() -> None:
    async def run() -> None:
        observer = Observer(LeaderObservation)
        observer.tell(failed(1))
        observer.tell(LeaderObservation(None))
        observer.end()
        observer.tell(LeaderObservation(None))
        assert [o async for o in observer] == [LeaderObservation(None)]

    asyncio.run(run())


def test_a_waiting_reader_is_woken() -> None:
    async def run() -> None:
        observer = Observer()
        reader = asyncio.ensure_future(anext(observer))
        await asyncio.sleep(0)
        observer.tell(failed(1))
        assert await reader == failed(1)

    asyncio.run(run())


def test_size_has_a_bound() -> None:
    async def run() -> None:
        with pytest.raises(ConfigError, match="size is 0"):
            Observer(size=0)

    asyncio.run(run())
