"""A lock with an expiry and a fencing token, in an aiohttp application.

python examples/aiohttp_lock.py n1 127.0.0.1:8001 data/n1
python examples/aiohttp_lock.py n2 127.0.0.1:8002 data/n2 http://127.0.0.1:8001
curl -X POST 'http://127.0.0.1:8002/locks/backup?owner=me&seconds=30'
curl -X DELETE 'http://127.0.0.1:8001/locks/backup?owner=me'
"""

import json
import sys
from typing import Any, BinaryIO

from aiohttp import web

from rafthttp import FSM, BytesSnapshot, Log, Node, Outcome, RaftError
from rafthttp.http.aiohttp import setup


class Locks(FSM):
    """Time is the leader's, as it stands in the entry: every replica decides alike."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, int, int]] = {}  # name -> owner, end in ns, token

    def apply(self, log: Log) -> dict[str, Any]:
        """Take or release a lock; a higher token is always a later holder."""
        command = json.loads(log.data)
        name, owner, now_ns = command["name"], command["owner"], log.appended_at_ns or 0
        holder, end_ns, token = self.held.get(name, ("", 0, 0))
        if now_ns >= end_ns:
            holder = ""
        if command["op"] == "release":
            if holder == owner:
                del self.held[name]
            return {"released": holder == owner}
        if holder not in ("", owner):
            return {"granted": False, "holder": holder}
        if not holder:
            token = log.index
        self.held[name] = (owner, now_ns + int(command["seconds"] * 1e9), token)
        return {"granted": True, "token": token}

    def snapshot(self) -> BytesSnapshot:
        """All locks."""
        return BytesSnapshot(json.dumps(self.held).encode())

    def restore(self, source: BinaryIO) -> None:
        """All locks."""
        self.held = {name: tuple(lock) for name, lock in json.load(source).items()}


NODE = web.AppKey("node", Node)
routes = web.RouteTableDef()


async def answer(request: web.Request, command: dict[str, Any], key: str) -> web.Response:
    """Replicate a command; 409 where the lock is another's, 503 or 504 where it is not known."""
    try:
        result = await request.app[NODE].apply(json.dumps(command).encode(), timeout=5)
    except RaftError as error:
        status = 503 if error.outcome is Outcome.DEFINITE else 504
        return web.json_response(
            {"error": str(error), "outcome": error.outcome.value}, status=status
        )
    return web.json_response(result, status=200 if result[key] else 409)


@routes.post("/locks/{name}")
async def acquire(request: web.Request) -> web.Response:
    """Take the lock, or hold it longer."""
    command = {"op": "acquire", "name": request.match_info["name"], "owner": request.query["owner"]}
    seconds = float(request.query.get("seconds", "30"))
    return await answer(request, {**command, "seconds": seconds}, "granted")


@routes.delete("/locks/{name}")
async def release(request: web.Request) -> web.Response:
    """Give the lock back."""
    command = {"op": "release", "name": request.match_info["name"], "owner": request.query["owner"]}
    return await answer(request, command, "released")


if __name__ == "__main__":
    name, address, data_dir, *join = sys.argv[1:]
    node = Node(name, address, fsm=Locks(), data_dir=data_dir, bootstrap=not join, join=join)
    app = web.Application()
    app[NODE] = node
    app.add_routes(routes)
    setup(app, node)
    host, _, port = address.rpartition(":")
    web.run_app(app, host=host, port=int(port), print=None)
