"""Forwarded calls: kept connections, bounds, and what the caller may conclude from an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import pytest

from rafthttp.http import forward as forward_module
from rafthttp.http import handler as handler_module
from rafthttp.http.client import ClientConnection
from rafthttp.http.dial import dial_tcp
from rafthttp.http.handler import ForwardRequest, Handler
from rafthttp.http.layer import Layer
from rafthttp.http.messages import ForwardResponse
from rafthttp.raft.errors import ConfigError, ForwardError, Outcome, RequestRefusedError
from rafthttp.raft.types import ServerAddress
from rafthttp.testing.http import RawConnection, ServerKind, raw_connection, until


def local(port: int) -> ServerAddress:
    return ServerAddress(f"127.0.0.1:{port}")


async def echo(request: ForwardRequest) -> ForwardResponse:
    return ForwardResponse(
        202, request.op.encode() + b":" + request.body, (("X-Seen", request.principal.name),)
    )


@asynccontextmanager
async def a_layer() -> AsyncGenerator[Layer]:
    layer = Layer("/raft", "127.0.0.1:1", Handler(), dial_tcp())
    try:
        yield layer
    finally:
        await layer.close()


@asynccontextmanager
async def peer(*script: bytes, close: bool = False) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """A peer that answers each request with the next line of its script; None closes."""
    lines = list(script)
    heads: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        raw = RawConnection(reader, writer)
        while lines:
            try:
                heads.append(await raw.head())
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if line := lines.pop(0):
                raw.send(line)
            if close:
                break
        if close:
            writer.close()
        else:
            await raw.rest()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        await until(lambda: all(writer.is_closing() for writer in writers))
        server.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_call_is_made_and_answered(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(forward=echo)
        async with kind.serve(handler) as port, a_layer() as layer:
            for body in (b"", b"x", bytes(range(256)) * 8192):
                answer = await layer.forward(local(port), "apply", body, 5.0)
                assert answer.status == 202
                assert answer.body == b"apply:" + body
                assert ("x-seen", "127.0.0.1") in answer.headers
            (pool,) = layer._forward_client._peers.values()
            assert len(pool.idle) == 1  # all on one connection

    kind.run(main)


def test_calls_side_by_side_each_get_their_own_answer(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(forward=echo)
        async with kind.serve(handler) as port, a_layer() as layer:
            answers = await asyncio.gather(
                *(layer.forward(local(port), "op", b"%d" % number, 5.0) for number in range(200))
            )
            assert [answer.body for answer in answers] == [b"op:%d" % n for n in range(200)]
            (pool,) = layer._forward_client._peers.values()
            assert 0 < len(pool.idle) <= forward_module.IDLE_CONNECTIONS_MAX

    kind.run(main)


def test_without_a_handler_it_is_405_as_from_go(kind: ServerKind) -> None:
    async def main() -> None:
        async with kind.serve(Handler()) as port, a_layer() as layer:
            answer = await layer.forward(local(port), "apply", b"x" * 100_000, 5.0)
            assert (answer.status, answer.body) == (405, b"unknown action\n")

    kind.run(main)


@pytest.mark.parametrize("status", [405, 413, 503])
def test_a_refusal_is_read_though_the_body_is_large(kind: ServerKind, status: int) -> None:
    """Else a call that was surely not made counts as one that may have been."""

    async def main() -> None:
        handler = Handler(forward=None if status == 405 else echo, forward_size_bytes_max=1000)
        if status == 503:
            await handler.close()
        async with kind.serve(handler) as port, a_layer() as layer:
            for _ in range(5):
                answer = await layer.forward(local(port), "apply", bytes(16 << 20), 10.0)
                assert answer.status == status

    kind.run(main)


def test_a_body_over_the_cap_is_413(kind: ServerKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_module, "DRAIN_SECONDS", 0.05)

    async def main() -> None:
        handler = Handler(forward=echo, forward_size_bytes_max=1000)
        async with kind.serve(handler) as port, a_layer() as layer:
            assert (await layer.forward(local(port), "op", bytes(1000), 5.0)).status == 202
            assert (await layer.forward(local(port), "op", bytes(1001), 5.0)).status == 413
            assert (await layer.forward(local(port), "op", b"", 5.0)).status == 202
        handler = Handler(forward=echo, forward_size_bytes_max=1000)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            # Of unknown length, without an end.
            raw.send(b"PUT /raft?op=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            raw.send(b"400\r\n" + bytes(1024) + b"\r\n")
            assert (await raw.response())[0] == 413
            await raw.rest()

    kind.run(main)


@pytest.mark.parametrize("query", ["", "?op=", "?op=a%20b", "?op=a&op=b", "?op=%0d%0a"])
def test_an_operation_against_the_grammar_is_400(on_loop: ServerKind, query: str) -> None:
    async def main() -> None:
        async with on_loop.serve(Handler(forward=echo)) as port, raw_connection(port) as raw:
            raw.send(f"PUT /raft{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            assert (await raw.response())[0] == 400

    on_loop.run(main)


def test_a_body_that_does_not_come_is_408(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(timeout=0.1, forward=echo)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(b"PUT /raft?op=a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
            assert (await raw.response())[0] == 408
            await raw.rest()

    kind.run(main)


def test_a_client_that_leaves_with_its_body_is_no_error(
    kind: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        handler = Handler(forward=echo)
        async with kind.serve(handler) as port:
            async with raw_connection(port) as raw:
                raw.send(b"PUT /raft?op=a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
                await until(lambda: handler._forwards)
            await until(lambda: not handler._forwards)

    kind.run(main)
    assert not caplog.records


def test_a_client_that_waits_for_100_continue_gets_it(kind: ServerKind) -> None:
    async def main() -> None:
        handler = Handler(forward=echo)
        async with kind.serve(handler) as port, raw_connection(port) as raw:
            raw.send(
                b"PUT /raft?op=a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert (await raw.head()).startswith(b"HTTP/1.1 100 ")
            raw.send(b"abc")
            assert (await raw.response())[2] == b"a:abc"

    kind.run(main)


def test_calls_at_a_time_are_bounded(on_loop: ServerKind) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def wait(request: ForwardRequest) -> ForwardResponse:
            await release.wait()
            return ForwardResponse(200)

        handler = Handler(forward=wait, forwards_max=1)
        async with on_loop.serve(handler) as port, a_layer() as layer:
            first = asyncio.create_task(layer.forward(local(port), "op", b"", 5.0))
            await until(lambda: handler._forwards)
            assert (await layer.forward(local(port), "op", b"", 5.0)).status == 503
            release.set()
            assert (await first).status == 200
            assert (await layer.forward(local(port), "op", b"", 5.0)).status == 200

    on_loop.run(main)


def test_what_the_handler_raises_is_answered(
    on_loop: ServerKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: ForwardRequest) -> ForwardResponse:
        if request.op == "refuse":
            raise RequestRefusedError(418, "no")
        raise ZeroDivisionError

    async def main() -> None:
        async with on_loop.serve(Handler(forward=fail)) as port, a_layer() as layer:
            assert (await layer.forward(local(port), "refuse", b"", 5.0)).status == 418
            assert not caplog.records
            answer = await layer.forward(local(port), "break", b"", 5.0)
            assert (answer.status, answer.body) == (500, b"internal error\n")

    on_loop.run(main)
    assert "ZeroDivisionError" in caplog.text


def test_headers_and_cluster_ids_go_along(on_loop: ServerKind) -> None:
    async def headers() -> Mapping[str, str]:
        return {"Authorization": "Bearer t"}

    async def main() -> None:
        async with peer(OK) as (port, heads):
            handler = Handler(cluster_id="c1")
            layer = Layer("/raft", "127.0.0.1:1", handler, dial_tcp(), headers=headers)
            assert (await layer.forward(local(port), "op", b"", 5.0)).body == b"ok"
            await layer.close()
        (head,) = heads
        assert head.startswith(b"PUT /raft?op=op HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Bearer t\r\n" in head
        assert b"\r\nRaft-Cluster-Id: c1\r\n" in head

    on_loop.run(main)


# -- errors: definite, or unknown


async def outcome(layer: Layer, port: int, timeout: float = 5.0) -> Outcome:
    with pytest.raises(ForwardError) as caught:
        await layer.forward(local(port), "apply", b"x", timeout)
    return caught.value.outcome


def test_nobody_there_is_definite(on_loop: ServerKind, free_port: int) -> None:
    async def main() -> None:
        async with a_layer() as layer:
            assert await outcome(layer, free_port) is Outcome.DEFINITE
            assert not layer._forward_client._peers
            with pytest.raises(ForwardError) as caught:
                await layer.forward(ServerAddress("no address"), "apply", b"", 5.0)
            assert caught.value.outcome is Outcome.DEFINITE

    on_loop.run(main)


@pytest.mark.parametrize(
    "script",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\ncut",
        b"not http\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
    ],
)
def test_what_was_sent_and_not_answered_is_unknown_and_not_sent_again(
    on_loop: ServerKind, script: bytes
) -> None:
    async def main() -> None:
        async with peer(script, b"", b"", close=True) as (port, heads), a_layer() as layer:
            assert await outcome(layer, port) is Outcome.UNKNOWN
            assert len(heads) == 1

    on_loop.run(main)


def test_an_answer_that_does_not_come_is_unknown_and_its_connection_closed(
    on_loop: ServerKind, silent_port: int
) -> None:
    async def main() -> None:
        async with peer(b"") as (port, heads), a_layer() as layer:
            assert await outcome(layer, port, 0.1) is Outcome.UNKNOWN
            assert len(heads) == 1
            assert not layer._forward_client._peers
            assert await outcome(layer, silent_port, 0.1) is Outcome.UNKNOWN

    on_loop.run(main)


def test_an_answer_too_large_is_unknown(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "RESPONSE_SIZE_BYTES_MAX", 1)

    async def main() -> None:
        async with peer(OK) as (port, _), a_layer() as layer:
            assert await outcome(layer, port) is Outcome.UNKNOWN

    on_loop.run(main)


async def _until_unusable(connection: ClientConnection) -> None:
    await until(lambda: not connection.reusable)


def test_a_kept_connection_that_was_closed_is_not_used(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with peer(OK, OK, close=True) as (port, heads), a_layer() as layer:
            for _ in range(2):
                await layer.forward(local(port), "op", b"", 5.0)
                (pool,) = layer._forward_client._peers.values()
                await _until_unusable(pool.idle[0][0])
            assert len(heads) == 2

    on_loop.run(main)


def test_a_connection_idle_for_long_is_not_used(
    on_loop: ServerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "IDLE_SECONDS_MAX", -1.0)

    async def main() -> None:
        async with peer(OK, OK) as (port, _), a_layer() as layer:
            await layer.forward(local(port), "op", b"", 5.0)
            (pool,) = layer._forward_client._peers.values()
            ((kept, _),) = pool.idle
            await layer.forward(local(port), "op", b"", 5.0)
            assert not kept.reusable

    on_loop.run(main)


@pytest.mark.parametrize(
    "response", [OK + b"more", OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
)
def test_a_connection_is_kept_only_if_both_sides_agree(
    on_loop: ServerKind, response: bytes
) -> None:
    async def main() -> None:
        async with peer(response) as (port, _), a_layer() as layer:
            assert (await layer.forward(local(port), "op", b"", 5.0)).body == b"ok"
            await until(
                lambda: (
                    not any(
                        connection.reusable
                        for pool in layer._forward_client._peers.values()
                        for connection, _ in pool.idle
                    )
                )
            )

    on_loop.run(main)


def test_a_cancelled_call_closes_its_connection(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with peer(b"") as (port, heads), a_layer() as layer:
            call = asyncio.create_task(layer.forward(local(port), "op", b"", 5.0))
            await until(lambda: heads)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not layer._forward_client._busy

    on_loop.run(main)


def test_closing_ends_calls_and_connections(on_loop: ServerKind) -> None:
    async def main() -> None:
        async with peer(OK, b"") as (port, heads), a_layer() as layer:
            await layer.forward(local(port), "op", b"", 5.0)
            call = asyncio.create_task(layer.forward(local(port), "op", b"", 5.0))
            await until(lambda: len(heads) == 2)
            await layer.close()
            with pytest.raises(ForwardError) as caught:
                await call
            assert caught.value.outcome is Outcome.UNKNOWN
            assert await outcome(layer, port) is Outcome.DEFINITE

    on_loop.run(main)


@pytest.mark.parametrize(("op", "timeout"), [("a b", 1.0), ("op", 0.0), ("op", -1.0)])
def test_misuse(op: str, timeout: float) -> None:
    async def main() -> None:
        async with a_layer() as layer:
            with pytest.raises(ConfigError):
                await layer.forward(local(1), op, b"", timeout)

    asyncio.run(main())
