"""Every way to serve a handler."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import uvloop

from rafthttp.http.uvicorn import RaftH11Protocol
from rafthttp.http.uvicorn_httptools import RaftHttpToolsProtocol
from rafthttp.testing.http import ServerKind
from rafthttp.testing.ports import free_ports
from rafthttp.testing.web_servers import hypercorn_tracebacks

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
SERVERS = {
    "listener": None,
    "uvicorn-httptools": RaftHttpToolsProtocol,
    "uvicorn-h11": RaftH11Protocol,
}


@pytest.fixture(params=[f"{server}-{loop}" for server in SERVERS for loop in LOOPS])
def kind(request: pytest.FixtureRequest) -> ServerKind:
    """Each server on each loop."""
    server, _, loop = str(request.param).rpartition("-")
    return ServerKind(request.param, SERVERS[server], LOOPS[loop])


@pytest.fixture(params=[f"{s}-{loop}" for s in SERVERS if s != "listener" for loop in LOOPS])
def uvicorn_kind(request: pytest.FixtureRequest) -> ServerKind:
    """Each uvicorn protocol on each loop."""
    server, _, loop = str(request.param).rpartition("-")
    return ServerKind(request.param, SERVERS[server], LOOPS[loop])


@pytest.fixture(params=list(LOOPS))
def on_loop(request: pytest.FixtureRequest) -> ServerKind:
    """Our own listener on each loop; for tests of one side only."""
    return ServerKind(request.param, None, LOOPS[request.param])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections (in the kernel) and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield listening.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def hypercorns_own(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    """The tracebacks that hypercorn logs at a stop whatever it serves, by the command's name."""

    @cache
    def tracebacks(name: str) -> set[str]:
        return hypercorn_tracebacks(tmp_path_factory.mktemp("bare") / "hypercorn", name)

    return tracebacks
