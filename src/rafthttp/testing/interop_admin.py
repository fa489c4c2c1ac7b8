"""The admin API of `interop/go` for a Python member; interop/README.md lists the calls.

Knows `Node` and Starlette. Every answer has the shape that the Go program's has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rafthttp import (
    FileSnapshotStore,
    LogStore,
    MemorySnapshotStore,
    MemoryStore,
    Node,
    Outcome,
    RaftError,
    RaftHttpError,
    ServerAddress,
    ServerID,
    SnapshotStore,
    SqliteStore,
    change_membership,
    dial_tcp,
)
from rafthttp.http.membership import ChangeKind
from rafthttp.raft.wire.entries import decode_log
from rafthttp.testing.ledger import Ledger, command

PAGE_MAX: Final = 10000
"""Most entries or ids in one answer."""

_TIMEOUT: Final = 10.0
_JOIN_TIMEOUT: Final = 20.0
# Bytes of records read from the store at once for /log.
_READ_SIZE_BYTES: Final = 4 << 20

Answer = Callable[[Request], Awaitable[dict[str, Any]]]


class InteropNode(Node):
    """A `Node` that keeps hold of its log and its snapshots, to show them."""

    store: MemoryStore | SqliteStore
    snapshots: MemorySnapshotStore | FileSnapshotStore

    async def _open_store(self) -> MemoryStore | SqliteStore:
        self.store = await super()._open_store()
        return self.store

    async def _open_snapshots(self) -> MemorySnapshotStore | FileSnapshotStore:
        self.snapshots = await super()._open_snapshots()
        return self.snapshots


class Admin:
    """The calls of interop/README.md."""

    def __init__(self, node: InteropNode, ledger: Ledger) -> None:
        self.node = node
        self.ledger = ledger

    def routes(self) -> list[Route]:
        """For Starlette. A refusal is a 409 with the error and whether it is definite."""
        get = {
            "/stats": self._stats,
            "/configuration": self._configuration,
            "/log": self._log,
            "/ids": self._ids,
        }
        post = {
            "/apply": self._apply,
            "/applies": self._applies,
            "/forward": self._forward,
            "/read": self._read,
            "/barrier": self._barrier,
            "/verify": self._verify,
            "/bench": self._bench,
            "/snapshot": self._snapshot,
            "/transfer": self._transfer,
            "/addvoter": self._add_voter,
            "/addnonvoter": self._add_nonvoter,
            "/demote": self._demote,
            "/remove": self._remove,
            "/join": self._join,
            "/leave": self._leave,
        }
        return [Route(path, _served(call), methods=["GET"]) for path, call in get.items()] + [
            Route(path, _served(call), methods=["POST"]) for path, call in post.items()
        ]

    # -- looking

    async def _stats(self, _: Request) -> dict[str, Any]:
        raft = self.node.raft
        leader = raft.leader_with_id()
        return {
            "id": self.node.id,
            "address": self.node.address,
            "language": "python",
            "state": raft.state.value.capitalize(),
            "leader": "" if leader is None else leader.id,
            "term": raft.current_term,
            "first_index": self.node.store.first_index(),
            "last_index": raft.last_index,
            "commit_index": raft.commit_index,
            "applied_index": raft.applied_index,
            "fsm": self.ledger.stats(),
            "raft": raft.stats(),
            "join_error": self.node.join_error,
            "joining": self.node.joining,
        }

    async def _configuration(self, _: Request) -> dict[str, Any]:
        latest = self.node.raft.get_configuration()
        servers = [
            {
                "id": server.id,
                "address": server.address,
                "suffrage": server.suffrage.name.lower(),
            }
            for server in latest.configuration
        ]
        return {"index": latest.index, "servers": servers}

    async def _log(self, request: Request) -> dict[str, Any]:
        store = self.node.store
        held, end = store.first_index(), store.last_index()
        first = max(held, _number(request, "first", 1))
        last = min(end, _number(request, "last", first + PAGE_MAX - 1), first + PAGE_MAX - 1)
        entries = await asyncio.to_thread(_described, store, first, last)
        return {"first_index": held, "last_index": end, "entries": entries}

    async def _ids(self, request: Request) -> dict[str, Any]:
        return {"ids": self.ledger.ids(_number(request, "first", 1), PAGE_MAX)}

    # -- acting

    async def _apply(self, request: Request) -> dict[str, Any]:
        data = await request.body()
        extensions = bytes.fromhex(request.query_params.get("extensions", ""))
        timeout = float(request.query_params.get("timeout", _TIMEOUT))
        applied = await self.node.raft.apply_log(data, extensions, timeout=timeout)
        return {"index": applied.index, "response": applied.response}

    async def _applies(self, request: Request) -> dict[str, Any]:
        batch = json.loads(await request.body())
        timeout = float(request.query_params.get("timeout", _TIMEOUT))
        value = bytes(batch["size"])
        results = await asyncio.gather(
            *(self._apply_one(name, value, timeout) for name in batch["ids"])
        )
        return {"results": results}

    async def _apply_one(self, name: str, value: bytes, timeout: float) -> dict[str, Any]:
        try:
            applied = await self.node.raft.apply_log(command(name, value), timeout=timeout)
        except RaftError as error:
            return {"id": name, "error": str(error), "outcome": error.outcome.value}
        return {"id": name, "index": applied.index, "response": applied.response}

    async def _forward(self, request: Request) -> dict[str, Any]:
        """`Node.apply`: through the leader where this member does not lead. Only in Python."""
        timeout = float(request.query_params.get("timeout", _TIMEOUT))
        return {"response": await self.node.apply(await request.body(), timeout=timeout)}

    async def _read(self, request: Request) -> dict[str, Any]:
        """`Node.read_index`. Only in Python."""
        timeout = float(request.query_params.get("timeout", _TIMEOUT))
        return {"index": await self.node.read_index(timeout=timeout)}

    async def _barrier(self, _: Request) -> dict[str, Any]:
        await self.node.raft.barrier(timeout=_TIMEOUT)
        return {}

    async def _verify(self, _: Request) -> dict[str, Any]:
        await self.node.raft.verify_leader(timeout=_TIMEOUT)
        return {}

    async def _bench(self, request: Request) -> dict[str, Any]:
        clients = _number(request, "clients", 1)
        size = _number(request, "size", 64)
        length = float(request.query_params.get("seconds", 1.0))
        prefix = request.query_params.get("prefix", f"bench-{time.time_ns()}")
        took: list[float] = []
        errors: list[str] = []
        begin = time.perf_counter()

        async def work(client: int) -> None:
            number = 0
            while (sent := time.perf_counter()) < begin + length:
                name = f"{prefix}-{client}-{number}"
                try:
                    data = command(name, bytes(max(size - len(name) - 1, 0)))
                    await self.node.raft.apply(data, timeout=_TIMEOUT)
                except RaftError as error:
                    errors.append(str(error))
                    return
                took.append(time.perf_counter() - sent)
                number += 1

        await asyncio.gather(*(work(client) for client in range(clients)))
        return _summary(took, errors, time.perf_counter() - begin)

    async def _snapshot(self, _: Request) -> dict[str, Any]:
        meta = await self.node.raft.snapshot()
        digest = await asyncio.to_thread(_digest, self.node.snapshots, meta.id)
        return {"index": meta.index, "size": meta.size, "sha256": digest}

    async def _transfer(self, request: Request) -> dict[str, Any]:
        raft = self.node.raft
        if server_id := request.query_params.get("id"):
            address = ServerAddress(request.query_params["address"])
            await raft.leadership_transfer_to_server(ServerID(server_id), address)
        else:
            await raft.leadership_transfer()
        return {}

    async def _add_voter(self, request: Request) -> dict[str, Any]:
        server, address, previous = _change(request)
        raft = self.node.raft
        return {"index": await raft.add_voter(server, address, previous, timeout=_TIMEOUT)}

    async def _add_nonvoter(self, request: Request) -> dict[str, Any]:
        server, address, previous = _change(request)
        raft = self.node.raft
        return {"index": await raft.add_nonvoter(server, address, previous, timeout=_TIMEOUT)}

    async def _demote(self, request: Request) -> dict[str, Any]:
        server, _, previous = _change(request)
        return {"index": await self.node.raft.demote_voter(server, previous, timeout=_TIMEOUT)}

    async def _remove(self, request: Request) -> dict[str, Any]:
        server, _, previous = _change(request)
        return {"index": await self.node.raft.remove_server(server, previous, timeout=_TIMEOUT)}

    async def _join(self, request: Request) -> dict[str, Any]:
        await self._membership(ChangeKind.JOIN, request)
        return {}

    async def _leave(self, request: Request) -> dict[str, Any]:
        await self._membership(ChangeKind.LEAVE, request)
        return {}

    async def _membership(self, kind: ChangeKind, request: Request) -> None:
        node, via = self.node, request.query_params["via"]
        await change_membership(
            kind, node.path, dial_tcp(), node.id, node.address, via, _JOIN_TIMEOUT
        )


def _served(call: Answer) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def serve(request: Request) -> JSONResponse:
        try:
            return JSONResponse(await call(request))
        except (RaftHttpError, ValueError, KeyError) as error:
            outcome = error.outcome if isinstance(error, RaftError) else Outcome.UNKNOWN
            body = {"error": f"{type(error).__name__}: {error}", "outcome": outcome.value}
        return JSONResponse(body, status_code=409)

    return serve


def _change(request: Request) -> tuple[ServerID, ServerAddress, int]:
    query = request.query_params
    address = ServerAddress(query.get("address", ""))
    return ServerID(query["id"]), address, _number(request, "prev", 0)


def _number(request: Request, name: str, absent: int) -> int:
    return int(request.query_params.get(name, absent))


def _described(store: LogStore, first: int, last: int) -> list[dict[str, Any]]:
    """Entries `first..last` as /log shows them. Waits for the disk."""
    found: list[dict[str, Any]] = []
    while first <= last:
        for record in store.get_records(first, last, _READ_SIZE_BYTES):
            log = decode_log(record)
            found.append(
                {
                    "index": log.index,
                    "term": log.term,
                    "type": int(log.type),
                    "size": len(log.data),
                    "sha256": hashlib.sha256(log.data).hexdigest(),
                    "extensions": log.extensions.hex(),
                    "appended_at": rfc3339_nano(log.appended_at_ns),
                }
            )
            first += 1
    return found


def _digest(store: SnapshotStore, snapshot_id: str) -> str:
    """SHA-256 of a snapshot's content. Waits for the disk."""
    _, source = store.open(snapshot_id)
    with source:
        chain = hashlib.sha256()
        while piece := source.read(_READ_SIZE_BYTES):
            chain.update(piece)
    return chain.hexdigest()


def rfc3339_nano(ns: int | None) -> str:
    """An instant as Go's `time.RFC3339Nano` writes it in UTC; "" for Go's zero time."""
    if ns is None:
        return ""
    whole, fraction = divmod(ns, 1_000_000_000)
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=whole)).strftime(
        "%Y-%m-%dT%H:%M:%S"
    )
    return text + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"


def _summary(took: list[float], errors: list[str], elapsed: float) -> dict[str, Any]:
    took.sort()

    def quantile(q: float) -> float:
        return 1000 * took[int(q * (len(took) - 1))] if took else 0.0

    return {
        "applied": len(took),
        "errors": len(errors),
        "error": errors[-1] if errors else "",
        "seconds": elapsed,
        "per_second": len(took) / elapsed,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
    }
