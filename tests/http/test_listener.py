"""Our own server: its path only, and a bound on everything."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from rafthttp.http import listener as listener_module
from rafthttp.http.handler import ForwardRequest, Handler
from rafthttp.http.listener import Listener
from rafthttp.http.messages import ForwardResponse
from rafthttp.raft.errors import ConfigError
from rafthttp.testing.http import RecordingReceiver, ServerKind, raw_connection, until

UPGRADE = b"GET /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\n\r\n"


@asynccontextmanager
async def answering(handler: Handler) -> AsyncGenerator[None]:
    async def answer() -> None:
        async for request in handler.requests():
            request.respond()

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        await handler.close()
        await task


def test_every_other_path_is_404(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with Listener(Handler(), "127.0.0.1", 0, path="/here") as listener:
            for target in (b"/", b"/here/", b"/raft", b"/here/../here", b"//here", b"*"):
                async with raw_connection(listener.port) as raw:
                    raw.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\n\r\n")
                    assert (await raw.response())[0] == 404
                    assert await raw.rest() == b""

    on_loop.run(main)


def test_requests_follow_each_other_and_may_be_pipelined(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            Listener(handler, "127.0.0.1", 0) as listener,
            answering(handler),
            raw_connection(listener.port) as raw,
        ):
            one = b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n\r\n"
            two = b"POST /raft?id=n9&address=a:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            raw.send((one + two) * 20)
            for _ in range(40):
                assert (await raw.response())[0] == 200
            raw.send(one.replace(b"1.1", b"1.0"))
            assert (await raw.response())[0] == 200
            assert await raw.rest() == b""

    on_loop.run(main)


def test_a_body_nobody_wants_ends_the_connection(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            Listener(handler, "127.0.0.1", 0) as listener,
            answering(handler),
            raw_connection(listener.port) as raw,
        ):
            raw.send(b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            assert (await raw.response())[0] == 200
            raw.send(b"d" * 100_000)
            assert await raw.rest() == b""

    on_loop.run(main)


def test_too_many_connections(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            Listener(handler, "127.0.0.1", 0, connections_max=2) as listener,
            raw_connection(listener.port) as first,
            raw_connection(listener.port) as second,
            raw_connection(listener.port) as third,
        ):
            assert (await third.response())[0] == 503
            assert await third.rest() == b""
            first.send(UPGRADE)
            RecordingReceiver(await handler.accept())
            second.writer.close()
            await until(lambda: len(listener._streams) == 1)
            async with raw_connection(listener.port) as fourth:
                fourth.send(b"GET /raft HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await fourth.response())[0] == 400

    on_loop.run(main)


def test_a_kept_connection_meets_deadlines_too(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "IDLE_SECONDS", 0.1)

    async def main() -> None:
        handler = Handler()
        one = b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\n\r\n"
        async with (
            Listener(handler, "127.0.0.1", 0, handshake_timeout=0.1) as listener,
            answering(handler),
        ):
            for later in (b"", one[:-1]):
                async with raw_connection(listener.port) as raw:
                    raw.send(one)
                    assert (await raw.response())[0] == 200
                    raw.send(later)
                    assert await raw.rest() == b""

    on_loop.run(main)


def test_a_peer_that_does_not_shake_tls_hands_is_cut(on_loop: ServerKind) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority: Any = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def main() -> None:
        async with (
            Listener(Handler(), "127.0.0.1", 0, ssl=context, handshake_timeout=0.1) as listener,
            raw_connection(listener.port) as raw,
        ):
            assert await raw.rest() == b""

    on_loop.run(main)


def test_closing_ends_connections_at_every_stage(on_loop: ServerKind) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def hang(request: ForwardRequest) -> ForwardResponse:
            await release.wait()
            raise AssertionError

        handler = Handler(forward=hang)
        listener = Listener(handler, "127.0.0.1", 0)
        await listener.start()
        port = listener.port
        async with (
            raw_connection(port) as silent,
            raw_connection(port) as waiting,
            raw_connection(port) as working,
            raw_connection(port) as streaming,
        ):
            streaming.send(UPGRADE)
            receiver = RecordingReceiver(await handler.accept())
            waiting.send(UPGRADE)
            await until(lambda: handler._upgrades._items)
            working.send(b"PUT /raft?op=x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await until(lambda: handler._forwards)
            await listener.close()
            assert receiver.ended
            for raw in (silent, waiting, working):
                assert await raw.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
        await listener.close()
        await handler.close()

    on_loop.run(main)


def test_a_port_that_is_taken(on_loop: ServerKind, silent_port: int) -> None:
    async def main() -> None:
        listener = Listener(Handler(), "127.0.0.1", silent_port)
        with pytest.raises(OSError, match="in use"):
            await listener.start()
        await listener.close()

    on_loop.run(main)


def test_methods_of_their_own_kind(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with Listener(Handler(), "127.0.0.1", 0) as listener:
            for request, status in (
                (b"HEAD /raft HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
                (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
                (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
                (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
                (b"TRACE /raft HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
                (b"POST /raft HTTP/1.1\r\nHost: x\r\nUpgrade: raft\r\n\r\n", b"400"),
            ):
                async with raw_connection(listener.port) as raw:
                    raw.send(request)
                    head = await raw.head()
                    assert head.split()[1] == status
                    assert bool(await raw.rest()) == (not request.startswith(b"HEAD"))

    on_loop.run(main)


def test_a_body_that_is_announced_and_never_comes_holds_up_nothing(on_loop: ServerKind) -> None:
    async def main() -> None:
        handler = Handler()
        async with (
            Listener(handler, "127.0.0.1", 0) as listener,
            answering(handler),
            raw_connection(listener.port) as raw,
        ):
            raw.send(b"DELETE /raft?id=n9 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert (await raw.response())[0] == 200
            assert await raw.rest() == b""

    on_loop.run(main)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [
                    b"GET /raft HTTP/1.1\r\n",
                    b"DELETE /raft?id=n9 HTTP/1.1\r\n",
                    b"PUT /raft?op=x HTTP/1.1\r\n",
                    b"Host: x\r\n",
                    b"Upgrade: raft\r\n",
                    b"Content-Length: 3\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Expect: 100-continue\r\n",
                    b"\r\n",
                    b"3\r\nabc\r\n0\r\n\r\n",
                ]
            ),
        ),
        max_size=12,
    )
)
def test_no_bytes_break_more_than_their_connection(chunks: list[bytes]) -> None:
    records: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    async def main() -> None:
        handler = Handler(timeout=0.02)
        async with (
            Listener(handler, "127.0.0.1", 0, handshake_timeout=0.02) as listener,
            answering(handler),
            raw_connection(listener.port) as raw,
        ):
            for chunk in chunks:
                raw.send(chunk)
                await asyncio.sleep(0)
            with suppress(OSError):  # it may have been cut off already
                raw.writer.write_eof()
            await raw.rest()
            await until(lambda: not listener._streams)

    collect = Collect(logging.ERROR)
    logging.getLogger().addHandler(collect)
    try:
        asyncio.run(main())
    finally:
        logging.getLogger().removeHandler(collect)
    assert not records


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_an_error(seconds: float) -> None:
    with pytest.raises(ConfigError, match="handshake_timeout"):
        Listener(Handler(), "127.0.0.1", 0, handshake_timeout=seconds)
