"""`Idempotency-Key`: the header's forms, what the service does with it, and the client's use."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp import ClientSession, SessionRequest
from rafthttp.kv.client import KVClient
from rafthttp.kv.idempotency import HEADER, IdempotencyKeyError, parse, render

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
ID = bytes(range(16))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255))
def test_a_key_comes_back_as_it_went(key: str) -> None:
    assert parse([render(key)]) == key


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
def test_a_numbered_request_comes_back_as_it_went(one: int, other: int) -> None:
    request = SessionRequest(ID, max(one, other), min(one, other))
    assert parse([render(request)]) == request


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        (['"key"'], "key"),
        (["8e03978e-40d5-43dd-bc93-6894a57f9324"], "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        (['"a key";other=1'], "a key"),
        ([f'"{ID.hex()}"; seq=7; low=3'], SessionRequest(ID, 7, 3)),
    ],
)
def test_both_forms_are_understood(values: list[str], key: str | SessionRequest | None) -> None:
    assert parse(values) == key


@pytest.mark.parametrize(
    "value",
    [
        *("", '""', '"a', 'a"', '"ä"', "a b", "a,b", '"a","b"', "k" * 256, '"a";seq=1'),
        f'"{ID.hex()}";seq=7',
        f'"{ID.hex()}";low=3;seq=2',
        f'"{ID.hex()}";seq=x;low=1',
        '"key";seq=7;low=3',
        f'"{ID.hex()}";low=3;x=7',
        f'"{ID.hex()}";seq=7;x=7',
    ],
)
def test_what_cannot_be_understood_is_refused(value: str) -> None:
    with pytest.raises(IdempotencyKeyError):
        parse([value])


def test_two_of_them_are_refused() -> None:
    with pytest.raises(IdempotencyKeyError, match="more than once"):
        parse(['"a"', '"a"'])


def test_a_repeat_does_not_undo_what_was_written_in_between(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        async with services() as (member,), http(member) as client:
            first = {HEADER: '"first"'}
            assert (await client.put("/kv/a", content=b"1", headers=first)).status_code == 204
            assert (await client.put("/kv/a", content=b"2")).status_code == 204
            assert (await client.put("/kv/a", content=b"1", headers=first)).status_code == 204
            assert (await client.get("/kv/a")).content == b"2"
            other = await client.put("/kv/a", content=b"3", headers=first)
            assert other.status_code == 422
            assert other.json()["outcome"] == "definite"
            assert (await client.delete("/kv/a", headers=first)).status_code == 422
            assert (await client.put("/kv/a", headers={HEADER: "a b"})).status_code == 400
            twice = [(HEADER, '"a"'), (HEADER, '"b"')]
            assert (await client.put("/kv/a", headers=twice)).status_code == 400
            assert (await client.get("/kv/a")).content == b"2"

    run(scenario)


def test_a_session_numbers_its_writes(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,), http(member) as client:
            opened = await client.post("/sessions")
            assert opened.status_code == 201
            session = ClientSession(bytes.fromhex(opened.json()["session"]))
            first, second = session.begin(), session.begin()
            for request, value in ((second, b"2"), (first, b"1"), (second, b"2"), (first, b"1")):
                headers = {HEADER: render(request)}
                answer = await client.put("/kv/a", content=value, headers=headers)
                assert answer.status_code == 204
            assert (await client.get("/kv/a")).content == b"1"
            unknown = {HEADER: render(SessionRequest(b"x" * 16, 1, 1))}
            refused = await client.delete("/kv/a", headers=unknown)
            assert refused.status_code == 410
            assert refused.json()["outcome"] == "definite"
            assert (await client.get("/kv/a")).content == b"1"

    run(scenario)


def test_without_sessions_the_header_is_refused_and_the_client_does_without(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        async with services(sessions=False) as (member,), http(member) as client:
            headers = {HEADER: '"key"'}
            assert (await client.put("/kv/a", headers=headers)).status_code == 501
            assert (await client.post("/sessions")).status_code == 501
            async with KVClient([member.url]) as kv:
                for value in (b"1", b"2"):
                    await kv.put("a", value)
                    assert await kv.get("a") == value
            assert member.node.raft.last_index == 4

    run(scenario)


def test_the_client_opens_a_session_for_more_than_one_write(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services(size=2) as members, KVClient([members[1].url]) as client:
            before = members[0].node.raft.last_index
            await client.put("a", b"1")
            assert members[0].node.raft.last_index == before + 1  # a key, and no session
            await asyncio.gather(*(client.put(f"k{number}", b"v") for number in range(50)))
            assert members[0].node.raft.last_index == before + 1 + 51
            session = client._numbering._session
            assert session is not None
            assert session.span == 0

    run(scenario)


def test_the_client_opens_another_session_where_its_own_is_forgotten(
    run: Run, services: Any
) -> None:
    async def scenario() -> None:
        async with services() as (member,), KVClient([member.url]) as client:
            await client.put("a", b"1")
            await client.put("a", b"2")
            client._numbering._session = ClientSession(b"forgotten" + bytes(7))
            await client.put("a", b"3")
            assert await client.get("a") == b"3"

    run(scenario)
