"""The HTTP API over real sockets: keys of every kind, limits, errors, and who may ask."""

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import pytest

from rafthttp.kv.access import JSONLine
from rafthttp.kv.client import KVClient, ServiceError
from rafthttp.kv.commands import KEY_SIZE_BYTES_MAX

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


async def raw(url: str, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; returns status and body of the answer."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().splitlines()
            if line.startswith(b"content-length")
        )
        return status, await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def test_put_get_delete(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,), http(member) as client:
            value = bytes(range(256))
            assert (await client.get("/kv/a")).status_code == 404
            stored = await client.put("/kv/a", content=value)
            assert (stored.status_code, stored.content) == (204, b"")
            got = await client.get("/kv/a")
            assert (got.status_code, got.content) == (200, value)
            assert got.headers["content-type"] == "application/octet-stream"
            assert got.headers["etag"] == f'"{hashlib.sha256(value).hexdigest()}"'
            head = await client.head("/kv/a")
            assert (head.status_code, head.content) == (200, b"")
            assert (await client.put("/kv/a", content=b"")).status_code == 204
            assert (await client.get("/kv/a")).content == b""
            assert (await client.delete("/kv/a")).status_code == 204
            assert (await client.delete("/kv/a")).status_code == 204
            missing = await client.get("/kv/a")
            assert missing.status_code == 404
            assert missing.json() == {
                "error": "there is no such key",
                "outcome": "definite",
                "leader": {"id": "n1", "address": member.node.address},
            }
            assert (await client.patch("/kv/a")).status_code == 405

    run(scenario)


KEYS = [
    (b"a/b//c/", "a/b//c/"),
    (b"%2F", "/"),
    (b"a%2Fb", "a/b"),
    (b"%C3%A4%20%25%3F%23%26", "ä %?#&"),
    (b"%00%0A%0D%7F", "\0\n\r\x7f"),
    (b"%F0%9F%A6%80", "🦀"),
    (b"a+b", "a+b"),
    (b"..%2F%2E%2E/x", "../../x"),
    (b"kv/x", "kv/x"),
    (b"k" * KEY_SIZE_BYTES_MAX, "k" * KEY_SIZE_BYTES_MAX),
]


def test_a_key_is_the_percent_decoded_path(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,):
            for encoded, key in KEYS:
                put = b"PUT /kv/%s HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv" % encoded
                host, port = member.url.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(put)
                assert (await reader.readline()).startswith(b"HTTP/1.1 204"), key
                writer.close()
                await writer.wait_closed()
                assert member.fsm.get(key) == b"v"
                for query in (b"", b"?consistency=stale"):
                    assert await raw(member.url, get(b"/kv/" + encoded + query)) == (200, b"v"), key
            assert len(member.fsm) == len({key for _, key in KEYS})

    run(scenario)


REFUSED = [
    (b"/kv/", b"empty"),
    (b"/kv/%FF", b"UTF-8"),
    (b"/kv/%ED%A0%80", b"UTF-8"),
    (b"/kv/%", b"hexadecimal"),
    (b"/kv/%4", b"hexadecimal"),
    (b"/kv/%zz", b"hexadecimal"),
    (b"/kv/" + b"k" * (KEY_SIZE_BYTES_MAX + 1), b"at most 4096"),
    (b"/kv/a?consistency=perhaps", b"consistency"),
    (b"/kv?limit=0", b"limit"),
    (b"/kv?limit=10001", b"limit"),
    (b"/kv?limit=-1", b"limit"),
    (b"/kv?limit=many", b"limit"),
    (b"/kv?consistency=perhaps", b"consistency"),
    (b"/kv?limit=" + b"0" * 8 + b"1" + b"0" * 5, b"limit"),
    (b"/kv?limit=" + b"0" * 8 + b"1" * 5000, b"limit"),
]


def test_what_cannot_be_understood_is_400(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,):
            for path, says in REFUSED:
                status, body = await raw(member.url, get(path))
                assert status == 400, path
                assert says in body
                assert b'"outcome":"definite"' in body

    run(scenario)


def test_the_entry_limit_is_413_with_and_without_a_length(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        limit = 1000
        config = {"entry_size_bytes_max": limit}
        async with services(config=config) as (member,), http(member) as client:
            room = limit - 40 - 4 - len("key")
            assert (await client.put("/kv/key", content=b"x" * room)).status_code == 204
            over = await client.put("/kv/key", content=b"y" * (room + 1))
            assert over.status_code == 413
            assert over.json()["outcome"] == "definite"

            async def chunks() -> Any:
                for _ in range(20):
                    yield b"z" * 100

            assert (await client.put("/kv/key", content=chunks())).status_code == 413
            assert (await client.get("/kv/key")).content == b"x" * room

    run(scenario)


def test_bodies_are_bounded_all_together(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        config = {"pending_bytes_max": 1000}
        async with services(config=config) as (member,), http(member) as client:
            begun, gate = asyncio.Event(), asyncio.Event()

            async def slow() -> Any:
                yield b"x" * 600
                begun.set()
                await gate.wait()

            first = asyncio.create_task(client.put("/kv/first", content=slow()))
            await begun.wait()
            refused = None
            while refused is None or refused.status_code == 204:  # until the server has read it
                refused = await client.put("/kv/second", content=b"y" * 600)
            assert refused.status_code == 503
            assert refused.json()["outcome"] == "definite"
            gate.set()
            assert (await first).status_code == 204
            assert (await client.put("/kv/second", content=b"y" * 600)).status_code == 204

    run(scenario)


def test_lists_come_in_pages(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,), http(member) as client:
            for number in range(5):
                await client.put(f"/kv/p/{number}", content=b"x" * number)
            await client.put("/kv/other", content=b"")
            page = (await client.get("/kv", params={"prefix": "p/", "limit": "2"})).json()
            assert page == {
                "prefix": "p/",
                "keys": [{"key": "p/0", "size": 0}, {"key": "p/1", "size": 1}],
                "next": "p/1",
            }
            params = {"prefix": "p/", "limit": "3", "after": page["next"]}
            page = (await client.get("/kv", params=params)).json()
            assert [item["key"] for item in page["keys"]] == ["p/2", "p/3", "p/4"]
            assert page["next"] is None
            everything = (await client.get("/kv", params={"consistency": "stale"})).json()
            assert len(everything["keys"]) == 6

    run(scenario)


def test_any_member_answers_and_the_write_is_read_everywhere(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        async with services(3) as members:
            for number in range(12):
                writer, reader = members[number % 3], members[(number + 1) % 3]
                async with http(writer) as client:
                    answer = await client.put("/kv/k", content=b"%d" % number)
                    assert answer.status_code == 204
                async with http(reader) as client:
                    assert (await client.get("/kv/k")).content == b"%d" % number

    run(scenario)


def test_without_a_quorum_reads_are_503_writes_504_and_stale_reads_go_on(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        async with services(2, timeout=0.7) as (n1, n2), http(n1) as client:
            assert (await client.put("/kv/k", content=b"v")).status_code == 204
            assert n1.node.leader.id == "n1"
            await n2.node.raft.shutdown()
            lost = await client.put("/kv/k", content=b"w")
            assert lost.status_code == 504
            assert lost.json()["outcome"] == "unknown"
            for answer in (
                await client.get("/kv/k"),
                await client.get("/kv"),
                await client.put("/kv/k", content=b"never proposed"),
            ):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["outcome"] == "definite"
                assert answer.json()["leader"] is None
            assert (await client.get("/kv/k?consistency=stale")).content == b"v"
            assert (await client.get("/healthz")).json() == {"healthy": True, "leader_known": False}
            async with http(n2) as other:
                assert (await other.get("/healthz")).status_code == 503

    run(scenario)


def test_status_has_what_people_and_programs_ask_for(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services(2) as (n1, n2), http(n2) as client:
            assert (await client.get("/kv")).status_code == 200  # everything committed is here
            status = (await client.get("/status")).json()
            assert status["id"] == "n2"
            assert status["address"] == n2.node.address
            assert status["state"] == "follower"
            assert status["term"] == n1.node.raft.current_term
            assert status["leader"] == {"id": "n1", "address": n1.node.address}
            assert status["commit_index"] == status["applied_index"] == status["last_index"] > 0
            assert status["servers"] == [
                {"id": "n1", "address": n1.node.address, "suffrage": "voter"},
                {"id": "n2", "address": n2.node.address, "suffrage": "voter"},
            ]
            assert status["cluster_id"] == n1.node.cluster_id

    run(scenario)


def test_the_description_names_every_route(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,), http(member) as client:
            described = (await client.get("/openapi.json")).json()
            assert described["openapi"].startswith("3.")
            routes = {"/kv/{key}", "/kv", "/sessions", "/status", "/healthz", "/leave", "/transfer"}
            assert set(described["paths"]) == routes
            status = (await client.get("/status")).json()
            schema = described["components"]["schemas"]["Status"]
            assert set(schema["required"]) <= set(status)

    run(scenario)


def test_a_token_guards_all_but_health(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services(token="s3cret") as (member,):
            for given in (None, "Bearer wrong", "Basic s3cret", "Bearer", "Bearer s3cret2"):
                headers = {} if given is None else {"Authorization": given}
                async with http(member, headers=headers) as client:
                    for path in ("/kv/a", "/kv", "/status", "/openapi.json"):
                        answer = await client.get(path)
                        assert answer.status_code == 401
                        assert answer.headers["www-authenticate"] == "Bearer"
                    assert (await client.post("/leave")).status_code == 401
                    assert (await client.post("/transfer")).status_code == 401
                    assert (await client.get("/healthz")).status_code == 200
            async with http(member, headers={"Authorization": "bearer  s3cret"}) as client:
                assert (await client.get("/status")).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("networks", "headers", "status"),
    [
        (["127.0.0.0/8"], {}, 200),
        (["::1/128", "127.0.0.1/32"], {}, 200),
        (["10.0.0.0/8"], {}, 403),
        (["127.0.0.0/8"], {"X-Forwarded-For": "127.0.0.1"}, 403),
        (["127.0.0.0/8"], {"Forwarded": "for=127.0.0.1"}, 403),
        (["127.0.0.0/8"], {"Via": "1.1 proxy"}, 403),
    ],
)
def test_networks_guard_all_but_health(
    run: Run, services: Any, http: Any, networks: list[str], headers: dict[str, str], status: int
) -> None:
    async def scenario() -> None:
        allow = [ip_network(network) for network in networks]
        async with services(allow=allow) as (member,), http(member, headers=headers) as client:
            assert (await client.get("/status")).status_code == status
            assert (await client.get("/healthz")).status_code == 200

    run(scenario)


def test_pages_of_other_sites_may_not_change_anything(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services() as (member,):
            async with http(member, headers={"Origin": "https://evil.example"}) as client:
                assert (await client.put("/kv/a", content=b"x")).status_code == 403
                assert (await client.delete("/kv/a")).status_code == 403
                assert (await client.post("/leave")).status_code == 403
            async with http(member, headers={"Origin": member.url}) as client:
                assert (await client.put("/kv/a", content=b"x")).status_code == 204

    run(scenario)


def test_leaving_calls_back_and_a_refusal_does_not(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        left: list[bool] = []
        async with services(2, on_leave=lambda: left.append(True)) as (n1, n2):
            async with http(n2) as client:
                answer = await client.post("/leave")
                assert (answer.status_code, answer.json()) == (200, {"id": "n2", "left": True})
            assert left == [True]
            assert [s.id for s in n1.node.raft.get_configuration().configuration] == ["n1"]
            async with http(n1) as client:
                refused = await client.post("/leave")
                assert refused.status_code == 409
                assert "just stop it" in refused.json()["error"]
            assert left == [True]

    run(scenario)


def test_leadership_is_transferred_on_request(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services(2) as (n1, n2):
            async with http(n1) as client:
                answer = await client.post("/transfer", params={"to": "n2"})
                assert answer.status_code == 200
                assert answer.json() == {"leader": {"id": "n2", "address": n2.node.address}}
                again = await client.post("/transfer", params={"to": "n1"})
                assert (again.status_code, again.json()["outcome"]) == (503, "definite")
                assert again.json()["leader"]["id"] == "n2"
            async with KVClient([n1.url]) as client:
                with pytest.raises(ServiceError, match="itself"):
                    await client.transfer("n2")
                assert (await client.transfer())["id"] == "n1"

    run(scenario)


def test_leadership_goes_to_nobody_who_is_no_voter(run: Run, services: Any, http: Any) -> None:
    async def scenario() -> None:
        async with services(2) as members:
            for member, name in itertools.product(members, ("n9", "", "\0")):
                async with http(member) as client:
                    answer = await client.post("/transfer", params={"to": name})
                    assert answer.status_code == 400, (name, answer.text)
                    assert "no voter" in answer.json()["error"]

    run(scenario)


def test_a_node_that_stops_lets_another_lead_first(run: Run, services: Any) -> None:
    async def scenario() -> None:
        async with services(3) as (n1, n2, n3):
            term = n1.node.raft.current_term
            raft = n1.node.raft
            await n1.node.stop()
            assert raft.current_term > term  # it had stepped down before it stopped
            async with KVClient([n2.url, n3.url], discover=False) as client:
                await client.put("k", b"v")

    run(scenario)


def test_a_client_that_goes_away_in_its_body_harms_nobody(
    run: Run, services: Any, http: Any
) -> None:
    async def scenario() -> None:
        async with services() as (member,):
            host, port = member.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PUT /kv/half HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            async with http(member) as client:
                assert (await client.put("/kv/whole", content=b"x")).status_code == 204
                assert (await client.get("/kv/half")).status_code == 404

    run(scenario)


def test_names_that_are_no_unicode_can_be_told() -> None:
    """An id off the wire is bytes; those that are no UTF-8 stand as lone surrogates."""
    assert JSONLine({"id": "é\udcff"}).body == '{"id":"é\\udcff"}\n'.encode()
