"""An application's own routes and a replicated counter, on one port a replica.

python examples/fastapi_counter.py n1 127.0.0.1:8001 data/n1
python examples/fastapi_counter.py n2 127.0.0.1:8002 data/n2 http://127.0.0.1:8001
"""

import sys
from typing import BinaryIO

import uvicorn
from fastapi import FastAPI

from rafthttp import FSM, BytesSnapshot, Log, Node, raft_protocol


class Counter(FSM):
    value = 0

    def apply(self, log: Log) -> int:
        self.value += int(log.data)
        return self.value

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(str(self.value).encode())

    def restore(self, source: BinaryIO) -> None:
        self.value = int(source.read())


name, address, data_dir, *join = sys.argv[1:]
counter = Counter()
node = Node(name, address, fsm=counter, data_dir=data_dir, bootstrap=not join, join=join)
app = FastAPI(lifespan=node.lifespan)
node.mount(app)


@app.post("/add/{n}")
async def add(n: int) -> int:
    total: int = await node.apply(str(n).encode())
    return total


@app.get("/value")
async def value() -> int:
    await node.linearizable()
    return counter.value


if __name__ == "__main__":
    host, _, port = address.rpartition(":")
    uvicorn.run(app, host=host, port=int(port), http=raft_protocol(), log_level="warning")
