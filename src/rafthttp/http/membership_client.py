"""Join and leave from outside: who is asked, how often, and when to give up.

Knows HTTP, redirects and retries; no Raft. The leader does the work and each step of it is
idempotent, so asking again is always right.

Of a redirect only host and port are taken: path, query and scheme stay what they were. A member of
an `https` cluster that says `http://leader` (Go does, always) cannot talk the asker out of TLS, and
a `https` one is refused where the asker has none. The headers, credentials among them, go to
whoever a member that already got them names; with TLS, `dial` still checks that name's certificate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from rafthttp.http.access import HeadersFactory
from rafthttp.http.client import ClientConnection, ClientResponse
from rafthttp.http.dial import Dial
from rafthttp.http.grammar import (
    is_header,
    parse_address,
    parse_cluster_id,
    parse_id,
    parse_path,
    parse_position,
)
from rafthttp.http.handshake import printable
from rafthttp.http.membership import ChangeKind
from rafthttp.http.messages import CLUSTER_ID_HEADER, RELEASED_HEADER
from rafthttp.raft.errors import ConfigError, MembershipError, TransportError
from rafthttp.raft.types import LogPosition, ServerAddress, ServerID

REDIRECTS_MAX: Final = 5
"""Redirects followed in a row. One leads to the leader, a second where it has just changed."""

ATTEMPT_SECONDS_MAX: Final = 15.0
"""A member that does not answer for longer than a handler's usual timeout hangs: ask again."""

PAUSE_SECONDS: Final = (0.05, 2.0)
"""Between attempts: doubled from the first to the last, with jitter."""

RESPONSE_SIZE_BYTES_MAX: Final = 64 << 10
"""Bytes of an answer; it is a line of text, or a proxy's page."""

# To Go a release is a plain leave, which does what is needed: it removes whatever has this id.
_METHODS: Final = {
    ChangeKind.JOIN: "POST",
    ChangeKind.LEAVE: "DELETE",
    ChangeKind.RELEASE: "DELETE",
}
_WHAT: Final = {
    ChangeKind.JOIN: "add",
    ChangeKind.LEAVE: "remove",
    ChangeKind.RELEASE: "begin to join as",
}
# 429, 502 and 504 come from proxies in front of members that are busy, restarting or slow.
_RETRIED: Final = (429, 502, 503, 504)
_REDIRECTED: Final = (307, 308)


class Changed(NamedTuple):
    """A change that was made.

    Attributes:
        member: who made it: the leader.
        cluster_id: as it said; None if it said none.
        released: as it said of a release; None from Go.
    """

    member: ServerAddress
    cluster_id: str | None
    released: LogPosition | None


class _RetryError(Exception):
    """This attempt failed; another may not."""

    def __init__(
        self,
        text: str,
        member: ServerAddress,
        status: int | None = None,
        after_seconds: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.member = member
        self.status = status
        self.after_seconds = after_seconds


async def change_membership(
    kind: ChangeKind,
    path: str,
    dial: Dial,
    server_id: str,
    address: str,
    target: str | Sequence[str],
    timeout: float,
    *,
    headers: HeadersFactory | None = None,
    scheme: str = "http",
) -> str | None:
    """Ask the members at `target` in turn until the change is made (Go's `ChangeMembership`).

    `address` is the joining server's own. 503 and failures to connect are tried again, after at
    least the Retry-After of the answer, until `timeout` seconds have passed.

    Returns:
        The cluster's id, as the member that made the change said; None if it said none.

    Raises:
        MembershipError: refused, or not done in time; then it may yet be done.
        ConfigError: the timeout is not positive, or a name is against its grammar.
    """
    changed = await make_change(
        kind, path, dial, server_id, address, target, timeout, headers=headers, scheme=scheme
    )
    return changed.cluster_id


async def make_change(
    kind: ChangeKind,
    path: str,
    dial: Dial,
    server_id: str,
    address: str,
    target: str | Sequence[str],
    timeout: float,
    *,
    headers: HeadersFactory | None = None,
    scheme: str = "http",
) -> Changed:
    """As `change_membership`; returns all that was answered."""
    if not timeout > 0:
        raise ConfigError(f"timeout is {timeout}; it must be more than 0")
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ConfigError("no member to ask is given")
    try:
        query = f"id={quote(parse_id(server_id), safe='')}"
        if kind is not ChangeKind.LEAVE:
            query += f"&address={quote(parse_address(address), safe='')}"
        members = [parse_address(member) for member in targets]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    change = _Change(
        kind, ServerID(server_id), f"{parse_path(path)}?{query}", dial, headers, scheme
    )
    return await change.run(members, timeout)


class _Change:
    """One change on its way to the leader."""

    def __init__(
        self,
        kind: ChangeKind,
        server_id: ServerID,
        target: str,
        dial: Dial,
        headers: HeadersFactory | None,
        scheme: str,
    ) -> None:
        self._kind = kind
        self._id = server_id
        self._target = target
        self._dial = dial
        self._headers = headers
        self._scheme = scheme

    async def run(self, members: Sequence[ServerAddress], timeout: float) -> Changed:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause, pause_max = PAUSE_SECONDS
        attempts = 0
        last: _RetryError | None = None
        while True:
            member = members[attempts % len(members)]
            attempts += 1
            remaining = max(deadline - loop.time(), 0.001)
            try:
                return await self._ask(member, min(remaining, ATTEMPT_SECONDS_MAX))
            except _RetryError as failed:
                # An attempt that the end of our own time cut short says less than the one before.
                was_cut = remaining < ATTEMPT_SECONDS_MAX and loop.time() >= deadline
                last = retry = last if last is not None and was_cut else failed
                jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
                wait = max(jittered, retry.after_seconds)
                if loop.time() + wait >= deadline:
                    raise self._error(
                        f"{retry}; gave up after {attempts} attempts in {timeout:g} s",
                        retry.status,
                        retry.member,
                    ) from retry
            await asyncio.sleep(wait)
            pause = min(pause * 2, pause_max)

    async def _ask(self, member: ServerAddress, timeout: float) -> Changed:
        """One attempt, redirects included, within `timeout` seconds."""
        asked: list[ServerAddress] = []
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            asked.append(member)
            response = await self._call(member, deadline)
            if response.status == 200:
                return self._changed(response, member)
            said = printable(response.body)
            text = f"{member} answered {response.status}{': ' if said else ''}{said}"
            if response.status in _RETRIED:
                raise _RetryError(text, member, response.status, _retry_after(response))
            if response.status not in _REDIRECTED:
                raise self._error(text, response.status, member)
            member = self._redirected(response, member)
            if member in asked or len(asked) > REDIRECTS_MAX:
                # Two members each take the other for the leader: an election is under way.
                way = " -> ".join((*asked, member))
                raise _RetryError(f"redirected in a loop: {way}", member, response.status)

    async def _call(self, member: ServerAddress, deadline: float) -> ClientResponse:
        connection: ClientConnection | None = None
        timeout = max(deadline - asyncio.get_running_loop().time(), 0.001)
        try:
            async with asyncio.timeout(timeout):
                headers = await self._request_headers()
                connection = ClientConnection(await self._dial(member, timeout), member)
                return await connection.call(
                    _METHODS[self._kind],
                    self._target,
                    (*headers.items(), ("Connection", "close")),
                    b"",
                    response_size_bytes_max=RESPONSE_SIZE_BYTES_MAX,
                )
        except TimeoutError as error:
            text = f"{member} did not answer within {timeout:.3g} s"
            raise _RetryError(text, member) from error
        except (TransportError, OSError) as error:
            raise _RetryError(f"asking {member}: {error}", member) from error
        finally:
            if connection is not None:
                connection.abort()

    async def _request_headers(self) -> Mapping[str, str]:
        headers: Mapping[str, str] = {} if self._headers is None else await self._headers()
        for name, value in headers.items():
            if not is_header(name, value):  # the value may be a credential: it is not shown
                raise ConfigError(f"the header {name!r} cannot be sent as it is")
        return headers

    def _redirected(self, response: ClientResponse, member: ServerAddress) -> ServerAddress:
        location = response.headers.get("Location") or ""
        where = printable(location) or "nowhere"
        try:
            parts = urlsplit(location)
            leader = parse_address(parts.netloc)
        except ValueError as error:
            raise self._error(
                f"{member} redirected to {where}: {error}", response.status, member
            ) from None
        path = self._target.partition("?")[0]
        # A member that a proxy serves below a prefix may know the rest of its path only.
        if not (parts.path.startswith("/") and path.endswith(parts.path)):
            raise self._error(
                f"{member} redirected to {where}, another path than {path}", response.status, member
            )
        if parts.scheme not in ("http", self._scheme):
            raise self._error(
                f"{member} redirected to {where}, but this side does not speak {parts.scheme}",
                response.status,
                member,
            )
        return leader

    def _changed(self, response: ClientResponse, member: ServerAddress) -> Changed:
        cluster = response.headers.get(CLUSTER_ID_HEADER)
        released = response.headers.get(RELEASED_HEADER)
        try:
            return Changed(
                member,
                None if cluster is None else parse_cluster_id(cluster),
                None if released is None else parse_position(released),
            )
        except ValueError as error:
            raise self._error(f"{member}: {error}", response.status, member) from None

    def _error(
        self, text: str, status: int | None, address: ServerAddress | None
    ) -> MembershipError:
        what = _WHAT[self._kind]
        return MembershipError(
            f"could not {what} server {self._id}: {text}",
            status=status,
            server_id=self._id,
            address=address,
        )


def _retry_after(response: ClientResponse) -> float:
    """Seconds of a Retry-After; its other form, a date, says less than our own pause."""
    text = (response.headers.get("Retry-After") or "").strip()
    return float(text) if text.isdecimal() and len(text) <= 6 else 0.0
