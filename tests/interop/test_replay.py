"""What a table of sessions forgets and refuses, in Go as in Python: hours, days and 64 MiB.

Both apply the same entries outside of any cluster, so that stamps can be what they like.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import pytest

from rafthttp import Log, LogType, SessionFSM, SessionRequest
from rafthttp.sessions import envelope
from rafthttp.sessions.answers import ANSWER_SIZE_BYTES_MAX, RAISED
from rafthttp.sessions.snapshot import TableSnapshot
from rafthttp.sessions.table import (
    ANSWER_COST_BYTES,
    KEY_COST_BYTES,
    KEYS_SIZE_BYTES_MAX,
    SESSION_COST_BYTES,
    SESSION_SIZE_BYTES_MAX,
    Key,
    Session,
    SessionTable,
)
from rafthttp.testing.interop_member import GO_PROGRAM
from rafthttp.testing.ledger import Ledger
from rafthttp.testing.session_entries import SessionEntries

pytestmark = pytest.mark.interop

SECOND: Final = 10**9
MINUTE, HOUR, DAY = 60, 3600, 86400
BEGIN: Final = 1_700_000_000 * SECOND
_HEAD: Final = struct.Struct(">qI")
# Refusals by name, positions as text, and "nil".
Answers = list[str]


class Script:
    """Entries with their stamps, in the order of a log."""

    def __init__(self) -> None:
        self.entries: list[tuple[int | None, bytes]] = []
        self._at_ns = BEGIN
        self._commands = 0

    def add(self, data: bytes, step: float | None = 0) -> None:
        """One entry, so many seconds after the one before; None: it has no stamp."""
        self._at_ns += int((step or 0) * SECOND)
        self.entries.append((None if step is None else self._at_ns, data))

    def command(self) -> bytes:
        """One that was never applied."""
        self._commands += 1
        return b"c%d" % self._commands

    def open(self, name: int, step: float = 0) -> None:
        self.add(envelope.opening(ident(name)), step)

    def request(self, name: int, sequence: int, lowest: int = 0, step: float = 0) -> None:
        numbered = SessionRequest(ident(name), sequence, lowest)
        self.add(envelope.numbered(numbered, self.command()), step)

    def once(self, key: str, step: float = 0) -> None:
        self.add(envelope.once(key, None, self.command()), step)

    def wait(self, count: int, step: float | None = MINUTE) -> None:
        """So many entries that only move the clock, so many seconds each."""
        plain = envelope.plain(envelope.MAGIC)[: envelope.ENVELOPE_SIZE_BYTES]
        for _ in range(count):
            self.add(plain + b"time goes by", step)


def ident(name: int) -> bytes:
    return name.to_bytes(16, "big")


def in_go(directory: Path, script: Script, begin: Path | None) -> tuple[Answers, str]:
    """Answers and the snapshot's digest of the Go program."""
    path = directory / "entries"
    with path.open("wb") as file:
        for at, data in script.entries:
            file.write(_HEAD.pack(0 if at is None else at, len(data)) + data)
    command = [str(GO_PROGRAM), "-replay", str(path)]
    if begin is not None:
        command += ["-replay-from", str(begin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *answers, digest = done.stdout.splitlines()
    return answers, digest


def in_python(script: Script, begin: Path | None) -> tuple[Answers, str, SessionFSM]:
    """The same of ours, in batches of all sizes."""
    fsm = SessionFSM(Ledger())
    if begin is not None:
        with begin.open("rb") as source:
            fsm.restore(source)
    logs = [
        Log(index, 1, LogType.COMMAND, data, appended_at_ns=at)
        for index, (at, data) in enumerate(script.entries, 1)
    ]
    answers: Answers = []
    first, size = 0, 1
    while first < len(logs):
        answers += [said(answer) for answer in fsm.apply_batch(logs[first : first + size])]
        first, size = first + size, size % 40 + 1
    sink = Digest()
    fsm.snapshot().persist(cast("BinaryIO", sink))
    return answers, sink.chain.hexdigest(), fsm


class Digest:
    """A file that keeps nothing."""

    def __init__(self) -> None:
        self.chain = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.chain.update(data)
        return len(data)


def said(answer: object) -> str:
    if answer is None:
        return "nil"
    return type(answer).__name__ if isinstance(answer, Exception) else str(answer)


def replayed(
    directory: Path, script: Script, begin: Path | None = None
) -> tuple[Answers, SessionTable]:
    """What both answer, and the table that both have then."""
    answers, digest, fsm = in_python(script, begin)
    go_answers, go_digest = in_go(directory, script, begin)
    for number, (ours, theirs) in enumerate(zip(answers, go_answers, strict=True), 1):
        assert ours == theirs, f"entry {number}: {ours} here, {theirs} in Go"
    assert digest == go_digest
    return answers, fsm._table  # pyright: ignore[reportPrivateUsage] # what is left in it


def test_what_expires_and_when(tmp_path: Path) -> None:
    """A session after an hour, a key after a day, each at the first tick beyond; a step is 60 s."""
    script = Script()
    marks: list[int] = []

    def mark() -> None:
        marks.append(len(script.entries) - 1)

    script.open(1)
    script.wait(60)
    script.request(1, 1)  # an hour, and no more
    mark()
    script.wait(60, DAY)  # each step counts as a minute
    script.request(1, 2)
    mark()
    script.wait(60)
    script.request(1, 3, step=0.000000001)
    mark()
    script.once("k")
    mark()
    script.wait(1440)
    script.wait(3, -HOUR)  # a leader whose clock is behind: it stands still
    script.wait(1, None)
    script.once("k")  # a day, and no more
    mark()
    script.wait(1, 1)
    script.once("k")
    mark()
    answers, table = replayed(tmp_path, script)
    seen = [answers[at] for at in marks]
    first, second, key = (answers[at] for at in (marks[0], marks[1], marks[3]))
    assert first.isdigit()
    assert second.isdigit()
    assert seen[2] == "SessionExpiredError"
    assert seen[4] == key
    assert int(seen[5]) > int(key)
    assert len(table.keys) == 1
    assert table.sessions == {}


@pytest.mark.parametrize("seed", range(4))
def test_any_entries_over_days(tmp_path: Path, seed: int) -> None:
    """Steps of a minute for the most, so that sessions and keys expire all the time."""
    script = Script()
    source = SessionEntries(
        seed,
        [b"c%d" % number for number in range(3000)],
        sessions=[ident(name) for name in range(60)],
        keys=[f"k{number}" for number in range(300)],
        steps=(*[MINUTE] * 12, 0, 1, 59, 61, HOUR, 30 * DAY, -30, None),
    )
    for _ in range(6000):
        script.add(source.draw(), source.step())
    answers, table = replayed(tmp_path, script)
    assert table.clock_ns > 2 * DAY * SECOND
    assert "SessionExpiredError" in answers
    assert "RequestReusedError" in answers
    assert len(table.keys) < 300


# -- limits


def fill(size: int, cost: int) -> Iterable[bytes]:
    """Answers that add up to exactly `size` bytes, each with its cost."""
    whole = cost + ANSWER_SIZE_BYTES_MAX
    while size >= 2 * whole:
        yield bytes((RAISED,)) + b"x" * ANSWER_SIZE_BYTES_MAX
        size -= whole
    for part in (size // 2, size - size // 2):
        yield bytes((RAISED,)) + b"x" * (part - cost)


def session_of(size: int, first: int = 1) -> Session:
    """One that counts `size` bytes, with its answers from sequence `first` on."""
    session = Session(0)
    if size > SESSION_COST_BYTES:
        content = fill(size - SESSION_COST_BYTES, ANSWER_COST_BYTES)
        session.answers = dict(enumerate(content, first))
    return session


def snapshot(directory: Path, table: SessionTable) -> Path:
    """The table before an empty ledger, as a file."""
    path = directory / "snapshot"
    with path.open("wb") as sink:
        TableSnapshot(table, Ledger().snapshot()).persist(sink)
    return path


def with_sessions(directory: Path, sizes: Sequence[int]) -> Path:
    """Sessions 1, 2, … of these sizes; 1 is the one used longest ago."""
    table = SessionTable()
    table.last_ns = BEGIN
    for name, size in enumerate(sizes, 1):
        table.add_session(ident(name), session_of(size))
    return snapshot(directory, table)


def test_a_session_that_is_full_refuses(tmp_path: Path) -> None:
    """At 64 MiB; until its client gives answers up."""
    begin = with_sessions(tmp_path, [SESSION_SIZE_BYTES_MAX - 1, SESSION_COST_BYTES])
    script = Script()
    script.request(1, 10_000)
    script.request(1, 10_001)  # full
    script.request(2, 1)  # another is not
    script.request(1, 10_002, lowest=2)
    script.request(1, 10_000)  # remembered
    answers, _ = replayed(tmp_path, script, begin)
    assert answers == ["1", "OverloadedError", "2", "3", "1"]


def test_sessions_are_evicted(tmp_path: Path) -> None:
    """At 128 MiB the one used longest ago, by a request or by an open; never the asking one."""
    half = SESSION_SIZE_BYTES_MAX
    begin = with_sessions(tmp_path, [*[SESSION_COST_BYTES] * 4, half - 3 * 512, half - 513])
    script = Script()
    script.request(1, 1)  # 128 MiB but for what it costs: nothing goes, and it is the newest now
    script.request(3, 1)  # over it: 2 goes
    script.request(2, 1)
    script.open(7)  # 4 goes
    script.request(4, 1)
    script.request(5, 10_000)
    script.request(6, 10_000)
    script.request(1, 1)
    script.request(1, 2)  # 3 goes
    script.request(3, 1)
    answers, table = replayed(tmp_path, script, begin)
    expired = "SessionExpiredError"
    assert answers == ["1", "2", expired, "nil", expired, "3", "4", "1", "5", expired]
    assert [int.from_bytes(name, "big") for name in table.sessions] == [7, 5, 6, 1]


def test_keys_are_refused_and_later_evicted(tmp_path: Path) -> None:
    """At 64 MiB; none of the last ten minutes is forgotten."""
    table = SessionTable()
    table.last_ns = BEGIN
    content = fill(KEYS_SIZE_BYTES_MAX - 1, KEY_COST_BYTES)
    for number, answer in enumerate(content):
        table.add_key(envelope.once(str(number), None, b"")[8:24], Key(0, 0, answer))
    held = len(table.keys)
    begin = snapshot(tmp_path, table)
    script = Script()
    script.once("new")
    script.once("newer")  # full
    script.wait(10)
    script.once("newer")  # ten minutes, and no more
    script.once("newer", step=1)  # the oldest goes
    script.once("new")
    script.once("newest")
    script.once("0")  # was evicted: applied anew
    answers, table = replayed(tmp_path, script, begin)
    refused = "OverloadedError"
    assert [answers[0], answers[1], *answers[12:]] == ["1", refused, refused, "3", "1", "4", "5"]
    assert len(table.keys) == held - 1 + 4


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_any_entries_at_the_limits(tmp_path: Path, seed: int) -> None:
    """A table that is full, and entries of all kinds."""
    table = SessionTable()
    table.last_ns = BEGIN
    large, small = [ident(0), ident(1)], [ident(name) for name in range(2, 12)]
    for name in large:  # never given up, nor for long the one used longest ago
        table.add_session(name, session_of(SESSION_SIZE_BYTES_MAX - 4000, first=1 << 30))
    for number, answer in enumerate(fill(KEYS_SIZE_BYTES_MAX - 4000, KEY_COST_BYTES)):
        table.add_key(envelope.once(f"k{number}", None, b"")[8:24], Key(0, 0, answer))
    begin = snapshot(tmp_path, table)
    script = Script()
    source = SessionEntries(
        seed,
        [b"c%d" % number for number in range(3000)],
        sessions=[*large * 20, *small],
        keys=[f"new{number}" for number in range(400)],
        steps=(*[0] * 12, 1, 5, 20, -30, None),
    )
    for _ in range(1500):
        script.add(source.draw(), source.step())
    answers, after = replayed(tmp_path, script, begin)
    assert {"OverloadedError", "SessionExpiredError"} <= set(answers)
    assert len(after.sessions) < 12, "some were evicted"
    assert all(name in after.sessions for name in large)
