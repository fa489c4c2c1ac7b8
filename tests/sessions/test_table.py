"""The rules of the table: what is remembered, what is forgotten, and what is refused."""

from typing import Any

import msgpack
import pytest

from rafthttp import (
    Outcome,
    OverloadedError,
    RemoteApplyError,
    RequestReusedError,
    SessionExpiredError,
    SessionFormatError,
    SessionRequest,
)
from rafthttp.sessions import answers, envelope, table

ID = b"a" * 16
OTHER = b"b" * 16
HOUR = 3600


def req(sequence: int, lowest: int = 1, value: Any = "value", client: bytes = ID) -> bytes:
    return envelope.numbered(SessionRequest(client, sequence, lowest), msgpack.packb(value))


def once(key: str, value: Any = None, payload: bytes | None = None) -> bytes:
    return envelope.once(key, payload, msgpack.packb(value))


def test_a_duplicate_gets_the_remembered_answer_and_is_not_applied(replica: Any) -> None:
    """The reply was lost, the client asks again."""
    assert replica.apply(envelope.opening(ID)) is None
    assert replica.apply(req(1, value=[1, b"x", {"k": None}])) == [1, b"x", {"k": None}]
    assert replica.apply(req(1, value="another")) == [1, b"x", {"k": None}]
    assert len(replica.inner.commands) == 1


def test_a_duplicate_within_one_batch_is_applied_once(replica: Any) -> None:
    logs = [
        replica.log(data)
        for data in (
            envelope.opening(ID),
            req(1, value=[5]),
            b"\x07",
            req(1),
            once("k", 8),
            once("k", 9),
        )
    ]
    assert replica.fsm.apply_batch(logs) == [None, [5], 7, [5], 8, 8]
    assert replica.inner.commands == [b"\x91\x05", b"\x07", b"\x08"]


def test_requests_of_one_client_may_overtake_each_other(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    for sequence in (5, 2, 9, 1):
        assert replica.apply(req(sequence, value=sequence)) == sequence
    for sequence in (1, 9, 2, 5):
        assert replica.apply(req(sequence)) == sequence


def test_an_answer_is_dropped_once_it_is_acknowledged(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    for sequence in (1, 2, 3):
        replica.apply(req(sequence, value=sequence))
    assert replica.apply(req(4, lowest=3)) == "value"
    late = replica.apply(req(2))
    assert isinstance(late, SessionExpiredError)
    assert late.outcome is Outcome.DEFINITE
    assert replica.apply(req(3)) == 3
    assert len(replica.inner.commands) == 4


def test_a_lowest_far_ahead_costs_no_time(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    replica.apply(req(1))
    last = (1 << 64) - 1
    assert replica.apply(req(last, lowest=last)) == "value"
    assert isinstance(replica.apply(req(1)), SessionExpiredError)


@pytest.mark.parametrize("answer", ["x" * 16384, b"x" * 16384, ["x" * 16384], {(1, 2): 3}])
def test_what_cannot_be_kept_is_still_applied_once(replica: Any, answer: Any) -> None:
    def respond(_: bytes) -> Any:
        return answer

    replica.inner.respond = respond
    replica.apply(envelope.opening(ID))
    assert replica.apply(req(1)) == answer
    again = replica.apply(req(1))
    assert isinstance(again, RemoteApplyError)
    assert "applied, once" in str(again)


def test_what_msgpack_has_no_form_for_is_still_applied_once(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    data = envelope.numbered(SessionRequest(ID, 1, 1), b"object")
    assert type(replica.apply(data)) is object
    assert isinstance(replica.apply(data), RemoteApplyError)
    assert replica.inner.commands == [b"object"]


def test_an_exception_is_an_answer_too(replica: Any) -> None:
    data = envelope.once("key", None, b"raise")
    assert isinstance(replica.apply(data), KeyError)
    again = replica.apply(data)
    assert isinstance(again, RemoteApplyError)
    assert str(again) == "KeyError: 'raise'"
    with pytest.raises(RemoteApplyError, match="KeyError"):
        replica.fsm.apply(replica.log(data))
    assert len(replica.inner.commands) == 1


def test_a_request_without_a_session_is_never_applied(replica: Any) -> None:
    refused = replica.apply(req(1))
    assert isinstance(refused, SessionExpiredError)
    assert refused.outcome is Outcome.DEFINITE
    assert replica.inner.commands == []


def test_a_session_lives_an_hour_after_its_last_use(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    replica.apply(envelope.opening(OTHER))
    for minute in range(1, 120):
        replica.apply(req(minute), at=minute * 60)
    assert replica.apply(req(119), at=HOUR * 2) == "value"
    assert isinstance(replica.apply(req(1, client=OTHER), at=HOUR * 2), SessionExpiredError)
    for minute in range(61):
        replica.apply(envelope.plain(envelope.MAGIC + b"\0"), at=HOUR * 2 + minute * 60)
    assert replica.apply(req(119), at=HOUR * 3) == "value"
    for minute in range(62):
        replica.apply(once(f"k{minute}"), at=HOUR * 3 + minute * 60)
    assert isinstance(replica.apply(req(119), at=HOUR * 4 + 61), SessionExpiredError)


def test_a_clock_a_year_ahead_moves_time_by_a_minute(replica: Any) -> None:
    replica.apply(envelope.opening(ID))
    replica.apply(req(1), at=1)
    assert replica.apply(req(1), at=365 * 24 * HOUR) == "value"
    replica.apply(once("k"), at=2)  # the next leader's clock is right again
    replica.apply(once("l"), at=3)
    assert replica.fsm._table.clock_ns == 62_000_000_000
    for odd in (None, 0, -1, 9_214_646_400 * 10**9, 1 << 70):
        replica.fsm.apply_batch([replica.log(once("m"), odd)])
    assert replica.fsm._table.clock_ns == 62_000_000_000


def test_a_key_is_remembered_for_a_day(replica: Any) -> None:
    assert replica.apply(once("key", 1)) == 1
    for minute in range(24 * 60 + 1):
        replica.apply(envelope.opening(ID), at=minute * 60)
    assert replica.apply(once("key", 2), at=24 * HOUR) == 1
    assert replica.apply(once("key", 3), at=24 * HOUR + 1) == 3


def test_another_request_under_the_same_key_is_refused(replica: Any) -> None:
    assert replica.apply(once("key", 1, b"one")) == 1
    assert replica.apply(once("key", 2, b"one")) == 1
    assert replica.apply(once("key", 2)) == 1
    refused = replica.apply(once("key", 2, b"two"))
    assert isinstance(refused, RequestReusedError)
    assert refused.outcome is Outcome.DEFINITE
    assert len(replica.inner.commands) == 1


def test_a_young_key_is_not_forgotten_for_a_new_one(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "KEYS_SIZE_BYTES_MAX", 3 * (256 + 1))
    for number in range(3):
        assert replica.apply(once(f"k{number}", number)) == number
    assert isinstance(replica.apply(once("k3", 3), at=60), OverloadedError)
    assert replica.apply(once("k0")) == 0
    for minute in range(1, 12):
        replica.apply(envelope.opening(ID), at=minute * 60)
    assert replica.apply(once("k3", 3), at=11 * 60) == 3
    assert replica.apply(once("k1")) == 1
    assert replica.apply(once("k0", 9), at=11 * 60) == 9  # it had made room


def test_the_session_used_longest_ago_makes_room(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SESSIONS_SIZE_BYTES_MAX", 2 * 512)
    replica.apply(envelope.opening(ID))
    replica.apply(envelope.opening(OTHER))
    replica.apply(envelope.opening(ID))
    replica.apply(envelope.opening(b"c" * 16))
    assert replica.apply(req(1)) == "value"
    assert isinstance(replica.apply(req(1, client=OTHER)), SessionExpiredError)


def test_a_session_that_acknowledges_nothing_is_held_up(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SESSION_SIZE_BYTES_MAX", 512 + 2 * (128 + 1))
    replica.apply(envelope.opening(ID))
    assert replica.apply(req(1, value=1)) == 1
    assert replica.apply(req(2, value=2)) == 2
    assert isinstance(replica.apply(req(3, value=3)), OverloadedError)
    assert replica.apply(req(2)) == 2
    assert replica.apply(req(3, lowest=2, value=3)) == 3


@pytest.mark.parametrize(
    "data",
    [
        envelope.MAGIC,
        envelope.opening(ID)[:-1],
        envelope.MAGIC + b"\x02" + req(1)[7:],
        envelope.MAGIC + b"\x01\x04" + req(1)[8:],
    ],
)
def test_what_is_no_envelope_of_this_version_changes_nothing(replica: Any, data: bytes) -> None:
    before = replica.image()
    assert isinstance(replica.apply(data), SessionFormatError)
    assert replica.image() == before


def test_commands_without_an_envelope_are_applied_as_they_come(replica: Any) -> None:
    assert replica.fsm.apply_batch([replica.log(b"\x01"), replica.log(b"\x01")]) == [1, 1]
    assert replica.fsm.apply(replica.log(b"\x02")) == 2
    assert replica.inner.commands == [b"\x01", b"\x01", b"\x02"]


def test_a_command_that_looks_like_an_envelope_reaches_the_state_machine(replica: Any) -> None:
    odd = b"raise" + envelope.MAGIC
    replica.inner.respond = bytes.upper
    assert replica.apply(envelope.plain(envelope.MAGIC + odd)) == (envelope.MAGIC + odd).upper()


def test_the_text_of_an_exception_is_cut(replica: Any) -> None:
    remembered = answers.Encoder().encode(ValueError("é" * 20_000))
    assert len(remembered) == 1 + answers.ANSWER_SIZE_BYTES_MAX
    assert str(answers.decode(remembered)).startswith("ValueError: é")
