"""Golden messages of a real Go node, and ways to deliver them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from rafthttp.raft.types import Log, LogType, ServerAddress, ServerID
from rafthttp.raft.wire.records import Request, RPCHeader
from rafthttp.raft.wire.stream import Answer, RequestDecoder, ResponseDecoder

TESTDATA = Path(__file__).parent / "testdata"
NAMES = sorted(
    path.name.removesuffix(".req.hex")
    for path in TESTDATA.glob("*.req.hex")
    if not path.name.startswith("http_")
)


@dataclass(frozen=True)
class Golden:
    """One request and its response as bytes, and the fields Go decoded from them."""

    name: str
    request: bytes
    response: bytes
    fields: dict[str, Any]

    @property
    def rpc(self) -> int:
        return self.request[0]

    @property
    def has_nil_body(self) -> bool:
        return self.name == "error_response_nil_body"

    @property
    def request_fields(self) -> dict[str, Any]:
        return _flat(self.fields["request"])

    @property
    def response_fields(self) -> dict[str, Any]:
        return _flat(self.fields["response"])

    @property
    def error(self) -> str:
        error: str = self.fields.get("call_error", "")
        return error


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Go's JSON with bytes as bytes, times as nanoseconds, and the header as `RPCHeader`."""
    header = {key: _plain(value) for key, value in fields["RPCHeader"].items()}
    plain = {key: _plain(value) for key, value in fields.items() if key != "RPCHeader"}
    plain["header"] = RPCHeader(
        header["ProtocolVersion"],
        ServerID((header["ID"] or b"").decode()),
        ServerAddress((header["Addr"] or b"").decode()),
    )
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(cast("dict[str, str]", value)["bytes_hex"])
    if isinstance(value, list):
        return [
            Log(
                entry["Index"],
                entry["Term"],
                LogType(entry["Type"]),
                _plain(entry["Data"]) or b"",
                _plain(entry["Extensions"]) or b"",
                _nanoseconds(entry["AppendedAt"]),
            )
            for entry in cast("list[dict[str, Any]]", value)
        ]
    return value


def _nanoseconds(text: str) -> int:
    whole, fraction = text.removesuffix("Z").split(".")
    seconds = dt.datetime.fromisoformat(whole + "+00:00").timestamp()
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0"))


def _load(name: str) -> Golden:
    def octets(suffix: str) -> bytes:
        return bytes.fromhex((TESTDATA / f"{name}.{suffix}").read_text().strip())

    fields = json.loads((TESTDATA / f"{name}.json").read_text())
    return Golden(name, octets("req.hex"), octets("resp.hex"), fields)


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden pair in turn."""
    return _load(request.param)


@pytest.fixture(scope="session")
def load_golden() -> Callable[[str], Golden]:
    """A golden pair by name."""
    return _load


@pytest.fixture(scope="session")
def goldens() -> list[Golden]:
    """All golden pairs."""
    return [_load(name) for name in NAMES]


@pytest.fixture(scope="session")
def read_requests() -> Callable[..., tuple[list[Request], bytes]]:
    """Run bytes, cut in pieces, through a `RequestDecoder`: requests, and snapshot bytes."""

    def read(
        data: bytes, piece_bytes: int = 0, decoder: RequestDecoder | None = None
    ) -> tuple[list[Request], bytes]:
        decoder = decoder or RequestDecoder()
        requests: list[Request] = []
        body = b""
        for piece in _pieces(data, piece_bytes):
            decoder.feed(piece)
            while (event := decoder.next()) is not None:
                if isinstance(event, bytes):
                    body += event
                else:
                    requests.append(event)
        return requests, body

    return read


@pytest.fixture(scope="session")
def read_answers() -> Callable[..., list[Answer]]:
    """Run bytes, cut in pieces, through a `ResponseDecoder` that expects answers to these RPCs."""

    def read(data: bytes, rpcs: list[int], piece_bytes: int = 0) -> list[Answer]:
        decoder = ResponseDecoder()
        for rpc in rpcs:
            decoder.expect(rpc)
        answers: list[Answer] = []
        for piece in _pieces(data, piece_bytes):
            decoder.feed(piece)
            while (answer := decoder.next()) is not None:
                answers.append(answer)
        return answers

    return read


def _pieces(data: bytes, piece_bytes: int) -> list[bytes]:
    size = piece_bytes or len(data) or 1
    return [data[at : at + size] for at in range(0, len(data), size)]
