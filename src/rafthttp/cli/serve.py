"""`rafthttp serve`: what it takes, and what it refuses in a sentence."""

from __future__ import annotations

import ipaddress
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from rafthttp.cli.output import CommandFailedError, read_token
from rafthttp.cli.tls import CERT_HELP, KEY_HELP, Material, read_material
from rafthttp.kv.access import Network

_SERVICE_PATHS: Final = frozenset(
    {"/kv", "/sessions", "/status", "/healthz", "/leave", "/transfer", "/openapi.json"}
)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `serve` was asked to do, read and checked."""

    node_id: str
    listen: tuple[str, int]
    advertise: str
    data_dir: Path | None
    bootstrap: bool
    join: tuple[str, ...]
    path: str
    root_path: str
    token: str | None
    allow: tuple[Network, ...]
    insecure: bool
    tls: Material | None
    timeout: float
    carrier: str
    server_stabilization_time: float
    cleanup_dead_servers: bool
    dead_server_last_contact_threshold: float
    min_quorum: int
    hand_over: float
    snapshot_threshold: int
    snapshot_interval: float
    trailing_logs: int
    lease_reads: bool
    sessions: bool
    stop_with_stdin: bool

    @property
    def mutual_tls(self) -> bool:
        """Whether nobody gets in without a certificate of the authority."""
        return self.tls is not None and self.tls.cert is not None and self.tls.ca is not None

    @property
    def scheme(self) -> str:
        """Of the node's URLs."""
        return "http" if self.tls is None else "https"


def serve(
    node_id: Annotated[str, typer.Option("--id", help="Name of this node, unique for all time.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to serve.")],
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where others reach it. [default: --listen]"),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to keep it.")] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep nothing on disk.")] = False,
    bootstrap: Annotated[bool, typer.Option("--bootstrap", help="Begin a new cluster.")] = False,
    join: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="A member (HOST:PORT will do) to join through; repeat it."
        ),
    ] = None,
    path: Annotated[str, typer.Option(help="The members' endpoint, the same on all.")] = "/raft",
    root_path: Annotated[
        str, typer.Option(metavar="PREFIX", help="What a proxy in front takes off each path.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the shared token.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Who may connect; repeat it.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let everybody in who can connect.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help=CERT_HELP)] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help=KEY_HELP)] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Let in only who has a certificate of this authority."),
    ] = None,
    tls_at_proxy: Annotated[
        bool, typer.Option("--tls-at-proxy", help="Serve plain behind a proxy that ends TLS.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for a handshake, join or leave.")] = 10.0,
    carrier: Annotated[
        str, typer.Option(help="How to dial other nodes: raw, websocket, or auto (raw first).")
    ] = "auto",
    server_stabilization_time: Annotated[
        float, typer.Option(help="Seconds to be healthy for, before one that joins has a vote.")
    ] = 0.0,
    cleanup_dead_servers: Annotated[
        bool, typer.Option("--cleanup-dead-servers", help="Remove dead nodes; see the how-to.")
    ] = False,
    dead_server_last_contact_threshold: Annotated[
        float, typer.Option(metavar="SECONDS", help="Silence after which a node is dead.")
    ] = 86400.0,
    min_quorum: Annotated[int, typer.Option(help="Remove no voter where fewer would be left.")] = 3,
    lease_reads: Annotated[
        bool, typer.Option("--lease-reads", help="Read without a round trip; on all nodes or none.")
    ] = False,
    snapshot_threshold: Annotated[
        int, typer.Option(help="Entries since the last snapshot that make one due.")
    ] = 8192,
    snapshot_interval: Annotated[
        float, typer.Option(help="Seconds between looking whether one is due.")
    ] = 120.0,
    trailing_logs: Annotated[
        int, typer.Option(help="Entries kept behind a snapshot for nodes that lag.")
    ] = 10240,
    hand_over: Annotated[
        float, typer.Option(help="Most seconds for a leader to hand over before it stops.")
    ] = 0.4,
    sessions: Annotated[
        bool, typer.Option(help="Apply a write that is sent again only once; the same on all.")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    stop_with_stdin: Annotated[bool, typer.Option("--stop-with-stdin", hidden=True)] = False,
) -> None:
    """Run one node: the key-value API, /status, /healthz and the members' endpoint on one port.

    A restart needs neither --bootstrap nor --join; giving them again changes nothing.
    """
    if (data_dir is None) != in_memory:
        raise CommandFailedError("give one of --data-dir DIR and --in-memory")
    if bootstrap and join:
        raise CommandFailedError("--bootstrap begins a cluster, --join enters one: give only one")
    if not timeout > 0:
        raise CommandFailedError(f"--timeout is {timeout:g}; it must be above 0")
    if not 0 <= hand_over <= 60:
        raise CommandFailedError(f"--hand-over is {hand_over:g}; it must be from 0 to 60")
    if carrier not in ("auto", "raw", "websocket"):
        raise CommandFailedError(f"--carrier is {carrier!r}; it must be auto, raw or websocket")
    _check_path(path)
    host, port = parse_address(listen, "--listen")
    token = read_token(token_file)
    mutual_tls = tls_ca is not None
    if insecure and (token or allow or mutual_tls):
        raise CommandFailedError(
            "--insecure lets everybody in; --token-file, --allow and --tls-ca do not: give only one"
        )
    guarded = token is not None or bool(allow) or insecure or mutual_tls
    missing = _missing_for_others(listen, host, advertise, guarded=guarded)
    if missing:
        raise CommandFailedError(missing)
    options = ServeOptions(
        node_id=node_id,
        listen=(host, port),
        advertise=listen if advertise is None else _checked_advertise(advertise),
        data_dir=data_dir,
        bootstrap=bootstrap,
        join=tuple(join or ()),
        path=path,
        root_path=root_path.rstrip("/"),
        token=token,
        allow=tuple(_parse_network(text) for text in allow or ()),
        insecure=insecure,
        tls=_tls(tls_cert, tls_key, tls_ca, at_proxy=tls_at_proxy),
        timeout=timeout,
        carrier=carrier,
        server_stabilization_time=server_stabilization_time,
        cleanup_dead_servers=cleanup_dead_servers,
        dead_server_last_contact_threshold=dead_server_last_contact_threshold,
        min_quorum=min_quorum,
        hand_over=hand_over,
        snapshot_threshold=snapshot_threshold,
        snapshot_interval=snapshot_interval,
        trailing_logs=trailing_logs,
        lease_reads=lease_reads,
        sessions=sessions,
        stop_with_stdin=stop_with_stdin,
    )
    _log_to_stderr(node_id, verbose=verbose)
    from rafthttp.cli.server import run  # the whole server: loaded only where it runs

    run(options)


def _tls(
    cert: Path | None, key: Path | None, ca: Path | None, *, at_proxy: bool
) -> Material | None:
    if at_proxy:
        if cert is not None or key is not None:
            raise CommandFailedError("--tls-at-proxy serves without TLS: the proxy has --tls-cert")
        return Material(None, None, ca)  # for dialling alone
    material = read_material(cert, key, ca)
    if material is not None and material.cert is None:
        raise CommandFailedError("--tls-ca needs --tls-cert and --tls-key too")
    return material


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; `option` is what to call it.

    Raises:
        CommandFailedError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535:
        raise CommandFailedError(f"{option} is {text!r}; it must be HOST:PORT")
    return bare, int(port)


def _check_path(path: str) -> None:
    """The members' endpoint may not be where the service's own routes are."""
    taken = "/" + path.strip("/").partition("/")[0]
    if taken in _SERVICE_PATHS:
        raise CommandFailedError(f"--path {path}: {taken} is the key-value service's own")


def _missing_for_others(
    listen: str, host: str, advertise: str | None, *, guarded: bool
) -> str | None:
    """What is not said, and has to be where other machines can connect; in one sentence."""
    wants: list[str] = []
    if advertise is None and _is_unspecified(host):
        wants.append(
            f"--listen {listen} names no host: give --advertise HOST:PORT, where the other"
            " nodes reach this one"
        )
    if not guarded and not _is_loopback(host):
        wants.append(
            f"{listen} can be reached from other machines: give --token-file, --allow"
            " or --tls-ca, or --insecure to let everybody in"
        )
    return "; and ".join(wants) or None


def _checked_advertise(advertise: str) -> str:
    host, _ = parse_address(advertise, "--advertise")
    if _is_unspecified(host):
        raise CommandFailedError(
            f"--advertise {advertise} names no host: give the one at which the other nodes"
            " reach this one"
        )
    return advertise


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise CommandFailedError(f"--allow {text!r} is no network: {error}") from None


def _log_to_stderr(node_id: str, *, verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"%(asctime)s {node_id} %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("rafthttp").setLevel(logging.DEBUG if verbose else logging.INFO)
