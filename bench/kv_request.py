"""What one request costs the process that serves it, without disk, peers and sockets.

    python -m bench.kv_request [--count N] [--clients N] [put|get]

A one-node service in memory behind uvicorn's protocol, fed by transports that keep nothing. Prints
the CPU time a request, the best of seven runs. Instructions a request, which no other load on the
machine changes: the difference of two counts under `valgrind --tool=callgrind`, with --runs 1.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from rafthttp import Node, raft_protocol
from rafthttp.cli.server import collect_rarely
from rafthttp.kv.app import create_app
from rafthttp.kv.fsm import KVStateMachine
from rafthttp.testing.nodes import until

_REQUESTS = {
    "put": b"PUT /kv/key%d HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: 64\r\n\r\n"
    + b"x" * 64,
    "get": b"GET /kv/key%d HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n",
}


class _Client(asyncio.Transport):
    """A connection whose client sends the next request when it has the last answer's end."""

    def __init__(self, protocol: Any, request: bytes, count: int, done: Any, end: bytes) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.protocol, self.request, self.left, self.done = protocol, request, count, done
        self.end = end

    def next(self) -> None:
        self.left -= 1
        self.protocol.data_received(self.request % (self.left % 16))

    def write(self, data: Any) -> None:
        if data.endswith(self.end):
            asyncio.get_running_loop().call_soon(self.next if self.left else self.done)

    def is_closing(self) -> bool:
        return False

    def get_protocol(self) -> Any:
        return self.protocol

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def measure(arguments: argparse.Namespace) -> float:
    """CPU seconds a request, the best run's."""
    fsm = KVStateMachine()
    node = Node("n1", "127.0.0.1:9", fsm=fsm, bootstrap=True, sessions=True)
    protocol_class: Any = raft_protocol()
    config = uvicorn.Config(
        create_app(node, fsm, manage_node=False),
        http=protocol_class,
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Mon, 23 Nov 2026 09:18:36 GMT")]

    async def run(kind: str, count: int) -> float:
        loop = asyncio.get_running_loop()
        waiting = [loop.create_future() for _ in range(arguments.clients)]
        begin = time.process_time()
        for future in waiting:
            protocol = protocol_class(config=config, server_state=state, app_state={})
            end = b"\r\n\r\n" if kind == "put" else b"x"
            each = count // arguments.clients
            client = _Client(
                protocol, _REQUESTS[kind], each, lambda f=future: f.set_result(None), end
            )
            protocol.connection_made(client)
            client.next()
        await asyncio.gather(*waiting)
        return (time.process_time() - begin) / count

    async with node:
        await until(lambda: node.leader is not None, "a leader")
        collect_rarely()
        await run("put", 1024)
        return min([await run(arguments.kind, arguments.count) for _ in range(arguments.runs)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=_REQUESTS, default="put")
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(f"{runner.run(measure(parser.parse_args())) * 1e6:.1f} us a request")
