"""Real nginx and haproxy in front of real `rafthttp serve` processes.

Knows the two proxies' command lines and a node's; the sections they run are templates of the
caller, with `@NAME@` where a value goes. Everything lives in a directory of the test.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rafthttp.testing.ports import free_ports
from rafthttp.testing.processes import (
    DEADLINE_SECONDS,
    ServeCluster,
    ServeProcess,
    eventually,
)

Kind = Literal["nginx", "haproxy"]

# How long a worker that was replaced keeps its streams; they are cut at the end of it.
_DRAIN: Final = "100ms"
_PLACEHOLDER: Final = re.compile(r"@([A-Z]+)@")

_NGINX_CONF: Final = """
{user}
worker_processes 1;
worker_shutdown_timeout {drain};
pid {directory}/nginx.pid;
error_log {directory}/proxy.log notice;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/conf.d/*.conf;
}}
"""
_HAPROXY_CFG: Final = "global\n    hard-stop-after {drain}\n    nbthread 1\n    maxconn 512\n"


def missing_proxies() -> list[str]:
    """Which of the two are not installed."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    return [name for name in ("nginx", "haproxy") if shutil.which(name, path=path) is None]


def _program(name: str) -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is not installed"
    return found


def render(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `@NAME@` replaced; a name without a value is a KeyError."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One member behind the proxy: `listen` is the proxy's address for it, `node` its own."""

    id: str
    listen: str
    node: str


class Proxy:
    """One nginx or haproxy in front of several members.

    Args:
        kind: which.
        directory: for its files; made here.
        template: what stands in its configuration for each member: `ID`, `LISTEN`, `NODE` and
            those of `values`.
        members: whom it is in front of.
        values: further placeholders.
    """

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        template: str,
        members: Sequence[Upstream],
        values: Mapping[str, str],
    ) -> None:
        self.kind: Final = kind
        self.members = tuple(members)
        self.log = directory / "proxy.log"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        conf_d = directory / "conf.d"
        conf_d.mkdir(parents=True)
        for member in members:
            own = {"ID": member.id, "LISTEN": member.listen, "NODE": member.node, **values}
            (conf_d / f"{member.id}.conf").write_text(render(template, own))
        # Workers of a root's nginx would be another user's, who cannot enter a test's directory.
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(
            _NGINX_CONF.format(user=user, drain=_DRAIN, directory=directory)
        )
        (directory / "haproxy.cfg").write_text(_HAPROXY_CFG.format(drain=_DRAIN))

    def start(self) -> None:
        """Start it, and wait until it listens."""
        directory = str(self._directory)
        if self.kind == "nginx":
            arguments = [_program("nginx"), "-p", directory, "-e", str(self.log)]
            arguments += ["-c", f"{directory}/nginx.conf", "-g", "daemon off;"]
        else:
            arguments = [_program("haproxy"), "-W", "-f", f"{directory}/haproxy.cfg"]
            arguments += ["-f", f"{directory}/conf.d"]
            for section in (self._directory / "conf.d").glob("*.conf"):
                section.rename(section.with_suffix(".cfg"))  # it reads no other suffix
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - an absolute path and our own files
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(self._listens, f"{self.kind} listens: {self._last_words()}")

    def reload(self) -> None:
        """Reload as an administrator does; returns once the old worker and its streams are gone."""
        assert self._process is not None, "started before"
        before = self._workers()
        self._process.send_signal(signal.SIGHUP if self.kind == "nginx" else signal.SIGUSR2)
        eventually(
            lambda: (now := self._workers()) and not now & before and self._listens(),
            f"{self.kind} has replaced its workers: {self._last_words()}",
        )

    def close(self) -> None:
        """End it at once. Idempotent."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()  # at once, for both of them
        try:
            self._process.wait(DEADLINE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def _workers(self) -> set[int]:
        assert self._process is not None, "started before"
        pid = self._process.pid
        return {
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        }

    def _listens(self) -> bool:
        assert self._process is not None, "started before"
        code = self._process.poll()
        assert code is None, f"{self.kind} ended with {code}: {self._last_words()}"
        for member in self.members:
            host, _, port = member.listen.rpartition(":")
            try:
                socket.create_connection((host, int(port)), 1.0).close()
            except OSError:
                return False
        return bool(self._workers())

    def _last_words(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:] if self.log.exists() else ""


class ProxiedCluster(ServeCluster):
    """Nodes that reach each other, and that clients reach, only through a proxy.

    Args:
        directory: for data, logs and the token.
        scheme: what the proxy speaks.
        token: shared by all; a proxy's headers name others than the loopback peer.
        size: how many nodes.
        options: further options of `serve`, for every node.
        prefix: of every path at the proxy.
    """

    def __init__(
        self,
        directory: Path,
        *,
        scheme: Literal["http", "https"] = "http",
        token: str = "behind-the-proxy",  # noqa: S107 - of a cluster that lives for one test
        size: int = 3,
        options: Sequence[str] = (),
        prefix: str = "",
    ) -> None:
        super().__init__(directory, size, (), {"Authorization": f"Bearer {token}"})
        self.token = token
        self.scheme = scheme
        self.prefix = prefix
        token_file = directory / "token"
        token_file.write_text(token)
        self.options = ["--token-file", str(token_file), "--verbose", *options]
        self.upstreams = [
            Upstream(node.id, f"127.0.0.1:{port}", node.address)
            for node, port in zip(self.nodes, free_ports(size), strict=True)
        ]

    def public(self, node: ServeProcess) -> str:
        """The node's address in the cluster, which is the proxy's."""
        return next(member.listen for member in self.upstreams if member.id == node.id)

    def public_url(self, node: ServeProcess) -> str:
        """Where a client reaches the node."""
        return f"{self.scheme}://{self.public(node)}{self.prefix}"

    def start(self, node: ServeProcess, *entry: str) -> None:
        """As `ServeCluster.start`; the node names itself by the proxy's address."""
        super().start(node, "--advertise", self.public(node), *entry)

    def start_all(self) -> ServeProcess:
        """Begin the cluster through the proxy; returns the leader once all are members."""
        for number, node in enumerate(self.nodes):
            if number == 0:
                self.start(node, "--bootstrap")
            else:
                before = self.nodes[number - 1]
                self.start(node, "--join", f"{self.scheme}://{self.public(before)}")
        return self.wait_until_whole()

    def terms(self) -> set[int]:
        """The terms of all nodes: one, as long as nobody campaigns."""
        return {self._term(node) for node in self.nodes}

    def _term(self, node: ServeProcess) -> int:
        status = eventually(lambda: self.status(node), f"{node.id} answers")
        return int(status["term"])

    def streams_accepted(self) -> int:
        """Streams that all nodes together have taken so far."""
        return sum(node.output().count("accepted a stream from") for node in self.nodes)
