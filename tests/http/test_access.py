"""Who may: the built-in rules, and that every purpose asks them before it acts."""

from __future__ import annotations

import asyncio

import pytest

from rafthttp.http.access import (
    Authorize,
    PeerInfo,
    Principal,
    Purpose,
    Refusal,
    allow_cidrs,
    allow_everybody,
    allow_loopback,
    bearer_token,
    require_all,
    token_headers,
)
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import ForwardRequest, Handler
from rafthttp.http.layer import Layer
from rafthttp.http.messages import ForwardResponse, Headers
from rafthttp.raft.errors import ConfigError, MembershipError, PeerUnreachableError
from rafthttp.raft.types import ServerAddress, ServerID
from rafthttp.testing.http import ServerKind, raw_connection, uvicorn_server

FORWARDED = [
    ("Forwarded", "for=127.0.0.1"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("x-forwarded-proto", "https"),
    ("X-Forwarded-Anything", ""),
    ("X-Real-IP", "127.0.0.1"),
    ("Via", "1.1 proxy"),
]


def peer(client: str | None, *headers: tuple[str, str]) -> PeerInfo:
    address = None if client is None else (client, 4711)
    return PeerInfo(Purpose.STREAM, Headers(headers), address, None, "/raft")


def may(rule: Authorize, who: PeerInfo) -> bool:
    async def ask() -> bool:
        return isinstance(await rule(who), Principal)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("localhost", False),
        ("", False),
        (None, False),
    ],
)
def test_the_default_lets_in_loopback_sockets_only(client: str | None, expected: bool) -> None:
    assert may(allow_loopback, peer(client)) is expected


@pytest.mark.parametrize("header", FORWARDED)
def test_an_address_behind_a_proxy_proves_nothing(header: tuple[str, str]) -> None:
    assert not may(allow_loopback, peer("127.0.0.1", header))
    assert not may(allow_cidrs(["127.0.0.0/8"]), peer("127.0.0.1", header))
    assert may(bearer_token("t"), peer("127.0.0.1", header, ("Authorization", "Bearer t")))


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::7", True),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("11.0.0.0", False),
        ("127.0.0.1", False),
        ("::1", False),
        (None, False),
    ],
)
def test_networks(client: str | None, expected: bool) -> None:
    assert may(allow_cidrs(["10.0.0.0/8", "fd00::/8", "192.0.2.1"]), peer(client)) is expected


@pytest.mark.parametrize("networks", [[], ["10.0.0.1/8"], ["nonsense"], ["10.0.0.0/8", "::/200"]])
def test_networks_that_are_none(networks: list[str]) -> None:
    with pytest.raises(ConfigError, match="network"):
        allow_cidrs(networks)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["Bearer s3cret"], True),
        (["bearer s3cret"], True),
        (["Bearer  s3cret "], True),
        (["Bearer s3cre"], False),
        (["Bearer s3cret2"], False),
        (["Bearer"], False),
        (["Bearer "], False),
        (["Basic s3cret"], False),
        (["s3cret"], False),
        (["Bearer s3cret\xe9"], False),
        (["Bearer s3cret", "Bearer s3cret"], False),
        ([], False),
    ],
)
def test_tokens(shown: list[str], expected: bool) -> None:
    headers = [("Authorization", value) for value in shown]
    assert may(bearer_token("s3cret"), peer("203.0.113.1", *headers)) is expected


@pytest.mark.parametrize("token", ["", "a b", "a\n", "ä", "\x00"])
def test_tokens_that_are_none(token: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        bearer_token(token)
    with pytest.raises(ConfigError, match="token"):
        token_headers(token)


def test_rules_together() -> None:
    both = require_all(bearer_token("t"), allow_cidrs(["10.0.0.0/8"]))
    shown = ("Authorization", "Bearer t")
    assert may(both, peer("10.0.0.1", shown))
    assert not may(both, peer("10.0.0.1"))
    assert not may(both, peer("11.0.0.1", shown))
    assert may(allow_everybody, peer(None))
    assert may(allow_everybody, peer("203.0.113.1"))
    with pytest.raises(ConfigError, match="no rule"):
        require_all()


def test_headers_do_not_show_their_values() -> None:
    assert "s3cret" not in repr(peer("10.0.0.1", ("Authorization", "Bearer s3cret")))


REQUESTS = {
    Purpose.STREAM: b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\n",
    Purpose.JOIN: b"POST /raft?id=n9&address=127.0.0.1:9 HTTP/1.1\r\nHost: x\r\n",
    Purpose.LEAVE: b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n",
    Purpose.FORWARD: b"PUT /raft?op=apply HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n",
}


async def never(request: ForwardRequest) -> ForwardResponse:
    raise AssertionError("not authorised")


def test_every_purpose_asks_first(kind: ServerKind) -> None:
    async def main() -> None:
        asked: list[PeerInfo] = []

        async def refuse(who: PeerInfo) -> Principal | Refusal:
            asked.append(who)
            return Refusal("not you")

        handler = Handler(authorize=refuse, forward=never)
        async with kind.serve(handler) as port:
            for purpose in Purpose:
                async with raw_connection(port) as raw:
                    raw.send(REQUESTS[purpose] + b"X-Y: z\r\n\r\n")
                    status, headers, body = await raw.response()
                    assert (status, body) == (401, b"not you\n")
                    assert headers["www-authenticate"] == "Bearer"
                    who = asked.pop()
                    assert not asked
                    assert who.purpose is purpose
                    assert who.client is not None
                    assert who.client == raw.writer.get_extra_info("sockname")
                    assert who.headers.get("x-y") == "z"
                    assert who.path == "/raft"
                    assert who.certificate is None
        assert not handler._upgrades._items
        assert not handler._requests._items

    kind.run(main)


def test_by_default_no_proxy_may(kind: ServerKind) -> None:
    async def main() -> None:
        async with kind.serve(Handler(forward=never)) as port:
            for purpose in Purpose:
                for name, value in FORWARDED:
                    async with raw_connection(port) as raw:
                        raw.send(REQUESTS[purpose] + f"{name}: {value}\r\n\r\n".encode())
                        assert (await raw.response())[0] == 401, (purpose, name)

    kind.run(main)


def test_web_pages_never_may(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(authorize=allow_everybody, forward=never)
        async with kind.serve(handler) as port:
            for purpose in Purpose:
                async with raw_connection(port) as raw:
                    raw.send(REQUESTS[purpose] + b"Origin: http://127.0.0.1\r\n\r\n")
                    status, _, body = await raw.response()
                    assert (status, body) == (403, b"requests from web pages are refused\n")

    kind.run(main)


@pytest.mark.parametrize("purpose", Purpose)
def test_a_rule_that_fails_refuses(
    on_loop: ServerKind, purpose: Purpose, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(who: PeerInfo) -> Principal | Refusal:
        raise ZeroDivisionError

    async def main() -> None:
        handler = Handler(authorize=fail, forward=never)
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(REQUESTS[purpose] + b"\r\n")
            assert (await raw.response())[0] == 500

    on_loop.run(main)
    assert "ZeroDivisionError" in caplog.text


def test_a_rule_that_hangs_refuses(on_loop: ServerKind) -> None:
    async def hang(who: PeerInfo) -> Principal | Refusal:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        handler = Handler(timeout=0.05, authorize=hang)
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(REQUESTS[Purpose.STREAM] + b"\r\n")
            assert (await raw.response())[0] == 503

    on_loop.run(main)


def test_a_rule_may_say_403(on_loop: ServerKind) -> None:
    async def refuse(who: PeerInfo) -> Principal | Refusal:
        return Refusal("never", status=403)

    async def main() -> None:
        async with on_loop.serve(Handler(authorize=refuse)) as port, raw_connection(port) as raw:
            raw.send(REQUESTS[Purpose.STREAM] + b"\r\n")
            status, headers, _ = await raw.response()
            assert status == 403
            assert "www-authenticate" not in headers

    on_loop.run(main)


@pytest.mark.parametrize("token", ["right", "wrong", None])
def test_a_layers_token(kind: ServerKind, token: str | None) -> None:
    async def main() -> None:
        async def ok(request: ForwardRequest) -> ForwardResponse:
            return ForwardResponse(200)

        handler = Handler(authorize=bearer_token("right"), forward=ok)
        headers = None if token is None else token_headers(token)
        layer = Layer("/raft", "127.0.0.1:9", Handler(), dial_tcp(), headers=headers)

        async def serve() -> None:
            async for request in handler.requests():
                request.respond()

        async def accept() -> None:
            (await handler.accept()).abort()

        async with kind.serve(handler) as port:
            address = ServerAddress(f"127.0.0.1:{port}")
            if token == "right":
                tasks = [asyncio.create_task(serve()), asyncio.create_task(accept())]
                (await layer.dial(address, 5.0)).abort()
                await layer.join(ServerID("n9"), address, 5.0)
                await layer.leave(ServerID("n9"), address, 5.0)
                assert (await layer.forward(address, "op", b"", 5.0)).status == 200
                await handler.close()
                await asyncio.gather(*tasks)
            else:
                with pytest.raises(PeerUnreachableError, match="401"):
                    await layer.dial(address, 5.0)
                for call in (layer.join, layer.leave):
                    with pytest.raises(MembershipError, match="401") as caught:
                        await call(ServerID("n9"), address, 5.0)
                    assert caught.value.status == 401
                assert (await layer.forward(address, "op", b"", 5.0)).status == 401
            await layer.close()

    kind.run(main)


def test_a_forwarded_address_that_uvicorn_believes_is_not_believed(
    uvicorn_kind: ServerKind,
) -> None:
    """uvicorn rewrites `scope["client"]` from X-Forwarded-For, of a trusted proxy by default."""

    async def main() -> None:
        asked: list[PeerInfo] = []

        async def note(who: PeerInfo) -> Principal | Refusal:
            asked.append(who)
            return await allow_cidrs(["203.0.113.0/24"])(who)

        handler = Handler(authorize=note)
        assert uvicorn_kind.http is not None
        options = {"proxy_headers": True, "forwarded_allow_ips": "*"}
        async with (
            uvicorn_server(handler, uvicorn_kind.http, **options) as (port, _),
            raw_connection(port) as raw,
        ):
            raw.send(REQUESTS[Purpose.LEAVE] + b"X-Forwarded-For: 203.0.113.1\r\n\r\n")
            assert (await raw.response())[0] == 401
            (who,) = asked
            assert who.client is not None
            assert who.client[0] == "127.0.0.1"
            await handler.close()

    uvicorn_kind.run(main)
