"""A server whose disk, clock, state machine and handlers have troubles, told from outside.

    python -P troubled.py FILE serve --id n1 …
    python -P troubled.py FILE member --id p1 …

Run as a script, so that the clock is wrong before the package is loaded. `FILE` is a JSON object
with the fields of `Trouble`, read again whenever it changes. Nothing but calls of the system's
clock, of the log store and of the state machine is wrapped; and `serve` has one more route.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

_POLL_SECONDS: Final = 0.02


def troubled(file: Path, kind: str) -> list[str]:
    """What the command line of a server (`serve`) or of a mixed cluster's member begins with."""
    return [sys.executable, "-P", __file__, str(file), kind]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a server. All defaults: nothing.

    Attributes:
        disk_delay: most seconds by which each write is late; between 0 and this at random.
        disk_hangs: no write returns while this is set.
        clock_offset: seconds by which the wall clock is wrong. The monotonic one is left alone.
        apply_blocks: seconds for which the state machine blocks, once, on a key that `blocks`.
        handler_blocks: seconds for which a request to `BLOCKING_PATH` blocks the event loop.
    """

    disk_delay: float = 0.0
    disk_hangs: bool = False
    clock_offset: float = 0.0
    apply_blocks: float = 0.0
    handler_blocks: float = 0.0


HEALTHY: Final = Trouble()
BLOCKS: Final = b"blocks"
"""A command that holds these bytes makes the state machine block."""
BLOCKING_PATH: Final = "/blocks"
"""A route of each `serve` process whose handler blocks, and answers with the role of before."""


def tell(file: Path, trouble: Trouble) -> None:
    """Let the server that reads `file` have this trouble from now on."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(trouble)), "utf-8")
    fresh.replace(file)


class _Told:
    """The trouble of now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._trouble = HEALTHY

    def now(self) -> Trouble:
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            return HEALTHY
        seen = (found.st_mtime_ns, found.st_ino)
        if seen != self._seen:
            self._trouble = Trouble(**json.loads(self._file.read_text("utf-8")))
            self._seen = seen
        return self._trouble

    def wait_for_disk(self) -> None:
        trouble = self.now()
        if trouble.disk_delay > 0:
            time.sleep(random.uniform(0, trouble.disk_delay))  # noqa: S311 - a disk is no secret
        while self.now().disk_hangs:
            time.sleep(_POLL_SECONDS)


def _set_clock(told: _Told) -> None:
    """Before the package is loaded, so that nobody holds the right clock's name."""
    true_ns, true = time.time_ns, time.time
    time.time_ns = lambda: true_ns() + int(told.now().clock_offset * 1e9)
    time.time = lambda: true() + told.now().clock_offset


def _slow_disk(told: _Told) -> None:
    from rafthttp.raft.storage.sqlite import SqliteStore

    def slow(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            told.wait_for_disk()
            return inner(*arguments, **named)

        return call

    for name in ("write", "set", "delete_prefix"):
        setattr(SqliteStore, name, slow(getattr(SqliteStore, name)))


def _block_apply(told: _Told) -> None:
    """Whatever runs on the event loop blocks all of it; here it is the key-value state machine."""
    from rafthttp.kv.fsm import KVStateMachine
    from rafthttp.raft.types import Log

    inner = KVStateMachine.apply

    def apply(self: KVStateMachine, log: Log) -> Any:
        if BLOCKS in log.data:
            time.sleep(told.now().apply_blocks)
        return inner(self, log)

    KVStateMachine.apply = apply  # type: ignore[method-assign]  # that is the trouble


def _block_handler(told: _Told) -> None:
    """A route as an application's beside the node, which waits in the wrong way."""
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import BaseRoute, Route

    from rafthttp.kv.app import KVService

    inner = KVService.routes

    def routes(self: KVService) -> list[BaseRoute]:
        async def block(request: Request) -> PlainTextResponse:
            del request
            role = self._node.raft.state.value
            time.sleep(told.now().handler_blocks)  # noqa: ASYNC251 - that is the trouble
            return PlainTextResponse(role)

        return [*inner(self), Route(BLOCKING_PATH, block)]

    KVService.routes = routes  # type: ignore[method-assign]  # as `apply`


def main() -> None:
    """Run the server that the arguments name."""
    file, kind = Path(sys.argv[1]), sys.argv[2]
    told = _Told(file)
    _set_clock(told)
    _slow_disk(told)
    if kind == "serve":
        _block_apply(told)
        _block_handler(told)
        from rafthttp.cli import main as serve

        sys.argv[:3] = ["rafthttp", "serve"]
        serve()
    else:
        from rafthttp.testing.interop_node import main as be_member

        del sys.argv[1:3]
        be_member()


if __name__ == "__main__":
    main()
