"""What a hostile or broken client does to a port, and what a process pays for it.

Knows sockets and `/proc`; no cluster. For tests of real processes on Linux.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from rafthttp.http.grammar import split_address

UPGRADE: Final = (
    "GET {path} HTTP/1.1\r\nHost: stranger\r\nConnection: Upgrade\r\nUpgrade: raft\r\n{more}\r\n"
)
_HEAD_END: Final = b"\r\n\r\n"
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def connect(address: str, timeout: float = 20.0) -> socket.socket:
    """A plain connection to `HOST:PORT`."""
    return socket.create_connection(split_address(address), timeout)


def open_stream(address: str, path: str = "/raft", token: str | None = None) -> socket.socket:
    """A socket behind a valid 101.

    Raises:
        AssertionError: the answer was another.
    """
    more = "" if token is None else f"Authorization: Bearer {token}\r\n"
    connection = connect(address)
    try:
        connection.sendall(UPGRADE.format(path=path, more=more).encode())
        head = b""
        while _HEAD_END not in head:
            piece = connection.recv(4096)
            assert piece, f"closed behind {head!r}"
            head += piece
        assert head.startswith(b"HTTP/1.1 101 "), head
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(address: str, request: bytes, timeout: float = 20.0) -> bytes:
    """Send raw bytes; everything that comes back until the other side closes."""
    with connect(address, timeout) as connection:
        with suppress(ConnectionError):  # refused before it was all read
            connection.sendall(request)
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the other side closes, by FIN or by reset."""
    answer = bytearray()
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return bytes(answer)


def flood(address: str, pieces: Callable[[], bytes], size_bytes: int, seconds: float) -> int:
    """Send until refused, at most `size_bytes` in `seconds`; returns how many bytes went out."""
    sent = 0
    deadline = time.monotonic() + seconds
    with connect(address, seconds) as connection, suppress(OSError):
        while sent < size_bytes and time.monotonic() < deadline:
            piece = pieces()
            connection.sendall(piece)
            sent += len(piece)
    return sent


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text("ascii").split()
    return int(fields[1]) * _PAGE_BYTES


def reset_peak(pid: int) -> bool:
    """Let `peak_bytes` count from now on; False where this kernel cannot (`clear_refs`)."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def peak_bytes(pid: int) -> int:
    """The most resident memory of a process, since its start or since `reset_peak`."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) << 10


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
