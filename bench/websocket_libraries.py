"""What a WebSocket library costs an RPC, over one loopback connection in one process.

`python bench/websocket_libraries.py [--seconds 2] [--uvloop]`. Echoes of 300 B and of 64 KiB, in
lockstep (one in flight) and with 16 in flight, through: no framing at all, `websockets` (its
sans-I/O protocol), `wsproto`, and `picows` (which brings its own transport). What is not installed
is left out: `pip install wsproto picows`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import time
from collections.abc import Awaitable, Callable
from typing import Any

Deliver = Callable[[bytes], None]


class Plain:
    """No framing: the floor."""

    def __init__(self, is_client: bool) -> None:
        del is_client

    def send(self, data: bytes) -> bytes:
        return data

    def receive(self, data: bytes) -> list[bytes]:
        return [data]


class Websockets:
    """`websockets.protocol.Protocol`."""

    def __init__(self, is_client: bool) -> None:
        library = importlib.import_module("websockets.protocol")
        side = library.CLIENT if is_client else library.SERVER
        self._protocol: Any = library.Protocol(side, state=library.OPEN)

    def send(self, data: bytes) -> bytes:
        self._protocol.send_binary(data)
        return b"".join(self._protocol.data_to_send())

    def receive(self, data: bytes) -> list[bytes]:
        self._protocol.receive_data(data)
        return [frame.data for frame in self._protocol.events_received()]


class Wsproto:
    """`wsproto.connection.Connection`."""

    def __init__(self, is_client: bool) -> None:
        library = importlib.import_module("wsproto.connection")
        kind = library.ConnectionType
        self._connection: Any = library.Connection(kind.CLIENT if is_client else kind.SERVER)
        self._message: Any = importlib.import_module("wsproto.events").BytesMessage

    def send(self, data: bytes) -> bytes:
        sent: bytes = self._connection.send(self._message(data=data))
        return sent

    def receive(self, data: bytes) -> list[bytes]:
        self._connection.receive_data(data)
        return [bytes(event.data) for event in self._connection.events()]


class End(asyncio.Protocol):
    """One end of a connection with a framing; the server's echoes."""

    def __init__(self, framing: Any, deliver: Deliver | None) -> None:
        self._framing = framing
        self._deliver = deliver
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._framing.receive(data):
            if self._deliver is None:
                self._transport.write(self._framing.send(message))
            else:
                self._deliver(message)

    def send(self, data: bytes) -> None:
        self._transport.write(self._framing.send(data))


class Load:
    """Keeps `in_flight` calls under way; counts bytes, so that it needs no messages."""

    def __init__(self, size_bytes: int, in_flight: int) -> None:
        self._data = bytes(size_bytes)
        self._in_flight = in_flight
        self._pending_bytes = 0
        self._deadline = 0.0
        self.calls = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.send: Callable[[bytes], None] = lambda data: None

    def begin(self, seconds: float) -> None:
        self._deadline = time.perf_counter() + seconds
        for _ in range(self._in_flight):
            self.send(self._data)

    def received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        while self._pending_bytes >= len(self._data):
            self._pending_bytes -= len(self._data)
            self.calls += 1
            if time.perf_counter() < self._deadline:
                self.send(self._data)
            elif not self.done.done():
                self.done.set_result(None)


async def measure_framing(framing: Any, load: Load, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: End(framing(False), None), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, client = await loop.create_connection(
        lambda: End(framing(True), load.received), "127.0.0.1", port
    )
    load.send = client.send
    load.begin(seconds)
    await load.done
    transport.abort()
    server.close()


async def measure_picows(load: Load, seconds: float) -> None:
    picows: Any = importlib.import_module("picows")
    binary = picows.WSMsgType.BINARY

    class Echo(picows.WSListener):  # type: ignore[misc]  # no types
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == binary:
                transport.send(binary, frame.get_payload_as_bytes())

    class Client(picows.WSListener):  # type: ignore[misc]  # no types
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            del transport
            if frame.msg_type == binary:
                load.received(frame.get_payload_as_bytes())

    def accept(request: Any) -> Echo:
        del request
        return Echo()

    server = await picows.ws_create_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await picows.ws_connect(Client, f"ws://127.0.0.1:{port}/")
    load.send = lambda data: transport.send(binary, data)
    load.begin(seconds)
    await load.done
    transport.disconnect()
    server.close()


async def measure(name: str, size_bytes: int, in_flight: int, seconds: float) -> str:
    load = Load(size_bytes, in_flight)
    framings: dict[str, Any] = {"none": Plain, "websockets": Websockets, "wsproto": Wsproto}
    work: Awaitable[None] = (
        measure_framing(framings[name], load, seconds)
        if name in framings
        else measure_picows(load, seconds)
    )
    began = time.perf_counter()
    await work
    rate = load.calls / (time.perf_counter() - began)
    return f"{rate:>10,.0f}/s {1e6 / rate:>7.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    factory: Any = importlib.import_module("uvloop").new_event_loop if options.uvloop else None
    print(
        "library          300 B, 1 in flight     300 B, 16          64 KiB, 1          64 KiB, 16"
    )
    for name in ("none", "websockets", "wsproto", "picows"):
        if name != "none" and importlib.util.find_spec(name) is None:
            print(f"{name:<12} not installed")
            continue
        cells: list[str] = []
        for size_bytes in (300, 64 << 10):
            for in_flight in (1, 16):
                with asyncio.Runner(loop_factory=factory) as runner:
                    cells.append(runner.run(measure(name, size_bytes, in_flight, options.seconds)))
        print(f"{name:<12} {'  '.join(cells)}")


if __name__ == "__main__":
    main()
