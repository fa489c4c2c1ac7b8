"""Clients of real clusters that note what they asked, when, and what they were told.

Knows two HTTP APIs as one kind of register. A write without an answer may have happened, a refusal
that says `definite` has not; a read without an answer tells nothing. Every value is written once.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpx

from rafthttp.testing.linearizability import Kind, Operation
from rafthttp.testing.nemesis.servers import Server

# Longer than an election; a server that is stopped or cut off costs a client no more.
TIMEOUT_SECONDS: Final = 2.0
# How long a write of unknown outcome is sent again under its id.
_RETRY_SECONDS: Final = 4.0
_PAUSE_SECONDS: Final = 0.02


class DefiniteError(Exception):
    """It was not done, and will not be."""


class UnknownError(Exception):
    """It may have been done, or may yet be."""


class Register(Protocol):
    """How one client reads and writes registers at any server."""

    retries: bool
    """Whether a write under an id may be sent again."""

    def read(self, server: Server, key: str) -> str | None:
        """What the register holds now: linearizable.

        Raises:
            UnknownError: no answer, or a refusal.
        """
        ...

    def write(self, server: Server, key: str, value: str | None, request_id: str) -> None:
        """Write, or delete with None. `request_id` names it, however often it is sent.

        Raises:
            DefiniteError: it was not done. UnknownError: or maybe it was.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class KeyValue:
    """The key-value API of `serve`: any server takes everything."""

    retries = True

    def __init__(self, *, stale: bool = False) -> None:
        """`stale` reads what a server happens to hold: for tests of the checker."""
        self._http = httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS)
        self._query = {"consistency": "stale"} if stale else {}

    def read(self, server: Server, key: str) -> str | None:
        """As `Register`."""
        try:
            answer = self._http.get(self._url(server, key), params=self._query)
        except httpx.HTTPError as error:
            raise UnknownError(repr(error)) from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise UnknownError(answer.text)
        return answer.text

    def write(self, server: Server, key: str, value: str | None, request_id: str) -> None:
        """As `Register`."""
        headers = {"Idempotency-Key": f'"{request_id}"'}
        url = self._url(server, key)
        try:
            if value is None:
                answer = self._http.delete(url, headers=headers)
            else:
                answer = self._http.put(url, content=value.encode(), headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise DefiniteError(repr(error)) from error
        except httpx.HTTPError as error:
            raise UnknownError(repr(error)) from error
        if answer.status_code == 204:
            return
        if _json(answer).get("outcome") == "definite":
            raise DefiniteError(answer.text)
        raise UnknownError(answer.text)

    def close(self) -> None:
        """As `Register`."""
        self._http.close()

    def _url(self, server: Server, key: str) -> str:
        return f"http://{server.address}/kv/{quote(key)}"


class LedgerRegister:
    """Registers in the ledger of a mixed cluster: the last command whose id begins with the key.

    Leaders alone write in both languages. A read waits for a barrier at the leader, or in Python
    for `read_index` at any member, and then looks at that member's state machine.
    """

    retries = False

    def __init__(self) -> None:
        self._http = httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS)
        # What this client has read so far: a ledger only grows.
        self._known = 0
        self._last: dict[str, str] = {}

    def read(self, server: Server, key: str) -> str | None:
        """As `Register`."""
        try:
            call = random.choice(["read", "barrier"]) if server.python else "barrier"  # noqa: S311
            self._done(self._http.post(f"http://{server.address}/{call}", params={"timeout": 2}))
            while ids := self._ids(server):
                for name in ids:
                    of, _, value = name.partition("=")
                    self._last[of] = value
                self._known += len(ids)
        except (httpx.HTTPError, DefiniteError) as error:
            raise UnknownError(repr(error)) from error
        return self._last.get(key)

    def _ids(self, server: Server) -> list[str]:
        url = f"http://{server.address}/ids"
        found: list[str] = self._done(self._http.get(url, params={"first": self._known + 1}))["ids"]
        return found

    def write(self, server: Server, key: str, value: str | None, request_id: str) -> None:
        """As `Register`; there is no deletion, and every id is sent once."""
        del request_id
        assert value is not None, "a ledger only grows"
        url = f"http://{server.address}/apply"
        try:
            command = f"{key}={value}".encode()
            self._done(self._http.post(url, content=command, params={"timeout": 2}))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise DefiniteError(repr(error)) from error
        except httpx.HTTPError as error:
            raise UnknownError(repr(error)) from error

    def _done(self, answer: httpx.Response) -> dict[str, Any]:
        value = _json(answer)
        if answer.status_code == 200:
            return value
        if value.get("outcome") == "definite":
            raise DefiniteError(answer.text)
        raise UnknownError(answer.text)

    def close(self) -> None:
        """As `Register`."""
        self._http.close()


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        value: dict[str, Any] = answer.json()
    except ValueError:
        return {}
    return value


class History:
    """What all clients saw, on one clock.

    Attributes:
        operations: for the checker: all writes that may have happened, all reads answered.
        outcomes: how many of each kind ended how.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.outcomes: Counter[str] = Counter()
        self._mutex = threading.Lock()

    def note(self, operation: Operation) -> None:
        """An operation that happened, or may have."""
        name = "delete" if operation.argument is None else "write"
        name = "read" if operation.kind is Kind.READ else name
        with self._mutex:
            self.operations.append(operation)
            self.outcomes[f"{name} {'unknown' if operation.returned is None else 'ok'}"] += 1

    def failed(self, what: str) -> None:
        """An operation that tells nothing."""
        with self._mutex:
            self.outcomes[f"{what} refused"] += 1

    @property
    def answered(self) -> int:
        """Operations that were answered well."""
        with self._mutex:
            return sum(many for name, many in self.outcomes.items() if name.endswith(" ok"))


class Client:
    """One client, which does one operation at a time at whatever server.

    Args:
        name: begins every value that it writes.
        register: its own.
        servers: where it goes.
        history: where it notes.
        seed: of what it chooses.
    """

    def __init__(
        self, name: str, register: Register, servers: Sequence[Server], history: History, seed: int
    ) -> None:
        self._name, self._register = name, register
        self._servers, self._history = list(servers), history
        self._rng = random.Random(seed)  # noqa: S311 - a workload is no secret
        self._number = 0
        self._server = self._rng.choice(self._servers)

    def step(self, key: str) -> None:
        """One operation; the next is at another server after a failure, or now and then."""
        roll = self._rng.random()
        if roll < 0.5:
            done = self.read(self._server, key)
        else:
            self._number += 1
            deletes = self._register.retries and roll > 0.95
            done = self._write(key, None if deletes else f"{self._name}-{self._number}")
        if not done:
            time.sleep(_PAUSE_SECONDS)
        if not done or self._rng.random() < 0.1:
            self._server = self._rng.choice(self._servers)

    def read(self, server: Server, key: str) -> bool:
        """Read, and note it; whether it was answered."""
        called = time.monotonic()
        try:
            found = self._register.read(server, key)
        except UnknownError:
            self._history.failed("read")
            return False
        self._history.note(Operation(key, Kind.READ, None, found, called, time.monotonic()))
        return True

    def _write(self, key: str, value: str | None) -> bool:
        request_id = uuid.uuid4().hex
        called = time.monotonic()
        again = self._register.retries and self._rng.random() < 0.5
        returned: float | None = None
        unknown = False
        while True:
            try:
                self._register.write(self._server, key, value, request_id)
            except DefiniteError:
                # Of this time; an earlier one under the same id may have been done.
                if not unknown and not again:
                    self._history.failed("write")
                    return False
            except UnknownError:
                unknown = True
            else:
                returned = time.monotonic()
            if returned is not None or not again or time.monotonic() > called + _RETRY_SECONDS:
                break
            time.sleep(_PAUSE_SECONDS)
            self._server = self._rng.choice(self._servers)
        if returned is None and not unknown:
            self._history.failed("write")
        else:
            self._history.note(Operation(key, Kind.WRITE, value, None, called, returned))
        return returned is not None

    def close(self) -> None:
        """Close its connections."""
        self._register.close()
