"""One node of the key-value service on one port, until a signal.

Knows sockets, signals and uvicorn; what it was asked to do is checked already.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import uvicorn

from rafthttp import (
    Authorize,
    AutopilotConfig,
    Config,
    Node,
    ServerID,
    State,
    allow_cidrs,
    allow_everybody,
    bearer_token,
    client_certificate,
    dial_tls,
    raft_protocol,
    require_all,
    token_headers,
)
from rafthttp.cli.output import CommandFailedError, note, out
from rafthttp.cli.serve import ServeOptions
from rafthttp.cli.tls import Material
from rafthttp.kv.app import create_app
from rafthttp.kv.fsm import KVStateMachine

_log: Final = logging.getLogger("rafthttp.serve")

# Before a stop a leader hands over (`--hand-over`), while requests are still taken.
# Requests under way at a stop may end within the first; then the node stops, which ends those that
# wait for a quorum. What is left at the second is cut off. All together stays below two seconds.
_NODE_GRACE_SECONDS: Final = 0.5
_GRACE_SECONDS: Final = 1
_FAILURE_POLL_SECONDS: Final = 0.5
# uvicorn's default; a burst of clients larger than this retries its connect.
_BACKLOG: Final = 2048
# Objects that may be garbage before the collector looks. The default of 700 (2000) is less than one
# request in 30 that is under way takes.
_YOUNG_OBJECTS_MAX: Final = 50_000


def run(options: ServeOptions) -> None:
    """Serve until a signal comes, the node has left, or its disk fails.

    Raises:
        CommandFailedError: it cannot begin, or could not go on.
        RaftHttpError: likewise.
    """
    with _loop_runner() as runner:
        runner.run(_serve(options))


async def _serve(options: ServeOptions) -> None:
    listener = _bind(options.listen)
    try:
        tls = options.tls
        dialling = None if tls is None else tls.client_context()
        serving = None if tls is None or tls.cert is None else tls.server_context()
        if tls is not None and dialling is not None and serving is not None:
            _reload_on_hangup(tls, dialling, serving)
        fsm = KVStateMachine()
        node = Node(
            options.node_id,
            options.advertise,
            fsm=fsm,
            data_dir=options.data_dir,
            bootstrap=options.bootstrap,
            join=options.join,
            path=options.root_path + options.path,  # as the other members ask the proxy for it
            authorize=_authorize(options),
            headers=None if options.token is None else token_headers(options.token),
            dial=None if dialling is None else dial_tls(dialling),
            scheme=options.scheme,
            timeout=options.timeout,
            carrier=options.carrier,
            config=_config(options),
            autopilot=AutopilotConfig(
                server_stabilization_time=options.server_stabilization_time,
                cleanup_dead_servers=options.cleanup_dead_servers,
                dead_server_last_contact_threshold=options.dead_server_last_contact_threshold,
                min_quorum=options.min_quorum,
            ),
            sessions=options.sessions,
        )
        await node.start()
        try:
            collect_rarely()
            _check_has_a_cluster(node, options)
            await _serve_node(node, fsm, listener, options, serving)
        finally:
            await node.stop(hand_over=0)  # that was done while requests were still taken
    finally:
        listener.close()


def _config(options: ServeOptions) -> Config:
    leases = options.lease_reads
    # A follower that campaigns early breaks the promise that a lease rests on.
    return Config(
        ServerID(options.node_id),
        lease_reads=leases,
        early_campaign=not leases,
        snapshot_threshold=options.snapshot_threshold,
        snapshot_interval=options.snapshot_interval,
        trailing_logs=options.trailing_logs,
    )


async def _serve_node(
    node: Node,
    fsm: KVStateMachine,
    listener: socket.socket,
    options: ServeOptions,
    tls: ssl.SSLContext | None,
) -> None:
    left = False

    def on_leave() -> None:
        nonlocal left
        left = True
        server.stop()

    app = create_app(
        node,
        fsm,
        token=options.token,
        allow=options.allow,
        on_leave=on_leave,
        manage_node=False,
        path=options.path,
    )
    config = uvicorn.Config(
        app,
        http=raft_protocol(),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=options.root_path,
        proxy_headers=False,  # the socket's peer is who is let in, not who a header names
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    config.load()
    config.ssl = tls  # the context itself, to load new certificates into it
    server = _Server(config)
    _stop_on_signals(server)
    if options.stop_with_stdin:
        _stop_with_stdin(server)
    watches = [
        asyncio.create_task(_stop_on_failure(node, server)),
        asyncio.create_task(_stop_in_order(node, server, options.hand_over)),
    ]
    where = "in memory" if options.data_dir is None else f"in {options.data_dir}"
    out(f"{node.id} serves {options.scheme}://{node.address}, data {where}")
    if options.data_dir is None:
        note(
            f"rafthttp: warning: {node.id} keeps nothing on disk: restarted under the same id it"
            " forgets its votes, which can lose acknowledged writes"
        )
    try:
        await server.serve(sockets=[listener])
        failure = node.raft.failure
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
    if failure is not None:
        raise CommandFailedError(f"{node.id} takes no part any more: {failure}")
    out(f"{node.id} has left its cluster" if left else f"{node.id} stopped")


class _Server(uvicorn.Server):
    """Stops by `stop`, not by uvicorn's own signal handling, which would end the process by it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin to stop (`_stop_in_order`); asked twice, at once."""
        self.should_exit = self.force_exit = self.stopping.is_set()
        self.stopping.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _stop_in_order(node: Node, server: _Server, hand_over: float) -> None:
    """Hand over, serve no longer, and let no request hold that up: it may wait for other nodes."""
    await server.stopping.wait()
    try:
        if hand_over > 0:
            await node.raft.hand_over(timeout=hand_over, wait_heard=True)
    finally:
        server.should_exit = True
    await asyncio.sleep(_NODE_GRACE_SECONDS)
    await node.raft.shutdown()


def _stop_on_signals(server: _Server) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)


def _reload_on_hangup(tls: Material, *contexts: ssl.SSLContext) -> None:
    """SIGHUP reads certificate and key again; streams that are open go on as they are."""

    def reload() -> None:
        try:
            tls.load_into(*contexts)
        except CommandFailedError as error:
            _log.warning("%s; the old ones stay in use", error)
        else:
            _log.info("loaded the certificate %s again", tls.cert)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _stop_with_stdin(server: _Server) -> None:
    """Stop when the other end of stdin is gone: a parent that was killed leaves no orphans."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            server.stop()

    loop.add_reader(0, readable)


async def _stop_on_failure(node: Node, server: _Server) -> None:
    """A node whose disk failed takes no part until it is restarted: end, and say why."""
    # Where there was no leader before, no change of the leader tells of it.
    while node.raft.failure is None and node.raft.state is not State.SHUTDOWN:  # noqa: ASYNC110 - no event does
        await asyncio.sleep(_FAILURE_POLL_SECONDS)
    if not server.stopping.is_set():
        server.stop()


def _check_has_a_cluster(node: Node, options: ServeOptions) -> None:
    if not node.raft.get_configuration().configuration.servers and not node.joining:
        raise CommandFailedError(
            f"{node.id} has no state yet: give --bootstrap to begin a cluster, or --join URL"
        )


def _authorize(options: ServeOptions) -> Authorize | None:
    rules: list[Authorize] = []
    if options.token is not None:
        rules.append(bearer_token(options.token))
    if options.allow:
        rules.append(allow_cidrs([str(network) for network in options.allow]))
    if options.mutual_tls:
        rules.append(client_certificate)
    if rules:
        return require_all(*rules)
    return allow_everybody if options.insecure else None


def _bind(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        family, _, _, _, resolved = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server((resolved[0], port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise CommandFailedError(f"cannot listen on {_joined(host, port)}: {reason}") from None
    listener.setblocking(False)
    return listener


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def collect_rarely() -> None:
    """Keep the cyclic garbage collector out of the way of requests; this process is all ours.

    What is there by now, a restored state included, stays as long as the process: the collector
    need not walk it each time (30 to 50 ms of standstill, several times a second under load).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS_MAX, *gc.get_threshold()[1:])


def _loop_runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
