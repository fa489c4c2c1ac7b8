"""Replicas that cut the log differently, and that come from a snapshot, against a plain model."""

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafthttp.sessions import answers, envelope, table
from rafthttp.testing.session_entries import SessionEntries

# Limits small enough to be met, and answers small enough to fit under them several at a time.
LIMITS = {
    "SESSION_SIZE_BYTES_MAX": 1000,
    "SESSIONS_SIZE_BYTES_MAX": 2000,
    "KEYS_SIZE_BYTES_MAX": 900,
    "_ENTRY_COST_BYTES_MAX": 160,
    "SESSION_COST_BYTES": 100,
    "KEY_COST_BYTES": 120,
    "SESSION_TTL_NS": 150 * 10**9,
    "KEY_TTL_NS": 200 * 10**9,
    "KEY_TTL_NS_MIN": 100 * 10**9,
}
ANSWER_SIZE_BYTES_MAX = 32


@pytest.fixture(scope="module", params=[1, 12], autouse=True)
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once met all the time, once hardly, so that long batches are applied as such."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            scaled = value * request.param if name.endswith("SIZE_BYTES_MAX") else value
            patch.setitem(LIMITS, name, scaled)
            patch.setattr(table, name, scaled)
        patch.setattr(answers, "ANSWER_SIZE_BYTES_MAX", ANSWER_SIZE_BYTES_MAX)
        yield


class Model:
    """The rules of docs/reference/sessions.md, one entry at a time, as plainly as can be."""

    def __init__(self) -> None:
        self.clock = self.last = 0
        self.sessions: dict[bytes, dict[str, Any]] = {}
        self.keys: dict[bytes, dict[str, Any]] = {}
        self.applied: list[bytes] = []

    def step(self, data: bytes, at: int | None) -> tuple[str, Any]:
        if not data.startswith(envelope.MAGIC):
            return self.do(data)
        kind, key, command = data[7], data[8:24], data[40:]
        a, b = int.from_bytes(data[24:32], "big"), int.from_bytes(data[32:40], "big")
        if at is not None and at > 0:
            step = min(max(at - self.last, 0), 60 * 10**9) if self.last else 0
            self.clock, self.last = self.clock + step, at
        ttl, key_ttl = LIMITS["SESSION_TTL_NS"], LIMITS["KEY_TTL_NS"]
        self.sessions = {k: s for k, s in self.sessions.items() if s["used"] + ttl >= self.clock}
        self.keys = {k: e for k, e in self.keys.items() if e["at"] + key_ttl >= self.clock}
        if kind == 0:
            return self.do(command)
        if kind == 1:
            if key not in self.sessions:
                self.evict(LIMITS["SESSIONS_SIZE_BYTES_MAX"] - LIMITS["SESSION_COST_BYTES"] + 1, 0)
                self.sessions[key] = {"lowest": 0, "answers": {}}
            self.use(key)
            return "ok", None
        return self.request(key, a, b, command) if kind == 2 else self.once(key, b, command)

    def request(self, key: bytes, a: int, b: int, command: bytes) -> tuple[str, Any]:
        if key not in self.sessions:
            return "refused", "SessionExpiredError"
        session = self.use(key)
        session["lowest"] = max(session["lowest"], b)
        session["answers"] = {n: x for n, x in session["answers"].items() if n >= session["lowest"]}
        if a < session["lowest"]:
            return "refused", "SessionExpiredError"
        if a in session["answers"]:
            return self.again(session["answers"][a])
        if self.size(session) >= LIMITS["SESSION_SIZE_BYTES_MAX"]:
            return "refused", "OverloadedError"
        self.evict(LIMITS["SESSIONS_SIZE_BYTES_MAX"], 1)
        session["answers"][a] = self.do(command)
        return session["answers"][a]  # type: ignore[no-any-return] # a dict of anything

    def once(self, key: bytes, b: int, command: bytes) -> tuple[str, Any]:
        if key in self.keys:
            entry = self.keys[key]
            if b and entry["fingerprint"] and b != entry["fingerprint"]:
                return "refused", "RequestReusedError"
            return self.again(entry["answer"])
        while (
            sum(120 + content(e["answer"]) for e in self.keys.values())
            >= (LIMITS["KEYS_SIZE_BYTES_MAX"])
        ):
            oldest = next(iter(self.keys))
            if self.keys[oldest]["at"] + LIMITS["KEY_TTL_NS_MIN"] >= self.clock:
                return "refused", "OverloadedError"
            del self.keys[oldest]
        answer = self.do(command)
        self.keys[key] = {"fingerprint": b, "at": self.clock, "answer": answer}
        return answer

    def do(self, command: bytes) -> tuple[str, Any]:
        self.applied.append(command)
        if command.startswith(b"raise"):
            return "raised", f"KeyError: {command.decode()!r}"
        return "ok", msgpack.unpackb(command)

    def use(self, key: bytes) -> dict[str, Any]:
        session = self.sessions.pop(key)
        session["used"] = self.clock
        self.sessions[key] = session
        return session

    def evict(self, size: int, left: int) -> None:
        while len(self.sessions) > left and sum(map(self.size, self.sessions.values())) >= size:
            del self.sessions[next(iter(self.sessions))]

    def size(self, session: dict[str, Any]) -> int:
        return 100 + sum(128 + content(answer) for answer in session["answers"].values())

    def again(self, answer: tuple[str, Any]) -> tuple[str, Any]:
        if not content(answer):
            return "raised", "not kept"
        return answer


def content(answer: tuple[str, Any]) -> int:
    kind, value = answer
    if kind == "raised":
        return min(len(value.encode()), ANSWER_SIZE_BYTES_MAX)
    size = len(msgpack.packb(value))
    return size if size <= ANSWER_SIZE_BYTES_MAX else 0


def said(result: Any) -> tuple[str, Any]:
    if isinstance(result, KeyError):
        return "raised", f"KeyError: {result}"
    if isinstance(result, Exception):
        name = type(result).__name__
        if name != "RemoteApplyError":
            return "refused", name
        text = str(result)
        return "raised", "not kept" if text.startswith("applied, once") else text
    return "ok", result


VALUES = (None, 1, "x" * 20, "y" * 60, [1, {"k": 2}])
COMMANDS = [b"raise it", *map(msgpack.packb, VALUES)]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 120))
def test_replicas_agree_however_they_got_there(
    new_replica: Callable[[], Any],
    restored: Callable[[bytes], Any],
    seed: int,
    count: int,
) -> None:
    source = SessionEntries(seed, COMMANDS)
    # What lies before an entry: nothing, a cut, or a restart from a snapshot.
    entries = [
        (source.draw(), source.step(), source.random.choice("      c s")) for _ in range(count)
    ]
    at = 1_700_000_000 * 10**9
    model, whole, single, cut = Model(), new_replica(), new_replica(), new_replica()
    logs: list[Any] = []
    expected: list[tuple[str, Any]] = []
    for data, step, _ in entries:
        at += 10**9 * (step or 0)
        logs.append(whole.log(data, None if step is None else at))
        expected.append(model.step(data, logs[-1].appended_at_ns))
    for name, replica in (("at once", whole), ("one by one", single)):
        batches = [logs] if replica is whole else [[log] for log in logs]
        got = [said(r) for batch in batches for r in replica.fsm.apply_batch(batch)]
        assert got == expected, name
    results: list[tuple[str, Any]] = []
    batch: list[Any] = []
    for log, (_, _, before) in zip(logs, entries, strict=True):
        if before != " ":
            results += [said(r) for r in cut.fsm.apply_batch(batch)]
            batch = []
        if before == "s":
            cut = restored(cut.image())
        batch.append(log)
    results += [said(r) for r in cut.fsm.apply_batch(batch)]
    assert results == expected, "cut and restored"
    assert whole.inner.commands == single.inner.commands == cut.inner.commands == model.applied
    assert whole.image() == single.image() == cut.image()
    sizes = {
        (table._sessions_size, table._keys_size)
        for table in (r.fsm._table for r in (whole, single, cut, restored(cut.image())))
    }
    assert len(sizes) == 1, "what counts against the limits"
