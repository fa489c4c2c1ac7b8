"""How long a stream to a peer takes to come about, against Go: `dial`.

One dial at a time: connect, upgrade, until the 101 is read and the stream can be used; the close,
which is waited for, is not part of it. Ours (`Layer.dial`, raw carrier, uvloop) dials our
`Listener` in another process, raft-http's `Layer.Dial` its handler in another Go process, in turn;
the ratio of the medians pair by pair. Beside each the plain TCP connect of the same runtime.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.figures.figure import Figure, Line, main, spread
from bench.peers.base import LineProcess, MissingPeerError, free_ports, wait_until
from bench.peers.go import BINARY
from bench.peers.stream_end import process

GOAL: Final = 2.0
CALL_SECONDS: Final = 60.0


class Run(NamedTuple):
    """Some dials, one at a time."""

    p50_ms: float
    p99_ms: float
    per_second: float


Dials = Callable[[bool], Run]
"""Dials; with True the port alone, without HTTP."""


def measure(quick: bool, directory: Path | None) -> Figure:
    """Ours and Go's in turn, with HTTP and without."""
    del directory  # nothing is stored
    pairs, count = (1, 500) if quick else (5, 3000)
    makes: dict[str, Dials] = {}
    missing: list[str] = []
    runs: dict[tuple[str, bool], list[Run]] = {}
    with ExitStack() as stack:
        makes["ours"] = _ours(stack, count)
        try:
            makes["Go"] = _go(stack, count)
        except MissingPeerError as error:
            missing.append(f"dials of Go: {error}")
        for dials in makes.values():
            dials(False)  # warm
        for _ in range(pairs):
            for plain in (False, True):
                for name, dials in makes.items():
                    runs.setdefault((name, plain), []).append(dials(plain))
    return Figure("A dial with its upgrade, one at a time", _lines(runs), missing)


def _ours(stack: ExitStack, count: int) -> Dials:
    ports: dict[bool, int] = {}
    for plain, door in ((False, "listener"), (True, "bare")):
        server = process(door)
        stack.callback(server.stop)
        ports[plain] = server.ask({})["port"]
    client = process()
    stack.callback(client.stop)
    return partial(_ours_dials, client, ports, count)


def _ours_dials(client: LineProcess, ports: dict[bool, int], count: int, plain: bool) -> Run:
    carrier = "bare" if plain else "raw"
    question = {"call": "dials", "carrier": carrier, "port": ports[plain], "count": count}
    return Run(**client.ask(question))


def _go(stack: ExitStack, count: int) -> Dials:
    if not BINARY.exists():
        raise MissingPeerError("the Go node is not built: make interop")
    client, server = (f"127.0.0.1:{port}" for port in free_ports(2))
    for address in (client, server):
        command = [str(BINARY), "-id", address, "-address", address, "-log-level", "ERROR"]
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(started.wait)
        stack.callback(started.kill)
        wait_until(partial(_is_up, address), "the start of a Go node")
    return partial(_go_dials, client, server, count)


def _go_dials(client: str, server: str, count: int, plain: bool) -> Run:
    target = f"/dials?target={server}&count={count}&plain={int(plain)}"
    answer = _call("POST", client, target)
    return Run(answer["p50_ms"], answer["p99_ms"], answer["per_second"])


def _is_up(address: str) -> bool:
    try:
        _call("GET", address, "/stats")
    except OSError:
        return False
    return True


def _call(method: str, address: str, target: str) -> dict[str, Any]:
    request = urllib.request.Request(f"http://{address}{target}", method=method)
    with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _lines(runs: dict[tuple[str, bool], list[Run]]) -> Sequence[Line]:
    lines: list[Line] = []
    ours, go = runs["ours", False], runs.get(("Go", False))
    if go is not None:
        ratios = [mine.p50_ms / theirs.p50_ms for mine, theirs in zip(ours, go, strict=True)]
        lines.append(
            Line(
                "p50 of ours / Go's",
                spread(ratios, ""),
                f"≤ {GOAL:g}",
                statistics.median(ratios) <= GOAL,
                {"ratios": ratios},
            )
        )
    for (name, plain), each in runs.items():
        what = "plain TCP connect" if plain else "dial and upgrade"
        lines.append(
            Line(
                f"{name}: {what}",
                f"p50 {spread([run.p50_ms * 1e3 for run in each], 'µs')},"
                f" p99 {spread([run.p99_ms * 1e3 for run in each], 'µs')},"
                f" {statistics.median(run.per_second for run in each):,.0f} /s",
                data={"runs": [run._asdict() for run in each]},
            )
        )
    return lines


if __name__ == "__main__":
    main(measure)
