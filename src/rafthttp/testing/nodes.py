"""Applications served for real inside a test's own event loop: sockets, but no processes.

Knows uvicorn; for what must survive a kill there is `processes`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import uvicorn

from rafthttp import raft_protocol

_POLL_SECONDS: Final = 0.01


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def loopback_listener() -> socket.socket:
    """A listening socket on a free port; its connects wait until somebody serves it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The listener's `HOST:PORT`."""
    host, port = listener.getsockname()
    return f"{host}:{port}"


@asynccontextmanager
async def served(app: Any, listener: socket.socket) -> AsyncGenerator[None]:
    """Serve an application with its lifespan, as `uvicorn` with the hijacking protocol does."""
    server = _Server(
        uvicorn.Config(
            app,
            http=raft_protocol(),
            ws="none",
            lifespan="auto",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
    )
    with listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            started = asyncio.create_task(until(lambda: server.started, "the server starts"))
            await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
            if not server.started:
                started.cancel()
                await serving
                raise RuntimeError("the application did not start")
            yield
        finally:
            server.should_exit = True
            await serving


async def until(probe: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Wait until `probe` is true.

    Raises:
        AssertionError: it was not within `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not probe():
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(_POLL_SECONDS)
