"""Every surface that strangers reach, with random damage, and with whatever broke it before.

The inputs in `testdata` were found by a coverage-guided fuzzer (`make fuzz`); each once broke a
promise of the target whose directory it is in.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rafthttp.testing.fuzzing import TARGETS, Target
from rafthttp.testing.fuzzing.endpoint import SERVERS, Endpoint, check_connection
from rafthttp.testing.fuzzing.rpc import (
    RPC_ANSWERS,
    RPC_REQUESTS,
    check_answers_memory,
    check_requests_memory,
)
from rafthttp.testing.fuzzing.target import HEAD_SIZE_BYTES

TESTDATA: Final = Path(__file__).parent / "testdata"
SECONDS_MAX: Final = 1.0
EXAMPLES: Final = 150
MEMORY_EXAMPLES: Final = 40
MEMORY_SOAK_EXAMPLES: Final = 2000
SOAK_EXAMPLES: Final = 20_000

_INTERESTING: Final = [
    b"",
    b"\0",
    b"\xff",
    b"\r\n",
    b"\xc1",
    b"\xdf\xff\xff\xff\xff",
    b"\x80",
    b"7",
]


def cases() -> list[Path]:
    return sorted(path for path in TESTDATA.glob("*/*") if path.is_file())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def test_an_endpoint_that_is_closed_leaves_the_logs_as_they_were() -> None:
    logs = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "rafthttp.http")]
    levels = [log.level for log in logs]
    made = Endpoint()
    assert not logs[2].isEnabledFor(logging.WARNING)
    made.close()
    assert [log.level for log in logs] == levels


def check(target: Target, data: bytes, endpoint: Endpoint) -> None:
    """One input; no promise breaks, and it takes no second, of a clock on the wall."""
    # Once more where the machine had other things to do.
    assert any(seconds(target, data, endpoint) < SECONDS_MAX for _ in range(2))


def seconds(target: Target, data: bytes, endpoint: Endpoint) -> float:
    begin = time.monotonic()
    if target.name == "endpoint":
        check_connection(endpoint, data)
    else:
        target.check(data)
    return time.monotonic() - begin


@pytest.mark.parametrize("path", cases(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_broke_before(path: Path, endpoint: Endpoint) -> None:
    check(TARGETS[path.parent.name], path.read_bytes(), endpoint)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str, endpoint: Endpoint) -> None:
    for data in TARGETS[name].seeds():
        check(TARGETS[name], data, endpoint)


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A valid input, or two of them in a row, with some bytes changed, gone, doubled or put in."""
    data = bytearray(draw(st.sampled_from(target.seeds())))
    if draw(st.integers(0, 3)) == 0:
        data += draw(st.sampled_from(target.seeds()))[HEAD_SIZE_BYTES:]
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(0, 5))):
        if not data:
            break
        at = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                del data[at : at + chance.choice([1, 2, 4, len(data)])]
            case 3:
                data[at:at] = chance.choice(_INTERESTING)
            case _:
                data[at:at] = data[at : at + chance.randrange(1, 40)]
    return bytes(data)


def search(name: str, examples: int, endpoint: Endpoint) -> None:
    target = TARGETS[name]

    @settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.one_of(damaged(target), damaged(target), st.binary(max_size=200)))
    def try_one(data: bytes) -> None:
        check(target, data, endpoint)

    try_one()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str, endpoint: Endpoint) -> None:
    search(name, EXAMPLES, endpoint)


@pytest.mark.parametrize(
    "examples", [MEMORY_EXAMPLES, pytest.param(MEMORY_SOAK_EXAMPLES, marks=pytest.mark.soak)]
)
@pytest.mark.parametrize(
    ("target", "check_memory"),
    [(RPC_REQUESTS, check_requests_memory), (RPC_ANSWERS, check_answers_memory)],
    ids=lambda value: value.name if isinstance(value, Target) else "",
)
def test_damaged_streams_take_little_memory(
    target: Target, check_memory: Callable[[bytes], None], examples: int
) -> None:
    """At most 4 times what came and 1 MB, behind up to some hundred frames that are whole."""

    @settings(deadline=None, max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(target), st.sampled_from(target.seeds()), st.sampled_from([0, 0, 20, 300]))
    def try_one(data: bytes, whole: bytes, many: int) -> None:
        head, stream = data[:HEAD_SIZE_BYTES], data[HEAD_SIZE_BYTES:]
        check_memory(head + whole[HEAD_SIZE_BYTES:] * many + stream)

    try_one()


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_inputs(name: str, endpoint: Endpoint) -> None:
    search(name, SOAK_EXAMPLES, endpoint)


def test_an_upgrade_is_answered_alike_everywhere(endpoint: Endpoint) -> None:
    """Two servers never disagree about who becomes a stream."""
    target = TARGETS["endpoint"]
    for seed in target.seeds():
        outcomes = {
            endpoint.run(server, [seed[HEAD_SIZE_BYTES:]]).statuses[:1] for server in SERVERS
        }
        folded = b"\r\n b\r\n" in seed  # RFC 9112 §5.2: refused or joined
        assert len(outcomes) == 1 or folded, (seed, outcomes)
