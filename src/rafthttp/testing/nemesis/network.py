"""A network of one's own for real processes: each in its namespace, all on one bridge; Linux, root.

Knows `ip`. A cut link is silent, as a cut cable is: the sender's neighbour entry gets an address
that nobody has, so packets go out and arrive nowhere. Each direction of each link is cut by itself.
`relays` does without privileges.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import count
from typing import Final, Protocol

NOBODY: Final = "02:00:00:00:00:00"
_numbers = count()


class Network(Protocol):
    """Where servers 0, 1, … live, and how they are parted."""

    can_cut: bool
    """Whether links can be cut at all."""

    def listen(self, number: int) -> str:
        """Where a server listens, HOST:PORT; its clients come here, and are never cut off."""
        ...

    def advertise(self, number: int) -> str:
        """By which address the others know it."""
        ...

    def wrapper(self, number: int) -> list[str]:
        """What its command line begins with."""
        ...

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Nothing more goes from the first to the second of each pair."""
        ...

    def heal(self) -> None:
        """All links carry again."""
        ...

    def close(self) -> None:
        """Take it down. Idempotent."""
        ...


class Namespaces:
    """`size` network namespaces on a bridge, which has this process's own end.

    Raises:
        OSError: they cannot be made; see `missing_namespaces`.
    """

    can_cut = True

    def __init__(self, size: int, port: int = 8100) -> None:
        pid = os.getpid()
        self._size, self._port = size, port
        # A bridge for each process that tests, in a private range; twice the same pid is no worry.
        self._prefix = f"10.{64 + (pid >> 8) % 64}.{pid % 256}"
        # Names are not used again: what is taken down is gone a moment later.
        self._bridge = f"rh{pid % 10_000_000}x{next(_numbers) % 100}"
        self._names = [f"{self._bridge}-{number}" for number in range(size)]
        self.close()
        try:
            self._build()
        except OSError:
            self.close()
            raise

    def _build(self) -> None:
        bridge = self._bridge
        lines = [
            f"link add {bridge} type bridge",
            f"addr add {self._prefix}.254/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for number, name in enumerate(self._names):
            lines += [
                f"netns add {name}",
                f"link add {bridge}v{number} type veth peer name eth0 netns {name}",
                f"link set {bridge}v{number} master {bridge} up",
            ]
        _ip(lines)
        for number, name in enumerate(self._names):
            _ip(
                [
                    f"link set eth0 address {self._mac(number)}",
                    f"addr add {self._host(number)}/24 dev eth0",
                    "link set lo up",
                    "link set eth0 up",
                ],
                name,
            )
        self.heal()

    def _host(self, number: int) -> str:
        return f"{self._prefix}.{number + 1}"

    def _mac(self, number: int) -> str:
        return f"02:00:00:00:00:{number + 1:02x}"

    def listen(self, number: int) -> str:
        """As `Network`."""
        return f"{self._host(number)}:{self._port}"

    def advertise(self, number: int) -> str:
        """As `Network`."""
        return self.listen(number)

    def wrapper(self, number: int) -> list[str]:
        """As `Network`: the command replaces `ip`, so it has the process id that was started."""
        return [_program(), "netns", "exec", self._names[number]]

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """As `Network`."""
        for sender, receiver in links:
            self._link(sender, [(receiver, NOBODY)])

    def heal(self) -> None:
        """As `Network`."""
        for sender in range(self._size):
            others = [number for number in range(self._size) if number != sender]
            self._link(sender, [(number, self._mac(number)) for number in others])

    def _link(self, sender: int, neighbours: Iterable[tuple[int, str]]) -> None:
        lines = [
            f"neigh replace {self._host(number)} lladdr {mac} dev eth0 nud permanent"
            for number, mac in neighbours
        ]
        _ip(lines, self._names[sender])

    def close(self) -> None:
        """As `Network`."""
        lines = [f"link del {self._bridge}v{number}" for number in range(self._size)]
        lines += [f"link del {self._bridge}", *(f"netns del {name}" for name in self._names)]
        for line in lines:
            with suppress(OSError):
                _ip([line])


@cache
def missing_namespaces() -> str | None:
    """Why there can be no network namespaces here, or None."""
    if not sys.platform.startswith("linux") or shutil.which("ip", path=_path()) is None:
        return "needs Linux with iproute2"
    try:
        Namespaces(1).close()
    except OSError as error:
        return f"needs the right to make network namespaces: {error}"
    return None


def every_link(one: Iterable[int], other: Iterable[int]) -> list[tuple[int, int]]:
    """Both directions of all links between two groups."""
    others = list(other)
    return [pair for a in one for b in others for pair in ((a, b), (b, a))]


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _program() -> str:
    found = shutil.which("ip", path=_path())
    if found is None:
        raise OSError("ip is not installed")
    return found


def _ip(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run commands of `ip`, all at once.

    Raises:
        OSError: one failed.
    """
    inside = [] if namespace is None else ["-n", namespace]
    done = subprocess.run(  # noqa: S603 - an absolute path and our own words
        [_program(), *inside, "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(done.stderr.strip() or f"ip ended with {done.returncode}")
