"""One member of a mixed cluster: a real process in Go or in Python, behind one admin API.

Knows how each kind is started and the calls of interop/README.md. Nothing here waits for luck: what
takes time is polled to a deadline.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import httpx

from rafthttp.testing.processes import DEADLINE_SECONDS, eventually

Language = Literal["go", "python"]
Option: TypeAlias = bool | int | float | str

GO_PROGRAM: Final = Path(
    os.environ.get(
        "RAFTHTTP_INTEROP_GO",
        Path(__file__).parents[3] / "build" / "interop" / "rafthttp-interop",
    )
)
"""What `make interop` builds."""

# Options of both programs that are durations: seconds here and in Python, "0.5s" in Go.
_DURATIONS: Final = frozenset(
    {
        "heartbeat_timeout",
        "election_timeout",
        "leader_lease_timeout",
        "commit_timeout",
        "snapshot_interval",
        "timeout",
    }
)
_CALL_SECONDS: Final = 30.0


def missing_go() -> str | None:
    """Why there is no Go program to run, or None."""
    if GO_PROGRAM.exists():
        return None
    if shutil.which("go") is None:
        return "Go is not installed"
    return f"{GO_PROGRAM} is not built (make interop)"


class RefusedError(Exception):
    """An admin call was answered with an error.

    Attributes:
        outcome: `definite` where nothing was done and nothing will be, else `unknown`.
    """

    def __init__(self, text: str, outcome: str) -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(slots=True)
class Member:
    """One server, running or not. Option names are those of `Config`; see interop/README.md.

    Attributes:
        data_dir: None keeps its log in memory: a restart is then a wiped server.
        options: flags of this member, by the name in snake_case.
        program: what its command line begins with, instead of the usual.
    """

    id: str
    language: Language
    address: str
    data_dir: Path | None
    output_file: Path
    http: httpx.Client
    options: dict[str, Option] = field(default_factory=dict[str, Option])
    process: subprocess.Popen[bytes] | None = None
    program: list[str] = field(default_factory=list[str])

    # -- the process

    def start(self, *, bootstrap: bool = False, join: str | None = None) -> None:
        """Start its process; neither entry is a restart, or a server that waits to be added."""
        assert not self.running, f"{self.id} runs"
        chosen = dict(self.options)
        if bootstrap:
            chosen["bootstrap"] = True
        if join is not None:
            chosen["join"] = join
        if self.data_dir is not None:
            chosen["data_dir"] = str(self.data_dir)
        with self.output_file.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own programs
                [
                    *(self.program or self.usual_program()),
                    "--id",
                    self.id,
                    "--address",
                    self.address,
                    *self._flags(chosen),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def usual_program(self) -> list[str]:
        """What starts a member in this language."""
        if self.language == "go":
            return [str(GO_PROGRAM)]
        return [sys.executable, "-m", "rafthttp.testing.interop_node"]

    def _flags(self, options: Mapping[str, Option]) -> Iterator[str]:
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                if self.language == "go":
                    yield f"{flag}={str(value).lower()}"
                else:
                    yield flag if value else "--no-" + flag[2:]
            else:
                yield flag
                go_duration = self.language == "go" and name in _DURATIONS
                yield f"{value}s" if go_duration else str(value)

    @property
    def running(self) -> bool:
        """Whether its process lives, paused or not."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Idempotent."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(DEADLINE_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, and wait for its end.

        Raises:
            AssertionError: its exit code is not 0.
        """
        assert self.process is not None, f"{self.id} was never started"
        self.process.terminate()
        code = self.process.wait(DEADLINE_SECONDS)
        assert code == 0, f"{self.id} ended with {code}:\n{self.output()}"

    def pause(self) -> None:
        """Stop its process as it is (SIGSTOP): its sockets stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, f"{self.id} was never started"
        self.process.send_signal(number)

    def wipe(self) -> None:
        """Delete the data of a member that does not run."""
        assert not self.running, f"{self.id} runs"
        if self.data_dir is not None:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def output(self) -> str:
        """What it printed and logged."""
        path = self.output_file
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # -- its admin API

    @property
    def listening(self) -> str:
        """Where it is reached directly; the members may know it by the address of a relay."""
        return str(self.options.get("listen", self.address))

    def get(self, call: str, **query: Option) -> dict[str, Any]:
        """A call that looks. Raises as `post`."""
        return self._answer("GET", call, None, query)

    def post(self, call: str, body: bytes | None = None, **query: Option) -> dict[str, Any]:
        """A call that acts.

        Raises:
            RefusedError: it was answered with an error.
            httpx.TransportError: there was no answer, or only a part of it.
        """
        return self._answer("POST", call, body, query)

    def _answer(
        self, method: str, call: str, body: bytes | None, query: Mapping[str, Option]
    ) -> dict[str, Any]:
        answer = self.http.request(
            method,
            f"http://{self.listening}/{call}",
            content=body,
            params={name: str(value) for name, value in query.items()},
            timeout=_CALL_SECONDS,
        )
        if answer.status_code not in {200, 409}:
            raise RefusedError(f"{answer.status_code} {answer.text[:500]}", "unknown")
        value: dict[str, Any] = answer.json()
        if answer.status_code == 409:
            raise RefusedError(value["error"], value["outcome"])
        return value

    def stats(self) -> dict[str, Any] | None:
        """Its /stats, or None while it does not answer."""
        try:
            answer = self.http.get(f"http://{self.listening}/stats", timeout=2.0)
            value: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        return value if answer.status_code == 200 else None

    def wait_serving(self) -> dict[str, Any]:
        """Its first /stats."""
        return eventually(self.stats, f"{self.id} answers:\n{self.output()}")

    def apply(self, data: bytes, extensions: bytes = b"") -> dict[str, Any]:
        """`index` and `response` of one command. Raises as `post`."""
        return self.post("apply", data, extensions=extensions.hex())

    def servers(self) -> dict[str, tuple[str, str]]:
        """Address and suffrage of each server in its latest configuration, by id."""
        listed = self.get("configuration")["servers"]
        return {server["id"]: (server["address"], server["suffrage"]) for server in listed}

    def log(self, first: int = 1, last: int | None = None) -> list[dict[str, Any]]:
        """Entries `first..last` of its log, as far as it has them, page by page."""
        entries: list[dict[str, Any]] = []
        while last is None or first <= last:
            page = self.get("log", first=first, last=first + 9999 if last is None else last)
            if not page["entries"]:
                break
            entries += page["entries"]
            first = entries[-1]["index"] + 1
        return entries

    def ids(self) -> list[str]:
        """All ids that its state machine applied, in order, page by page."""
        found: list[str] = []
        while page := self.get("ids", first=len(found) + 1)["ids"]:
            found += page
        return found
