"""Clients of a mixed cluster that retry until they know: requests of sessions, in the envelope.

Each client numbers its requests and sends one at a time. Where the outcome is unknown it sends the
same envelope again, to whoever leads then: it must be applied once, and answered as the first time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, Self

import httpx

from rafthttp.sessions.envelope import HEAD, MAGIC, VERSION, Kind
from rafthttp.testing.interop import MixedCluster
from rafthttp.testing.interop_member import Member
from rafthttp.testing.ledger import command
from rafthttp.testing.processes import DEADLINE_SECONDS

_PAUSE_SECONDS: Final = 0.02
# Short, so that a client whose leader is paused asks the next one soon.
_CALL_SECONDS: Final = 3.0
# Two rounds of five members.
_REFUSED_KEPT: Final = 10
_REFUSALS: Final = (
    "SessionFormatError",
    "SessionExpiredError",
    "RequestReusedError",
    "OverloadedError",
)


class _NoAnswerError(Exception):
    """Why one try brought none."""


class SessionClients:
    """Threads with a session each, writing until stopped.

    Args:
        cluster: whose leader is asked.
        clients: threads; each has a session of its own.
        prefix: begins every id.

    Attributes:
        answers: the ledger's answer to each request, by id.
        retried: how many envelopes were sent again because their outcome was unknown.
    """

    def __init__(self, cluster: MixedCluster, clients: int = 2, prefix: str = "s") -> None:
        self._cluster, self._prefix = cluster, prefix
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self.answers: dict[str, int] = {}
        self.retried = 0
        self.failure: BaseException | None = None
        self._refused = [deque[str](maxlen=_REFUSED_KEPT) for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all clients, each once its last request is answered: the cluster must serve.

        Raises:
            AssertionError: one of them did not end, or was refused.
        """
        self._stopping.set()
        deadline = time.monotonic() + DEADLINE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), (
                f"{len(self.answers)} answered, and a client hangs; the last refusals of each:"
                f" {list(map(list, self._refused))}"
            )
        if self.failure is not None:
            raise AssertionError(f"a client failed: {self.failure!r}") from self.failure

    def _run(self, client: int) -> None:
        try:
            with httpx.Client(trust_env=False, timeout=_CALL_SECONDS) as http:
                session = (client + 1).to_bytes(16, "big")
                asked, _ = self._until_answered(
                    http, HEAD.pack(*_head(Kind.OPEN, session)), client, client
                )
                number = 0
                while not self._stopping.is_set():
                    number += 1
                    name = f"{self._prefix}-{client}-{number}"
                    head = HEAD.pack(*_head(Kind.REQUEST, session, number, number))
                    envelope = head + command(name)
                    asked, answer = self._until_answered(http, envelope, client, asked)
                    assert answer is not None, f"{name} was answered with nothing"
                    with self._mutex:
                        self.answers[name] = answer
        except BaseException as error:  # noqa: BLE001 - a thread's top: `stop` raises it
            self.failure = error

    def _until_answered(
        self, http: httpx.Client, envelope: bytes, client: int, asked: int
    ) -> tuple[int, int | None]:
        """Which member answered, and what; asks one after the other, to a deadline."""
        begin = time.monotonic()
        refused = self._refused[client]
        while True:
            member = self._cluster.members[asked % len(self._cluster.members)]
            try:
                return asked, self._ask(http, member, envelope)
            except _NoAnswerError as error:
                waited = time.monotonic() - begin
                refused.append(f"{member.id} after {waited:.1f} s: {error}")
            assert waited < 2 * DEADLINE_SECONDS, f"no member answers: {'; '.join(refused)}"
            asked += 1
            time.sleep(_PAUSE_SECONDS)

    def _ask(self, http: httpx.Client, member: Member, envelope: bytes) -> int | None:
        """Raises _NoAnswerError where another try may bring one."""
        try:
            reply = http.post(f"http://{member.listening}/apply", content=envelope)
            value = reply.json()
        except httpx.ConnectError as error:
            raise _NoAnswerError(repr(error)) from None
        except (httpx.HTTPError, ValueError) as error:
            self._count_retry()
            raise _NoAnswerError(repr(error)) from None
        if reply.status_code == 200:
            response: int | None = value["response"]
            return response
        text = str(value["error"])
        assert not text.startswith(_REFUSALS), text
        if value["outcome"] != "definite":
            self._count_retry()
        raise _NoAnswerError(f"{reply.status_code}, {value['outcome']}, {text}")

    def _count_retry(self) -> None:
        with self._mutex:
            self.retried += 1

    def assert_kept(self, member: Member) -> None:
        """Every answered request is in the member's ledger once, at the place that was answered.

        At most one a client is there that was never answered: none, once `stop` returned.
        """
        applied = member.ids()
        mine = [name for name in applied if name.startswith(self._prefix + "-")]
        assert len(set(mine)) == len(mine), f"{member.id} applied a request twice"
        assert set(mine) == self.answers.keys(), (
            f"{member.id}: {sorted(set(mine) ^ self.answers.keys())[:5]}"
        )
        wrong = [name for name, at in self.answers.items() if applied[at - 1] != name]
        assert not wrong, f"{member.id} has {wrong[:5]} elsewhere than was answered"
        stats = member.stats()
        assert stats is not None
        assert stats["fsm"]["twice"] == [], f"{member.id} applied twice: {stats['fsm']['twice']}"


def _head(
    kind: Kind, session: bytes, sequence: int = 0, lowest: int = 0
) -> tuple[bytes, int, int, bytes, int, int]:
    return MAGIC, VERSION, kind, session, sequence, lowest
