"""Payments that are made once, however often a client has to ask: an Idempotency-Key each.

python examples/fastapi_payments.py n1 127.0.0.1:8001 data/n1
python examples/fastapi_payments.py n2 127.0.0.1:8002 data/n2 http://127.0.0.1:8001
"""

import json
import sys
from collections import Counter
from typing import Annotated, BinaryIO

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from rafthttp import (
    FSM,
    BytesSnapshot,
    Log,
    Node,
    Outcome,
    RaftError,
    RequestReusedError,
    raft_protocol,
)


class Accounts(FSM):
    """The state machine knows nothing of keys and repeats."""

    def __init__(self) -> None:
        self.balances: Counter[str] = Counter()

    def apply(self, log: Log) -> int:
        payment = json.loads(log.data)
        self.balances[payment["to"]] += payment["cents"]
        return self.balances[payment["to"]]

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(json.dumps(self.balances).encode())

    def restore(self, source: BinaryIO) -> None:
        self.balances = Counter(json.load(source))


class Payment(BaseModel):
    to: str
    cents: int


name, address, data_dir, *join = sys.argv[1:]
accounts = Accounts()
node = Node(
    name,
    address,
    fsm=accounts,
    data_dir=data_dir,
    bootstrap=not join,
    join=join,
    sessions=True,
)
app = FastAPI(lifespan=node.lifespan)
node.mount(app)


@app.post("/pay")
async def pay(payment: Payment, idempotency_key: Annotated[str, Header()]) -> int:
    """The account's balance after this payment, the same for every repeat of it."""
    command = payment.model_dump_json().encode()
    try:
        balance: int = await node.apply(
            command, request_id=f"pay/{idempotency_key}", request_payload=command
        )
    except RequestReusedError as error:
        raise HTTPException(422, "another payment was made under this key") from error
    except RaftError as error:
        unknown = error.outcome is Outcome.UNKNOWN
        raise HTTPException(504 if unknown else 503, "ask again, with the same key") from error
    return balance


@app.get("/balance/{account}")
async def balance(account: str) -> int:
    await node.linearizable()
    return accounts.balances[account]


if __name__ == "__main__":
    host, _, port = address.rpartition(":")
    uvicorn.run(app, host=host, port=int(port), http=raft_protocol(), log_level="warning")
