"""`rafthttp serve`: what it takes, and what it refuses in a sentence."""

from __future__ import annotations

import ipaddress
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rafthttp.cli.output import CommandFailedError, read_token
from rafthttp.cli.tls import CERT_HELP, KEY_HELP, Material, read_material
from rafthttp.kv.access import Network


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
        list[str] | None, typer.Option(metavar="URL", help="A member to join through; repeat it.")
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
    if carrier not in ("auto", "raw", "websocket"):
        raise CommandFailedError(f"--carrier is {carrier!r}; it must be auto, raw or websocket")
    host, port = _parse_address(listen, "--listen")
    options = ServeOptions(
        node_id=node_id,
        listen=(host, port),
        advertise=_advertised(listen, host, advertise),
        data_dir=data_dir,
        bootstrap=bootstrap,
        join=tuple(join or ()),
        path=path,
        root_path=root_path.rstrip("/"),
        token=read_token(token_file),
        allow=tuple(_parse_network(text) for text in allow or ()),
        insecure=insecure,
        tls=_tls(tls_cert, tls_key, tls_ca, at_proxy=tls_at_proxy),
        timeout=timeout,
        carrier=carrier,
        stop_with_stdin=stop_with_stdin,
    )
    guarded = options.token is not None or options.allow or options.insecure or options.mutual_tls
    if not guarded and not _is_loopback(host):
        raise CommandFailedError(
            f"{listen} can be reached from other machines: give --token-file, --allow"
            " or --tls-ca, or --insecure to let everybody in"
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


def _parse_address(text: str, option: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535:
        raise CommandFailedError(f"{option} is {text!r}; it must be HOST:PORT")
    return bare, int(port)


def _advertised(listen: str, host: str, advertise: str | None) -> str:
    if advertise is not None:
        _parse_address(advertise, "--advertise")
        return advertise
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            raise CommandFailedError(
                f"--listen {listen} names no host: give --advertise HOST:PORT, where the other"
                " nodes reach this one"
            )
    return listen


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
