"""When a call is tried again, and what is known of it at the end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rafthttp import (
    ForwardError,
    LeadershipLostError,
    Outcome,
    OverloadedError,
    RaftError,
    SessionExpiredError,
    ShutdownError,
    TimedOutError,
    UnknownLeaderError,
)
from rafthttp.retrying import retry
from rafthttp.sessions.client import ClientSession, OnceClient
from rafthttp.sessions.envelope import HEAD, Kind

UNKNOWN = LeadershipLostError("leadership was lost")
DEFINITE = UnknownLeaderError("no leader is known")


class Script:
    """Comes to one thing after the other; the last for ever."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.calls = 0

    async def __call__(self, remaining: float) -> object:
        assert remaining > 0
        self.calls += 1
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result


async def _no_change() -> None:
    await asyncio.Event().wait()


def tried(script: Script, timeout: float = 5.0, *, ended: bool = False, **options: bool) -> object:
    return asyncio.run(
        retry(script, timeout, has_ended=lambda: ended, wait_changed=_no_change, **options)
    )


def test_a_definite_refusal_is_tried_again() -> None:
    script = Script(DEFINITE, DEFINITE, "done")
    assert tried(script) == "done"
    assert script.calls == 3


def test_an_unknown_outcome_is_tried_again_only_where_that_is_safe() -> None:
    with pytest.raises(LeadershipLostError):
        tried(Script(UNKNOWN, "done"))
    assert tried(Script(UNKNOWN, "done"), repeatable=True) == "done"
    assert tried(Script(UNKNOWN, DEFINITE, "done"), applies_once=True) == "done"


@pytest.mark.parametrize(
    ("options", "outcome"),
    [({"repeatable": True}, Outcome.DEFINITE), ({"applies_once": True}, Outcome.UNKNOWN)],
)
def test_what_was_unknown_once_stays_so_to_the_deadline(
    options: dict[str, bool], outcome: Outcome
) -> None:
    with pytest.raises(TimedOutError, match=r"not done within 0\.05 s: no leader") as caught:
        tried(Script(UNKNOWN, DEFINITE), 0.05, **options)
    assert caught.value.outcome is outcome


@pytest.mark.parametrize("last", [OverloadedError("full"), SessionExpiredError("gone")])
def test_a_refusal_that_ends_it_takes_nothing_back(last: RaftError) -> None:
    with pytest.raises(type(last), match="an earlier try may have been applied") as caught:
        tried(Script(UNKNOWN, last), applies_once=True)
    assert caught.value.outcome is Outcome.UNKNOWN
    with pytest.raises(type(last)) as caught:
        tried(Script(DEFINITE, last), applies_once=True)
    assert caught.value is last


def test_a_server_that_has_ended_is_not_waited_for() -> None:
    for first in (UNKNOWN, ShutdownError("stopped")):
        script = Script(first)
        with pytest.raises(type(first)):
            tried(script, ended=True, applies_once=True)
        assert script.calls == 1


# -- who numbers the requests


class Replicas:
    """Answers envelopes with what a script says, and keeps them."""

    def __init__(self, *results: object) -> None:
        self.kinds: list[Kind] = []
        self.sequences: list[int] = []
        self._script = Script(*results)

    async def attempt(self, envelope: bytes, timeout: float) -> Any:
        _, _, kind, _, sequence, _ = HEAD.unpack_from(envelope)
        self.kinds.append(Kind(kind))
        if kind == Kind.OPEN:
            return None
        self.sequences.append(sequence)
        return await self._script(timeout)

    async def retry(
        self, once: Callable[[float], Awaitable[Any]], timeout: float | None, **options: bool
    ) -> Any:
        return await retry(
            once, timeout or 5.0, has_ended=lambda: False, wait_changed=_no_change, **options
        )


def applied(replicas: Replicas) -> Any:
    async def main() -> Any:
        client = OnceClient(replicas.attempt, replicas.retry, 5.0)
        try:
            return await client.apply(b"", 5.0, None, None)
        finally:
            session = client._session
            assert session is None or session.span == 0

    return asyncio.run(main())


def test_a_retry_keeps_its_number() -> None:
    replicas = Replicas(ForwardError("lost"), DEFINITE, "done")
    assert applied(replicas) == "done"
    assert replicas.sequences == [1, 1, 1]


def test_an_expired_session_is_replaced_where_nothing_can_have_been_applied() -> None:
    replicas = Replicas(SessionExpiredError("gone"), "done")
    assert applied(replicas) == "done"
    assert replicas.kinds == [Kind.OPEN, Kind.REQUEST, Kind.OPEN, Kind.REQUEST]


def test_an_expired_session_behind_an_unknown_outcome_is_told() -> None:
    """Never applied twice in silence: whether the first try was is not known any more."""
    replicas = Replicas(ForwardError("lost"), SessionExpiredError("gone"), "done")
    with pytest.raises(SessionExpiredError) as caught:
        applied(replicas)
    assert caught.value.outcome is Outcome.UNKNOWN
    assert replicas.kinds == [Kind.OPEN, Kind.REQUEST, Kind.REQUEST]


def test_numbers_end_in_any_order() -> None:
    session = ClientSession(b"x" * 16)
    requests = [session.begin() for _ in range(4)]
    assert [request.sequence for request in requests] == [1, 2, 3, 4]
    for ended, lowest in ((2, 1), (0, 2), (3, 2), (1, 5)):
        session.end(requests[ended])
        assert session.lowest == lowest
    assert session.begin().lowest == 5
