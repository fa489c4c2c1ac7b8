"""A busy event loop does not keep the disk's thread out."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from rafthttp.raft.runtime.disk import ThreadLane
from rafthttp.raft.runtime.thread_room import ThreadRoom
from rafthttp.raft.types import LogBatch, LogWrite

FLUSH_SECONDS = 0.0003
CALLBACK_SECONDS = 0.001
# CPU time of the loop's own thread: what others take of the machine does not count.
CPU_SECONDS = 1.0
# Without help 1 on a machine that does nothing else, with it 260 and more on any.
FLUSHES_MIN = 100


class Disk:
    """A store that only takes its time."""

    def write(self, writes: object) -> None:
        del writes
        time.sleep(FLUSH_SECONDS)  # lets go of the interpreter, as a flush does

    def close(self) -> None:
        pass


async def flushes_beside(callback_seconds: float) -> int:
    """How many writes, one after the other, are done beside callbacks of that length."""
    loop = asyncio.get_running_loop()
    end = time.thread_time() + CPU_SECONDS
    over = asyncio.Event()
    done = 0

    def spin() -> None:
        until = time.thread_time() + callback_seconds
        while time.thread_time() < until:
            pass
        if time.thread_time() < end:
            loop.call_soon(spin)
        else:
            over.set()

    def next_write(seq: int) -> None:
        nonlocal done
        done = seq
        if not over.is_set():
            lane.submit(seq + 1, LogWrite({}, None, (LogBatch(seq + 1, 1, [b"x"]),)))

    disk = cast("Any", Disk())
    lane = ThreadLane(disk, disk, next_write, lambda _, error: loop.stop())
    loop.call_soon(spin)
    next_write(0)
    await over.wait()
    await lane.close()
    return done


def test_the_thread_gets_in() -> None:
    """S74 and S75: a disk that is well must not look like one that hangs."""
    assert asyncio.run(flushes_beside(CALLBACK_SECONDS)) >= FLUSHES_MIN


def test_a_loop_that_rests_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is."""
    slept: list[float] = []

    async def wait_for_a_slow_disk() -> None:
        room = ThreadRoom()
        room.given(1)
        monkeypatch.setattr(time, "sleep", slept.append)
        await asyncio.sleep(0.05)
        room.given(2)
        room.close()

    asyncio.run(wait_for_a_slow_disk())
    assert slept == []
