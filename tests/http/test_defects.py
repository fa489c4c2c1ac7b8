"""What was wrong in the Go originals, each shown not to be wrong here.

More of each stands with its room: `test_layer.py` has deadlines and sockets, `test_access.py`
authorisation, `test_membership_client.py` retries and redirects, `test_membership.py` changes side
by side and addresses that nobody answers at.
"""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from rafthttp.http.access import PeerInfo, Principal, Refusal
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import Handler
from rafthttp.http.layer import Layer
from rafthttp.http.membership import ChangeKind
from rafthttp.http.stream import TransportStream
from rafthttp.raft.errors import (
    ConfigError,
    DifferentLeaderError,
    MembershipError,
    PeerUnreachableError,
)
from rafthttp.raft.types import Leader, ServerAddress, ServerID
from rafthttp.testing.http import RecordingReceiver, ServerKind, raw_connection, until

UPGRADE = b"GET /raft HTTP/1.1\r\nHost: evil.example\r\nUpgrade: raft\r\n\r\n"


def local(port: int) -> ServerAddress:
    return ServerAddress(f"127.0.0.1:{port}")


def a_layer(handler: Handler | None = None) -> Layer:
    return Layer("/raft", "127.0.0.1:1", handler or Handler(), dial_tcp())


def test_a_silent_server_does_not_block_for_ever(on_loop: ServerKind, silent_port: int) -> None:
    """Go: the timeout covers only the TCP connect."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(PeerUnreachableError):
            await a_layer().dial(local(silent_port), 0.1)
        with pytest.raises(MembershipError):
            await a_layer().join(ServerID("n1"), local(silent_port), 0.1)
        assert loop.time() - started < 2.0

    on_loop.run(main)


def test_no_socket_leaks_on_a_failed_handshake(on_loop: ServerKind) -> None:
    """Go: neither side closes it. And each retry of a join leaks a connection."""

    async def main() -> None:
        handler = Handler()
        await handler.close()
        async with on_loop.serve(handler) as port:
            for _ in range(20):
                with pytest.raises(PeerUnreachableError):
                    await a_layer().dial(local(port), 5.0)
            with pytest.raises(MembershipError):
                await a_layer().join(ServerID("n1"), local(port), 0.5)
            gc.collect()
            streams = [s for s in gc.get_objects() if isinstance(s, TransportStream)]
            await until(lambda: all(s._lost for s in streams if s._transport is not None))

    on_loop.run(main)


def test_bytes_behind_the_handshake_are_kept_on_both_sides(kind: ServerKind) -> None:
    """Go: dropped on both sides."""

    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE + b"from the dialer")
            stream = await handler.accept()
            stream.write(b"from the acceptor")
            await RecordingReceiver(stream).until_data(b"from the dialer")
            await raw.head()
            assert await raw.reader.readexactly(17) == b"from the acceptor"
            stream.abort()

    kind.run(main)


def test_closing_twice_with_nobody_reading_is_fine(on_loop: ServerKind) -> None:
    """Go: the second close panics; with nobody reading `Requests()` a POST and close block."""

    async def main() -> None:
        handler = Handler()
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(b"DELETE /raft?id=n1 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: handler._requests._items)
            async with asyncio.timeout(5):
                await handler.close()
                await handler.close()
            assert (await raw.response())[0] == 503

    on_loop.run(main)


def test_a_closed_node_sends_no_101(kind: ServerKind) -> None:
    """Go: 101 is sent before the connection is accepted, and the connection then dropped."""

    async def main() -> None:
        handler = Handler()
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            await handler.close()
            assert (await raw.response())[0] == 503

    kind.run(main)


@pytest.mark.parametrize("timeout", [0.0, -0.1])
def test_no_time_is_no_success(timeout: float, free_port: int) -> None:
    """Go: `timeout <= 0` returns success."""
    for call in (a_layer().join, a_layer().leave):
        with pytest.raises(ConfigError, match="timeout"):
            asyncio.run(call(ServerID("n1"), local(free_port), timeout))


def test_an_id_cannot_inject_an_address(on_loop: ServerKind) -> None:
    """Go: `id` is not URL-escaped, so `a&address=evil:1` names the address."""

    async def main() -> None:
        handler = Handler()
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            layer = a_layer()
            with pytest.raises(ConfigError, match="server ID"):
                await layer.join(ServerID("a&address=evil:1"), local(port), 5.0)
            joining = asyncio.create_task(layer.join(ServerID("a=b+c"), local(port), 5.0))
            change = await anext(handler.requests())
            assert (change.kind, change.id, change.address) == (
                ChangeKind.JOIN,
                "a=b+c",
                "127.0.0.1:1",
            )
            change.respond()
            await joining
            raw.send(
                b"POST /raft?id=a&address=evil:1&address=127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            assert (await raw.response())[0] == 400

    on_loop.run(main)


def test_a_redirect_keeps_the_scheme(on_loop: ServerKind) -> None:
    """Go: `http` is hard-coded. The scheme is the request's own."""

    async def main() -> None:
        from rafthttp.http.membership import ChangeRequest, refusal_of
        from rafthttp.http.messages import Headers, Request

        async def no_body(size_bytes_max: int, *, keep: bool = True) -> bytes:
            return b""

        change = ChangeRequest(ChangeKind.LEAVE, ServerID("n1"), deadline=0.0)
        error = DifferentLeaderError("x", leader=Leader(ServerID("n2"), ServerAddress("[::1]:9")))
        for scheme in ("http", "https"):
            request = Request(
                "DELETE", scheme, "/a%2Fb", "id=n1", "1.1", Headers(()), None, None, no_body, None
            )
            refusal = refusal_of(error, change, request)
            assert refusal.headers == (("Location", f"{scheme}://[::1]:9/a%2Fb?id=n1"),)

    on_loop.run(main)


def test_streams_are_authorised_like_everything_else(kind: ServerKind) -> None:
    """Go: nothing is."""

    async def nobody(peer: PeerInfo) -> Principal | Refusal:
        return Refusal()

    async def main() -> None:
        handler = Handler(authorize=nobody)
        async with kind.serve(handler) as port:
            with pytest.raises(PeerUnreachableError, match="401"):
                await a_layer().dial(local(port), 5.0)

    kind.run(main)


def test_what_a_client_calls_itself_is_not_logged(
    on_loop: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    """Go: the client's `Host` is logged as the peer."""

    async def main() -> None:
        handler = Handler()
        async with on_loop.serve(handler) as port, raw_connection(port) as raw:
            raw.send(UPGRADE)
            stream = await handler.accept()
            assert stream.peer.startswith("127.0.0.1:")
            stream.abort()

    with caplog.at_level(logging.DEBUG):
        on_loop.run(main)
    assert "evil" not in caplog.text
