"""The answers to join and leave, by the table, over sockets."""

from __future__ import annotations

import pytest

from rafthttp.http.handler import Handler
from rafthttp.http.membership import ChangeKind
from rafthttp.raft.errors import (
    ConfigurationChangeError,
    DifferentLeaderError,
    LeadershipLostError,
    LeadershipTransferError,
    NotLeaderError,
    RaftHttpError,
    ShutdownError,
    StorageFailedError,
    TimedOutError,
    UnknownLeaderError,
)
from rafthttp.raft.types import Leader, ServerAddress, ServerID
from rafthttp.testing.http import ServerKind, raw_connection, until

N2 = Leader(ServerID("n2"), ServerAddress("127.0.0.1:2"))

TABLE: list[tuple[RaftHttpError | None, int, bytes]] = [
    (None, 200, b""),
    (DifferentLeaderError("x", leader=N2), 308, b""),
    (NotLeaderError("x", leader=N2), 308, b""),
    (UnknownLeaderError("no leader"), 503, b"no leader"),
    (NotLeaderError("no leader"), 503, b"no leader"),
    (LeadershipLostError("lost"), 503, b"lost"),
    (LeadershipTransferError("transfer"), 503, b"transfer"),
    (TimedOutError("slow"), 503, b"slow"),
    (ShutdownError("closed"), 503, b"closed"),
    (StorageFailedError("disk"), 503, b"disk"),
    (ConfigurationChangeError("refused"), 403, b"refused"),
    (RaftHttpError("internal error"), 500, b"internal error"),
]


@pytest.mark.parametrize(("error", "status", "text"), TABLE)
@pytest.mark.parametrize(
    ("method", "query"),
    [(b"POST", b"id=n%2D9&address=127.0.0.1%3A9"), (b"DELETE", b"id=n%2D9")],
)
def test_answers(
    on_loop: ServerKind,
    error: RaftHttpError | None,
    status: int,
    text: bytes,
    method: bytes,
    query: bytes,
) -> None:
    async def main() -> None:
        handler = Handler()
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(method + b" /raft?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            change = await anext(handler.requests())
            assert change.id == "n-9"
            assert change.address == ("127.0.0.1:9" if method == b"POST" else None)
            assert change.kind is (ChangeKind.JOIN if method == b"POST" else ChangeKind.LEAVE)
            if error is None:
                change.respond()
            else:
                change.fail(error)
            got, headers, body = await raw.response()
            assert got == status
            assert text in body
            assert (body == b"") == (status == 200)
            assert ("retry-after" in headers) == (status == 503)
            if status == 308:
                assert headers["location"] == f"http://127.0.0.1:2/raft?{query.decode()}"

    on_loop.run(main)


def test_the_answers_are_the_same_behind_every_server(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(cluster_id="c1")
        async with kind.serve(handler) as port:
            for error, status, text in TABLE[:4]:
                async with raw_connection(port) as raw:
                    raw.send(b"DELETE /raft?id=n9&x=%20 HTTP/1.1\r\nHost: x\r\n\r\n")
                    change = await anext(handler.requests())
                    change.respond() if error is None else change.fail(error)
                    got, headers, body = await raw.response()
                    assert got == status
                    assert text in body
                    assert headers.get("raft-cluster-id") == ("c1" if status == 200 else None)
                    if status == 308:
                        assert headers["location"] == "http://127.0.0.1:2/raft?id=n9&x=%20"

    kind.run(main)


AGAINST_THE_GRAMMAR: list[tuple[bytes, bytes, bytes]] = [
    (b"POST", b"", b"no server ID provided"),
    (b"POST", b"?address=a:1", b"no server ID provided"),
    (b"POST", b"?id=&address=a:1", b"no server ID provided"),
    (b"DELETE", b"", b"no server ID provided"),
    (b"POST", b"?id=n1", b"no server address provided"),
    (b"POST", b"?id=n1&address=", b"no server address provided"),
    (b"POST", b"?id=n1&address=evil", b"the server address is not HOST:PORT"),
    (b"POST", b"?id=n1&address=a%0d%0a:1", b"the host of the server address"),
    (b"POST", b"?id=n%0d%0aX:y&address=a:1", b"has a character that is not allowed"),
    (b"POST", b"?id=n%00&address=a:1", b"has a character that is not allowed"),
    (b"POST", b"?id=a%26address=evil:1&address=a:1", b"has a character that is not allowed"),
    (b"POST", b"?id=a&address=evil:1&address=a:1", b"a field stands twice"),
    (b"POST", b"?id=a&id=b&address=a:1", b"a field stands twice"),
    (b"POST", b"?id=%ff&address=a:1", b"malformed query"),
    (b"POST", b"?" + b"&".join([b"a%d=b" % i for i in range(20)]), b"malformed query"),
    (b"DELETE", b"?id=" + b"a" * 300, b"the server ID has 300 characters"),
    (b"DELETE", b"?id=" + b"a" * 5000, b"the query has 5003 characters"),
    (b"DELETE", b"?id=" + b"a" * (1 << 20), b""),
    (b"POST", b"?id=n1&address=" + b"a" * (1 << 20), b""),
    (b"DELETE", b"?id=a\0b", b""),
]


def test_ids_and_addresses_against_the_grammar(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port:
            for method, query, text in AGAINST_THE_GRAMMAR:
                async with raw_connection(port) as raw:
                    raw.send(method + b" /raft" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    head = await raw.head()
                    assert head.startswith(b"HTTP/1.1 400 "), query[:99]
                    assert text in await raw.rest(), query[:99]
        assert not handler._requests._items

    kind.run(main)


def test_nobody_handles_requests(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(timeout=0.05, requests_max=1)
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n\r\n")
            status, headers, _ = await raw.response()
            assert (status, headers["retry-after"]) == (503, "1")
        assert not handler._requests._items

    on_loop.run(main)


def test_too_many_requests_wait(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(requests_max=1)
        async with (
            on_loop.serve(handler) as port,
            raw_connection(port) as first,
            raw_connection(port) as second,
        ):
            first.send(b"DELETE /raft?id=n8 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: handler._requests._items)
            second.send(b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await second.response())[0] == 503
            (await anext(handler.requests())).respond()
            assert (await first.response())[0] == 200

    on_loop.run(main)
