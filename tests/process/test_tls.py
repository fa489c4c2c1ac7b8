"""`rafthttp serve` with mutual TLS, as a cluster of real processes."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trustme
from cryptography import x509

from rafthttp.testing.processes import (
    ServeCluster,
    ServeProcess,
    eventually,
    run_cli,
    serve_cluster,
)

pytestmark = pytest.mark.process


class Files:
    """One authority, and certificates of it as files."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.directory = directory
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.issue()

    def issue(self) -> None:
        """A new certificate, in the same files."""
        made = self.authority.issue_cert("127.0.0.1", common_name="member")
        made.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))

    @property
    def serial(self) -> int:
        """Of the certificate that is in the files now."""
        return x509.load_pem_x509_certificate(self.cert.read_bytes()).serial_number

    @property
    def options(self) -> list[str]:
        return [
            *("--tls-cert", str(self.cert)),
            *("--tls-key", str(self.key)),
            *("--tls-ca", str(self.ca)),
        ]

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context


class TLSCluster(ServeCluster):
    """Nodes that speak nothing but TLS."""

    def __init__(self, directory: Path, files: Files) -> None:
        super().__init__(directory, 3, files.options)
        self.http.close()
        self.http = httpx.Client(timeout=10.0, trust_env=False, verify=files.context())

    def status(self, node: ServeProcess) -> dict[str, Any] | None:
        try:
            answer = self.http.get(f"https://{node.address}/status", timeout=2.0)
            return dict(answer.json()) if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    def start_all(self) -> ServeProcess:
        for number, node in enumerate(self.nodes):
            entry = ["--join", f"https://{self.nodes[number - 1].address}"]
            self.start(node, *(entry if number else ["--bootstrap"]))
        return self.wait_until_whole()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def cluster(tmp_path: Path, files: Files) -> Generator[TLSCluster]:
    cluster = TLSCluster(tmp_path / "cluster", files)
    try:
        yield cluster
    finally:
        cluster.close()


def serial(node: ServeProcess, files: Files) -> str:
    host, _, port = node.address.partition(":")
    with (
        socket.create_connection((host, int(port)), 5.0) as plain,
        files.context().wrap_socket(plain, server_hostname=host) as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def test_a_cluster_with_mutual_tls_and_certificates_that_change(
    cluster: TLSCluster, files: Files
) -> None:
    leader = cluster.start_all()
    follower = next(node for node in cluster.nodes if node is not leader)
    url = f"https://{follower.address}"
    put = run_cli("kv", "put", "k", "v1", "--url", url, *files.options)
    assert put.returncode == 0, put.stderr
    shown = run_cli("status", url, *files.options)
    assert shown.returncode == 0, shown.stderr
    assert leader.id in shown.stdout

    stranger = run_cli("status", url, "--tls-ca", str(files.ca), "--timeout", "1")
    assert stranger.returncode == 1
    # What the kernel delivers first, the alert or the reset, differs from run to run.
    assert "certificate" in stranger.stderr
    distrustful = run_cli("status", url, "--timeout", "1", *files.options[:4])
    assert distrustful.returncode == 1
    assert "its TLS certificate is not accepted: " in distrustful.stderr

    before = cluster.status(leader)
    assert before is not None
    old = {node.id: serial(node, files) for node in cluster.nodes}
    files.issue()
    for node in cluster.nodes:
        node.send(signal.SIGHUP)
    eventually(
        lambda: all(serial(node, files) != old[node.id] for node in cluster.nodes),
        "new connections are shown the new certificate",
    )
    get = run_cli("kv", "get", "k", "--url", url, *files.options)
    assert (get.returncode, get.stdout) == (0, "v1")
    after = cluster.status(leader)
    assert after is not None
    assert after["term"] == before["term"], "the streams live on"

    leader.kill()
    assert cluster.wait_until_whole() is not leader
    files.key.write_text("no key")
    follower.send(signal.SIGHUP)
    eventually(lambda: "the old ones stay in use" in follower.output(), "the refusal is logged")
    assert cluster.status(follower) is not None
    assert follower.terminate() < 5.0
    assert "Traceback" not in cluster.logs()


class Door:
    """A TLS server that writes down whose certificate it was shown, and says no more."""

    def __init__(self, files: Files) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
        context.verify_mode = ssl.CERT_REQUIRED
        self.serials: list[int] = []
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    @property
    def url(self) -> str:
        return "https://127.0.0.1:{1}".format(*self._listening.getsockname())

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return  # shut down
            with suppress(OSError), plain:
                plain.settimeout(5.0)
                with self._context.wrap_socket(plain, server_side=True) as tls:
                    certificate = tls.getpeercert()
                    assert certificate is not None
                    self.serials.append(int(str(certificate["serialNumber"]), 16))


def test_a_node_dials_with_the_new_certificate_after_sighup(tmp_path: Path, files: Files) -> None:
    with Door(files) as door, serve_cluster(tmp_path / "cluster", 1, files.options) as cluster:
        (node,) = cluster.nodes
        cluster.start(node, "--join", door.url)  # it goes on asking
        old = files.serial
        eventually(lambda: len(door.serials) >= 2, "the node dials, and dials again")
        assert set(door.serials) == {old}
        files.issue()
        node.send(signal.SIGHUP)
        eventually(lambda: door.serials[-1] != old, "it shows another certificate")
        assert door.serials[-1] == files.serial
        assert node.running


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tls-cert", "{cert}"], "--tls-cert and --tls-key go together"),
        (["--tls-at-proxy", "--tls-key", "{key}"], "--tls-at-proxy serves without TLS"),
        (["--tls-ca", "{ca}"], "--tls-ca needs --tls-cert and --tls-key too"),
        (["--tls-cert", "{ca}", "--tls-key", "{key}"], "cannot use the certificate"),
        (["--tls-cert", "{cert}", "--tls-key", "{ca}x"], "no such file"),
        (["--tls-cert", "{cert}", "--tls-key", "{key}", "--tls-ca", "{key}"], "the authority"),
    ],
)
def test_files_that_cannot_be_used(files: Files, options: list[str], sentence: str) -> None:
    filled = [text.format(cert=files.cert, key=files.key, ca=files.ca) for text in options]
    node = ["serve", "--id", "n1", "--listen", "127.0.0.1:1", "--in-memory", "--bootstrap"]
    result = run_cli(*node, *filled)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_tls_without_an_authority_is_no_access_control(files: Files) -> None:
    node = ["serve", "--id", "n1", "--listen", "0.0.0.0:1", "--advertise", "127.0.0.1:1"]
    result = run_cli(*node, "--in-memory", "--bootstrap", *files.options[:4])
    assert result.returncode == 1
    assert "can be reached from other machines" in result.stderr
