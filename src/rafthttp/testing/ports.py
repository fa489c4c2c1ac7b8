"""Ports that stay free until the server they are meant for takes them, also beside other test runs.

A port that the kernel hands out for 0 may be handed out again once it is closed, to another run or
as the near end of any connection. Here each process claims a block of ports below the kernel's own
range (Linux 32768, elsewhere 49152) by listening at the block's first port for as long as it lives.
"""

from __future__ import annotations

import os
import socket
from typing import Final

FIRST: Final = 10_000
BLOCK_SIZE: Final = 500
BLOCKS: Final = 45
"""Blocks end below 32768; more test processes than this at a time there are not."""

_claims: dict[int, int] = {}
_next: dict[int, int] = {}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now, one behind the other.

    Raises:
        RuntimeError: there are none.
    """
    begin = _block()
    usable = BLOCK_SIZE - 1  # the first port is the claim
    start = _next.get(begin, 0)
    for turn in range(usable):
        offset = (start + turn) % usable
        if offset + count > usable:
            continue
        ports = [begin + 1 + offset + number for number in range(count)]
        if all(_is_free(port) for port in ports):
            _next[begin] = offset + count
            return ports
    raise RuntimeError(f"no {count} free ports from {begin} on")


def _block() -> int:
    """The first port of this process's block; a fork claims its own."""
    pid = os.getpid()
    if pid not in _claims:
        _claims[pid] = _claim()
    return _claims[pid]


def _claim() -> int:
    for first in range(FIRST, FIRST + BLOCKS * BLOCK_SIZE, BLOCK_SIZE):
        try:
            claim = socket.create_server(("127.0.0.1", first))
        except OSError:
            continue
        # Without an object, so that it lives until the process ends; no child inherits it.
        claim.detach()
        return first
    raise RuntimeError(f"all {BLOCKS} blocks of ports are claimed")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
