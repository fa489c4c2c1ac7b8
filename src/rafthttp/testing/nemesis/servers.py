"""Real servers that can be killed, stopped, parted and troubled: all `serve`, or a mixed cluster.

Knows how they are started where a `Network` has them; which faults come when is `faults`'.
"""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.nemesis.network import Network
from rafthttp.testing.nemesis.troubled import HEALTHY, Trouble, tell, troubled
from rafthttp.testing.processes import ServeCluster, ServeProcess

# Snapshots are taken, sent and restored all the time, and logs compacted behind them.
_SNAPSHOTS: Final = {"snapshot_threshold": 300, "snapshot_interval": 1.0, "trailing_logs": 100}


class Server(ABC):
    """One server of a cluster, of either kind.

    Attributes:
        number: its place in the network.
        id: its name.
        address: HOST:PORT where clients reach it.
        python: whether it can be troubled from inside.
    """

    def __init__(self, number: int, server_id: str, address: str, trouble: Path | None) -> None:
        self.number: Final = number
        self.id: Final = server_id
        self.address: Final = address
        self.python: Final = trouble is not None
        self._file = trouble
        self._trouble = HEALTHY

    @property
    @abstractmethod
    def process(self) -> subprocess.Popen[bytes] | None:
        """Its process, if it was ever started."""

    @abstractmethod
    def start(self) -> None:
        """Start it again."""

    @abstractmethod
    def leads(self) -> bool:
        """Whether it answers that it leads."""

    @property
    def running(self) -> bool:
        """Whether its process lives, stopped or not."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def send(self, number: signal.Signals) -> None:
        """A signal, if it runs."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    @property
    def trouble(self) -> Trouble:
        """What is wrong with it from inside."""
        return self._trouble

    @trouble.setter
    def trouble(self, trouble: Trouble) -> None:
        assert self._file is not None, f"{self.id} cannot be troubled"
        self._trouble = trouble
        tell(self._file, trouble)


class _Serve(Server):
    def __init__(self, number: int, node: ServeProcess, cluster: ServeCluster, file: Path) -> None:
        super().__init__(number, node.id, node.address, file)
        self._node, self._cluster = node, cluster

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self._node.process

    def start(self) -> None:
        self._cluster.start(self._node)

    def leads(self) -> bool:
        status = self._cluster.status(self._node) if self.running else None
        return status is not None and status["state"] == "leader"


class _Mixed(Server):
    def __init__(self, number: int, member: Member, file: Path | None) -> None:
        super().__init__(number, member.id, member.listening, file)
        self._member = member

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self._member.process

    def start(self) -> None:
        self._member.start()

    def leads(self) -> bool:
        stats = self._member.stats() if self.running else None
        return stats is not None and stats["state"] == "Leader"


class ServeServers(ServeCluster):
    """`size` `serve` processes in a network."""

    def __init__(
        self, directory: Path, network: Network, size: int, options: Sequence[str] = ()
    ) -> None:
        often = [f"--{name.replace('_', '-')}={value}" for name, value in _SNAPSHOTS.items()]
        super().__init__(directory, size, ["--insecure", *often, *options])
        self.network: Final = network
        self.servers: list[Server] = []
        for number, node in enumerate(self.nodes):
            node.address = network.listen(number)
            self.servers.append(_Serve(number, node, self, self._trouble_file(node)))

    def _trouble_file(self, node: ServeProcess) -> Path:
        return self.directory / f"{node.id}.trouble"

    def start(self, node: ServeProcess, *entry: str) -> None:
        """As `ServeCluster`, in the network and with its troubles."""
        number = self.nodes.index(node)
        line = [*self.network.wrapper(number), *troubled(self._trouble_file(node), "serve")]
        line += ["--id", node.id, "--listen", node.address, "--data-dir", str(node.data_dir)]
        line += ["--advertise", self.network.advertise(number)]
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(  # noqa: S603 - our own command
                [*line, *self.options, *node.extra, *entry],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_healed(self, timeout: float) -> None:
        """Wait until all servers follow one leader."""
        self.wait_until_whole(timeout)


class MixedServers(MixedCluster):
    """Members in Go and in Python in a network."""

    def __init__(self, directory: Path, network: Network, shape: str) -> None:
        super().__init__(directory, shape, options=_SNAPSHOTS)
        self.servers: list[Server] = []
        for number, member in enumerate(self.members):
            member.address = network.advertise(number)
            member.options["listen"] = network.listen(number)
            file = directory / f"{member.id}.trouble" if member.language == "python" else None
            program = member.usual_program() if file is None else troubled(file, "member")
            member.program = [*network.wrapper(number), *program]
            self.servers.append(_Mixed(number, member, file))

    def wait_healed(self, timeout: float) -> None:
        """Wait until all servers are level under one leader, and alike."""
        self.wait_whole(timeout)
        self.wait_level(timeout=timeout)
