"""One Python member with the admin API of `interop/go`: `python -m rafthttp.testing.interop_node`.

Knows the command line, `Node` and uvicorn; the tests treat it and the Go program alike. Flags have
the names of the Go program's; durations are seconds here.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette

from rafthttp import Config, ServerID, allow_everybody, raft_protocol
from rafthttp.testing.interop_admin import Admin, InteropNode
from rafthttp.testing.ledger import Ledger

_TIMEOUT: Final = 10.0


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Every field of `Config` that is a number or a switch is a flag, as in Go's program."""
    parser = argparse.ArgumentParser(prog="rafthttp.testing.interop_node")
    parser.add_argument("--id", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--listen", help="behind a relay, where it is not the address")
    parser.add_argument("--path", default="/raft")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--join", action="append", default=[])
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT)
    parser.add_argument("--log-level", default="INFO")
    defaults = Config(ServerID("defaults"))
    for field in fields(Config):
        value = getattr(defaults, field.name)
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
        elif isinstance(value, int | float):
            parser.add_argument(flag, type=type(value), default=value)
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace) -> Config:
    known = vars(options)
    chosen = {field.name: known[field.name] for field in fields(Config) if field.name in known}
    return Config(ServerID(options.id), **chosen)


async def _serve(options: argparse.Namespace) -> None:
    ledger = Ledger()
    node = InteropNode(
        options.id,
        options.address,
        fsm=ledger,
        data_dir=options.data_dir,
        bootstrap=options.bootstrap,
        join=[target if "//" in target else f"http://{target}" for target in options.join],
        path=options.path,
        authorize=allow_everybody,
        config=_config(options),
        timeout=options.timeout,
    )
    app = Starlette(routes=Admin(node, ledger).routes(), lifespan=node.lifespan)
    node.mount(app)
    host, _, port = (options.listen or options.address).rpartition(":")
    config = uvicorn.Config(
        app,
        host=host,
        port=int(port),
        http=raft_protocol(),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve()


def _end(_number: int, _frame: object) -> None:
    sys.exit(0)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = _options()
    # uvicorn stops at the first, and raises it again once it has stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=options.log_level, format=form, stream=sys.stderr)
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
