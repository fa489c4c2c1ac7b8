"""What `SessionFSM` adds to a command, on every replica.

    python bench/sessions.py

A state machine that does nothing, in batches; plain commands, numbered ones of 64 clients at once
(each acknowledges what it was answered), and ones under a key each. In processor time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, BinaryIO

from rafthttp import FSM, BytesSnapshot, ClientSession, Log, LogType, SessionFSM
from rafthttp.sessions import envelope

COMMANDS = 200_000
SESSION = bytes(16)
COMMAND = b"x" * 64


class Nothing(FSM):
    def apply(self, log: Log) -> Any:
        return None

    def apply_batch(self, logs: Sequence[Log]) -> Sequence[Any]:
        return [None] * len(logs)

    def snapshot(self) -> BytesSnapshot:
        return BytesSnapshot(b"")

    def restore(self, source: BinaryIO) -> None:
        pass


def numbered() -> list[bytes]:
    """As 64 clients of one node have them proposed: each asks again once it is answered."""
    session = ClientSession(SESSION)
    under_way = [session.begin() for _ in range(64)]
    datas = [envelope.numbered(request, COMMAND) for request in under_way]
    for turn in range(COMMANDS - 64):
        place = turn * 29 % 64
        session.end(under_way[place])
        under_way[place] = session.begin()
        datas.append(envelope.numbered(under_way[place], COMMAND))
    return datas


def measure(name: str, fsm: FSM, datas: list[bytes], batch: int) -> None:
    logs = [
        Log(index, 1, LogType.COMMAND, data, appended_at_ns=1_700_000_000_000_000_000 + index)
        for index, data in enumerate(datas, 1)
    ]
    begin = time.process_time()
    for at in range(0, len(logs), batch):
        fsm.apply_batch(logs[at : at + batch])
    took = (time.process_time() - begin) / len(logs)
    print(f"{name:28} batches of {batch:4}: {took * 1e6:5.2f} us a command")


def main() -> None:
    plain = [COMMAND] * COMMANDS
    keys = [envelope.once(str(number), None, COMMAND) for number in range(COMMANDS)]
    for batch in (1, 64, 512):
        measure("bare", Nothing(), plain, batch)
        measure("wrapped, plain", SessionFSM(Nothing()), plain, batch)
        opened = SessionFSM(Nothing())
        opened.apply(Log(0, 1, LogType.COMMAND, envelope.opening(SESSION)))
        measure("wrapped, numbered", opened, numbered(), batch)
        measure("wrapped, under keys", SessionFSM(Nothing()), keys, batch)


if __name__ == "__main__":
    main()
