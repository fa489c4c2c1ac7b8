"""The relay that records and cuts: every byte once, in order, both ways."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import eventually
from rafthttp.testing.tap import Relay, Taps

UPGRADE = b"GET /raft HTTP/1.1\r\nUpgrade: raft\r\n\r\n"


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        for thread in threads:
            thread.join(10)


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send and read the echo side by side; what came until all is there or the end."""
    sender = threading.Thread(target=send_all, args=(connection, data))
    sender.start()
    found = b""
    try:
        while len(found) < len(data) and (more := connection.recv(1 << 16)):
            found += more
    except OSError:
        pass
    sender.join(10)
    return found


def send_all(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


def test_both_directions_are_recorded(tmp_path: Path, echo: str) -> None:
    (port,) = free_ports(1)
    data = bytes(range(256)) * 5000
    with Taps(tmp_path) as taps:
        taps.front("a", f"127.0.0.1:{port}", echo)
        with dial(port) as connection:
            assert exchange(connection, UPGRADE + data) == UPGRADE + data
        with dial(port) as plain:  # no upgrade: passes, and is nobody's recording
            request = b"GET / HTTP/1.1\r\n\r\n"
            assert exchange(plain, request) == request
        (recording,) = taps.recordings()
    assert recording.target == "a"
    assert recording.there == recording.back == UPGRADE + data
    assert len(UPGRADE) <= recording.there_before_back <= len(UPGRADE + data)


def cuts(relay: Relay) -> int:
    return relay.cuts


def test_connections_are_cut_as_often_as_told(echo: str) -> None:
    (port,) = free_ports(1)
    data = UPGRADE + bytes(1 << 20)
    with Taps() as taps:
        relay = taps.front("a", f"127.0.0.1:{port}", echo)
        relay.cut(after=1 << 19, times=2)
        for number in range(3):
            with dial(port) as connection:
                assert (exchange(connection, data) == data) == (number == 2)
        assert cuts(relay) == 2
        assert taps.recordings() == []
        with dial(port) as connection:
            assert exchange(connection, UPGRADE) == UPGRADE  # small ones never


def test_a_target_that_is_gone_ends_the_connection() -> None:
    public, private = free_ports(2)
    with Taps() as taps:
        taps.front("a", f"127.0.0.1:{public}", f"127.0.0.1:{private}")
        with dial(public) as connection:
            assert exchange(connection, UPGRADE) == b""
        eventually(lambda: not taps.relays["a"].tasks, "no connection is left")


def test_a_member_that_is_blocked_is_reached_by_nobody(echo: str) -> None:
    (port,) = free_ports(1)
    with Taps() as taps:
        relay = taps.front("a", f"127.0.0.1:{port}", echo)
        with dial(port) as open_before:
            assert exchange(open_before, UPGRADE) == UPGRADE
            relay.block()
            open_before.settimeout(10)
            with suppress(ConnectionResetError):
                assert open_before.recv(1) == b""
        with dial(port) as meanwhile:
            assert exchange(meanwhile, UPGRADE) == b""
        relay.unblock()
        with dial(port) as after:
            assert exchange(after, UPGRADE) == UPGRADE
