"""`Node`: one member of a cluster inside an application, from start to stop.

Knows how the parts fit together (stores, handler, layer, transport, server, membership); none of
what they do. Everything here can be done by hand with the same parts.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    MutableMapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

from rafthttp import forwarding
from rafthttp.autopilot import Autopilot, AutopilotConfig
from rafthttp.commands import Commands
from rafthttp.forwarding import ForwardFormatError
from rafthttp.health import ClusterHealth
from rafthttp.http.access import Authorize, HeadersFactory, bearer_token, token_headers
from rafthttp.http.asgi import serve, serve_lifespan
from rafthttp.http.carriers import CARRIERS
from rafthttp.http.dial import Dial, dial_tcp
from rafthttp.http.grammar import parse_address, parse_id, parse_path
from rafthttp.http.handler import NOTHING_DONE, ForwardRequest, ForwardResponse, Handler
from rafthttp.http.layer import Layer
from rafthttp.http.membership import handle_change_requests
from rafthttp.http.membership_client import Changed
from rafthttp.http.messages import Request, Response, text_response
from rafthttp.joining import CLUSTER_ID, Membership, join_target
from rafthttp.leaderward import Leaderward
from rafthttp.raft.bootstrap import bootstrap_cluster, has_existing_state
from rafthttp.raft.config import Config
from rafthttp.raft.errors import (
    ConfigError,
    DataDirectoryError,
    ShutdownError,
)
from rafthttp.raft.fsm import FSM, check_fsm
from rafthttp.raft.raft import Raft
from rafthttp.raft.storage.memory import MemorySnapshotStore, MemoryStore
from rafthttp.raft.storage.protocols import SnapshotStore
from rafthttp.raft.storage.snapshot_files import FileSnapshotStore
from rafthttp.raft.storage.sqlite import SqliteStore
from rafthttp.raft.transport.network import NetworkTransport
from rafthttp.raft.transport.protocols import ServerAddressProvider
from rafthttp.raft.types import (
    Configuration,
    Leader,
    Server,
    ServerAddress,
    ServerID,
)
from rafthttp.sessions.fsm import SessionFSM

_log = logging.getLogger("rafthttp.node")

HAND_OVER_SECONDS: Final = 1.0
"""How long a stop may wait for another leader: the default election timeout. It takes milliseconds
where the others are well."""

SNAPSHOTS: Final = "snapshots"
"""Directory of the snapshots, in the data directory."""

# The membership task ends with the server; this bound only keeps a defect from hanging `stop`.
_FINISH_WAIT: Final = 5.0
# Room for the envelope of a forwarded entry, and for a batch of small ones.
_FORWARD_ROOM_BYTES: Final = 2 * forwarding.BATCH_SIZE_BYTES_MAX

_Scope: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Node(Commands):
    """One member of a cluster on an HTTP port that an application serves.

    Args:
        node_id: name of this member, unique in its cluster for all time.
        address: `HOST:PORT` at which the other members reach the application's port.
        fsm: the application's state machine.
        data_dir: where log, term and vote are kept; None keeps them in memory (a voter that
            forgets them at a restart can break the cluster's promises).
        bootstrap: begin a new cluster with this member alone, unless there is state already.
        join: URLs of members (or `HOST:PORT`) to ask to be added, in the background, once this
            node's port serves. For a member of long standing it changes nothing.
        path: the endpoint's path, the same on every member.
        token: shared secret of the members.
        authorize: who may use the endpoint, instead of what `token` implies. Without either only
            the own host may.
        headers: added to requests to other members, instead of what `token` implies.
        dial: how to reach other members; plain TCP by default.
        scheme: `https` where `dial` speaks TLS.
        address_provider: where to dial a member now, in place of its address in the configuration,
            for streams and whatever else is asked of a member by its id. Redirects of joins name
            the one in the configuration all the same.
        carrier: how other members are dialled: `raw`, `websocket` or `auto`, as for `Layer`.
        config: settings; its `local_id` must be `node_id`.
        autopilot: when a server that joins gets its vote, and whether dead ones are removed.
        sessions: write commands so that each is applied once, however often it is sent. Every
            member's state machine must know these envelopes (docs/reference/sessions.md), as that
            of every `Node` does, with or without this option.
        timeout: seconds for one handshake, forward or membership call, and the default of `apply`.

    Raises:
        ConfigError: an argument is out of bounds.
    """

    def __init__(
        self,
        node_id: str,
        address: str,
        *,
        fsm: FSM,
        data_dir: str | Path | None = None,
        bootstrap: bool = False,
        join: Sequence[str] = (),
        path: str = "/raft",
        token: str | None = None,
        authorize: Authorize | None = None,
        headers: HeadersFactory | None = None,
        dial: Dial | None = None,
        scheme: str = "http",
        address_provider: ServerAddressProvider | None = None,
        carrier: str = "auto",
        config: Config | None = None,
        autopilot: AutopilotConfig | None = None,
        sessions: bool = False,
        timeout: float = 10.0,
    ) -> None:
        try:
            own_id = parse_id(node_id)
            self.address = parse_address(address)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        check_fsm(fsm)
        self.path = parse_path(path)
        config = Config(own_id) if config is None else config
        config.validate()
        if config.local_id != own_id:
            raise ConfigError(f"config.local_id is {config.local_id!r}, not {node_id!r}")
        self._autopilot_config = AutopilotConfig() if autopilot is None else autopilot
        self._autopilot_config.validate(config.heartbeat_timeout)
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be above 0")
        super().__init__(own_id, config, sessions=sessions, timeout=timeout)
        self._fsm = fsm
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._bootstrap = bootstrap
        if isinstance(join, str):
            raise ConfigError(f"join is a list of URLs: [{join!r}]")
        # One list of all members may be given to each of them.
        self._join = [
            target for url in join if (target := join_target(url, scheme)) != self.address
        ]
        if join and not self._join:
            raise ConfigError(f"{node_id} cannot join through itself ({join[0]})")
        self._authorize, self._headers = authorize, headers
        if token is not None:
            self._authorize = authorize or bearer_token(token)
            self._headers = headers or token_headers(token)
        self._dial = dial or dial_tcp()
        self._scheme = scheme
        self._address_provider = address_provider
        if carrier not in CARRIERS:
            raise ConfigError(f"carrier is {carrier!r}; it must be one of {', '.join(CARRIERS)}")
        self._carrier = carrier
        self._membership: Membership | None = None
        self._handler: Handler | None = None
        self._autopilot: Autopilot | None = None
        self._stack: AsyncExitStack | None = None
        self._layer: Layer
        self._transport: NetworkTransport

    # -- life

    async def start(self) -> None:
        """Open the stores and take part; joining goes on in the background.

        Raises:
            StorageError: the data directory cannot be used.
        """
        if self._stack is not None:
            raise RuntimeError("this node is running")
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def stop(self, *, hand_over: float = HAND_OVER_SECONDS) -> None:
        """Stop taking part and close everything. Idempotent.

        Args:
            hand_over: most seconds for a leader to let another member lead first, so that writers
                need not wait for an election; 0: it is not tried.
        """
        stack, self._stack = self._stack, None
        if stack is not None:
            if hand_over > 0 and self._raft is not None:
                await self._raft.hand_over(timeout=hand_over)
            await stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """For `FastAPI(lifespan=node.lifespan)` and the like."""
        del app
        async with self:
            yield

    def mount(self, app: Starlette, path: str | None = None) -> None:
        """Put the endpoint on a Starlette or FastAPI application, as exact routes.

        One is for HTTP, one for WebSockets.

        A `Mount` would answer the path itself with a redirect to a trailing slash, which the
        streams of other members do not follow. An application that is mounted below a prefix gives
        the rest of the node's path.

        Raises:
            ConfigError: `path` is not where the other members look for it.
        """
        path = self.path if path is None else path
        if not self.path.endswith(path) or not path.startswith("/"):
            raise ConfigError(f"cannot mount at {path!r}: the node's path is {self.path!r}")
        endpoint = _Endpoint(self)
        app.router.routes.append(Route(path, endpoint=endpoint))
        app.router.routes.append(WebSocketRoute(path, endpoint=endpoint))

    async def asgi(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """The endpoint as an ASGI application; 503 while the node does not run.

        For an application that hands over its scopes itself: `lifespan` starts and stops the node.
        """
        if scope["type"] == "lifespan":
            await serve_lifespan(self.start, self.stop, receive, send)
            return
        handle = _not_running if self._handler is None else self._handler.handle
        await serve(handle, scope, receive, send)

    @property
    def handler(self) -> Handler | None:
        """The endpoint, for adapters to web servers; None while the node does not run."""
        return self._handler

    @property
    def leader(self) -> Leader | None:
        """Who leads, as far as this node knows; None also while it does not run."""
        return None if self._raft is None else self._raft.leader_with_id()

    @property
    def joining(self) -> bool:
        """Whether this node is asking to be made a member."""
        return self._membership is not None and self._membership.is_joining

    @property
    def join_error(self) -> str | None:
        """Why joining has not succeeded yet, or None."""
        return None if self._membership is None else self._membership.error

    @property
    def is_member(self) -> bool:
        """Whether the latest configuration has this node, and it has not left; as far as it knows.

        False while the node does not run.
        """
        if self._raft is None or self._membership is None:
            return False
        return self._membership.is_member(self._raft.get_configuration())

    @property
    def cluster_id(self) -> str | None:
        """Name of the cluster this node is, or was, a member of."""
        return None if self._raft is None else self._layer.cluster_id

    def health(self) -> ClusterHealth | None:
        """How each member is; None where this node does not lead."""
        if self._raft is None or self._autopilot is None:
            return None
        return self._autopilot.health()

    # -- membership

    async def leave(self, *, timeout: float | None = None) -> None:
        """Ask the cluster to remove this node; it goes on running, as a member of nothing.

        Raises:
            MembershipError: it was not done within the timeout, or refused.
        """
        leader = self.raft.leader_with_id()
        servers = list(self.raft.get_configuration().configuration)
        servers.sort(key=lambda server: leader is None or server.id != leader.id)
        members = [self._transport.address_of(server) for server in servers]
        timeout = self.timeout if timeout is None else timeout
        await self._layer.leave(self.id, members or [self.address], timeout)
        if self._membership is not None:
            await self._membership.note_left(self.raft.get_configuration())

    async def leadership_transfer(
        self, to: str | None = None, *, timeout: float | None = None
    ) -> Leader:
        """This node leads: let `to` lead, or the voter that has most; returns who leads then.

        Raises:
            LeadershipTransferError: definite; see `Raft.leadership_transfer`.
            NotLeaderError: definite; this node does not lead.
        """
        raft = self.raft
        if to is None:
            return await raft.leadership_transfer(timeout=timeout)
        target = ServerID(to)
        server = raft.get_configuration().configuration.get(target)
        address = ServerAddress("") if server is None else server.address
        return await raft.leadership_transfer_to_server(target, address, timeout=timeout)

    # -- inside

    async def _start(self, stack: AsyncExitStack) -> None:
        store = await self._open_store()
        async with AsyncExitStack() as until_owned:  # from `Raft.start` on, the server closes it
            until_owned.callback(store.close)
            snapshots = await self._open_snapshots()
            if self._bootstrap and not has_existing_state(store, store, snapshots):
                store.set({CLUSTER_ID: uuid.uuid4().hex.encode()})
                alone = Configuration((Server(self.id, self.address),))
                await bootstrap_cluster(self.config, store, store, None, alone)
            stored = store.get(CLUSTER_ID)
            handler = Handler(
                self.timeout,
                self._authorize,
                forward=self._on_forward,
                cluster_id=None if stored is None else stored.decode(),
                forward_size_bytes_max=self.config.entry_size_bytes_max + _FORWARD_ROOM_BYTES,
            )
            layer = Layer(
                self.path,
                self.address,
                handler,
                self._dial,
                self._carrier,
                headers=self._headers,
                scheme=self._scheme,
            )
            transport = NetworkTransport(
                layer, timeout=self.timeout, address_provider=self._address_provider
            )
            leaderward = Leaderward(
                layer, transport.address_of, pending_bytes_max=self.config.pending_bytes_max
            )
            self._membership = membership = Membership(self.id, store, self._join)
            # Without state it may be a voter that lost its disk; it takes no part until the
            # cluster does not count on it.
            is_new = not has_existing_state(store, store, None)
            if is_new:
                self._refuse_forgotten(snapshots)
                is_new = bool(membership.targets)
            until_owned.push_async_callback(transport.close)
            raft = await Raft.start(
                self.config,
                self._fsm if isinstance(self._fsm, SessionFSM) else SessionFSM(self._fsm),
                store,
                store,
                snapshots,
                transport,
                forward_read=leaderward.read_index,
                takes_part=not is_new,
            )
            until_owned.pop_all()
        self._raft, self._layer, self._handler = raft, layer, handler
        self._transport = transport
        self._leaderward = leaderward
        stack.callback(self._forget)
        autopilot = Autopilot(raft, self._autopilot_config, self.config.heartbeat_timeout)
        self._autopilot = autopilot
        work = handle_change_requests(raft, handler.requests(), wait_stable=autopilot.wait_stable)
        stack.push_async_callback(_finish, asyncio.create_task(work))
        stack.push_async_callback(self._once.close)  # what it waits for ends with the server
        stack.push_async_callback(raft.shutdown)
        stack.push_async_callback(leaderward.close)
        stack.push_async_callback(_cancel, asyncio.create_task(self._watch_leader(raft)))
        stack.push_async_callback(_cancel, asyncio.create_task(autopilot.run()))
        if membership.targets:
            membership.is_joining = True

            async def on_released(answer: Changed) -> None:
                position = answer.released
                if position is None:  # from Go, which says less: its log's end, asked for now
                    position = await transport.log_end(answer.member, self.timeout)
                await raft.take_part(position)

            def others() -> list[ServerAddress]:
                servers = raft.get_configuration().configuration
                return [transport.address_of(s) for s in servers if s.id != self.id]

            joining = membership.join(layer, self.timeout, on_released if is_new else None, others)
            stack.push_async_callback(_cancel, asyncio.create_task(joining))
        elif raft.get_configuration().configuration.servers and not self.is_member:
            _log.warning(
                "%s left its cluster, or was removed: only joining brings it back", self.id
            )

    def _refuse_forgotten(self, snapshots: SnapshotStore) -> None:
        """Without its log it would vote twice in a term, and lose what it acknowledged (S62).

        To join does not help: until it is released it would campaign, a voter by its snapshot.
        """
        if snapshots.list():
            raise DataDirectoryError(
                f"data directory {self._data_dir} holds snapshots, and no log any more: this node"
                " has forgotten its votes. Restore raft.db, or empty the directory and let it join"
                " anew"
            )

    async def _open_snapshots(self) -> MemorySnapshotStore | FileSnapshotStore:
        """Behind the lock of the store."""
        if self._data_dir is None:
            return MemorySnapshotStore()
        return await asyncio.to_thread(FileSnapshotStore, self._data_dir / SNAPSHOTS)

    async def _open_store(self) -> MemoryStore | SqliteStore:
        if self._data_dir is None:
            return MemoryStore()
        return await asyncio.to_thread(SqliteStore.open, self._data_dir, self.id)

    def _forget(self) -> None:
        self._raft = self._handler = None

    async def _on_forward(self, request: ForwardRequest) -> ForwardResponse:
        """The leader's side. Never forwards further: the asking side tries the next leader."""
        try:
            answer = await forwarding.answer(self.raft, request.op, request.body)
        except ForwardFormatError as error:
            return ForwardResponse(400, str(error).encode())
        except ShutdownError as error:
            return ForwardResponse(503, str(error).encode(), NOTHING_DONE)
        return ForwardResponse(200, answer)


class _Endpoint:
    """An object, not a function: Starlette then hands over the bare ASGI call, any method."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        await self._node.asgi(scope, receive, send)


async def _not_running(_: Request) -> Response:
    return text_response(503, "the node is not running", NOTHING_DONE)


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for a task that ends by itself; not for ever."""
    try:
        async with asyncio.timeout(_FINISH_WAIT):
            await task
    except TimeoutError:
        _log.error("the membership task did not end")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
