"""What every replica remembers of sessions and keys, and what it decides by it.

Knows envelopes and the entries' times; no clock of its own, no state machine. Every decision
follows from the entries alone, so the limits below are part of the format, not settings.

Invariant: `_sessions` is in order of the last use, `_keys` in order of their first; the one that
expires first is first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from rafthttp.raft.errors import (
    OverloadedError,
    RequestReusedError,
    SessionExpiredError,
    SessionFormatError,
)
from rafthttp.sessions.answers import ANSWER_SIZE_BYTES_MAX
from rafthttp.sessions.envelope import ENVELOPE_SIZE_BYTES, HEAD, VERSION, Kind

_SECOND: Final = 1_000_000_000

STEP_NS_MAX: Final = 60 * _SECOND
SESSION_TTL_NS: Final = 3600 * _SECOND
KEY_TTL_NS: Final = 24 * 3600 * _SECOND
KEY_TTL_NS_MIN: Final = 600 * _SECOND
# 2262-01-01: nanoseconds up to here fit a signed 64-bit number, Go's UnixNano.
_TIME_NS_END: Final = 9_214_646_400 * _SECOND

SESSION_COST_BYTES: Final = 512
ANSWER_COST_BYTES: Final = 128
KEY_COST_BYTES: Final = 256
SESSION_SIZE_BYTES_MAX: Final = 64 << 20
SESSIONS_SIZE_BYTES_MAX: Final = 128 << 20
KEYS_SIZE_BYTES_MAX: Final = 64 << 20
_ENTRY_COST_BYTES_MAX: Final = SESSION_COST_BYTES + ANSWER_COST_BYTES + ANSWER_SIZE_BYTES_MAX

_NEVER: Final = 1 << 80


class Waiting:
    """A command that is to be applied, and where its answer belongs.

    Attributes:
        is_taken: whether it is among the commands of this batch already.
        remembered: the answer as the table keeps it, once it is there.
    """

    __slots__ = ("holder", "is_taken", "remembered", "sequence")

    def __init__(self, holder: Session | Key | None, sequence: int) -> None:
        self.holder = holder
        self.sequence = sequence
        self.is_taken = False
        self.remembered = b""


class Session:
    """One client's: the answers it may still ask for, by sequence; all at or above `lowest`.

    `size` is -1 once the table has forgotten it (an answer on its way then counts for nothing).
    """

    __slots__ = ("answers", "lowest", "size", "used_ns")

    def __init__(self, used_ns: int) -> None:
        self.used_ns = used_ns
        self.lowest = 0
        self.answers: dict[int, bytes | Waiting] = {}
        self.size = SESSION_COST_BYTES


class Key:
    """One request under a key; `size` as of `Session`."""

    __slots__ = ("answer", "at_ns", "fingerprint", "size")

    def __init__(self, at_ns: int, fingerprint: int, answer: bytes | Waiting) -> None:
        self.at_ns = at_ns
        self.fingerprint = fingerprint
        self.answer = answer
        self.size = KEY_COST_BYTES


class SessionTable:
    """The table. `decide` each envelope in the order of the log, then `remember` the answers.

    Several may be decided before the first is remembered only where `has_room_for` them: the
    limits count what is remembered, and replicas cut the log into different batches.
    """

    def __init__(self) -> None:
        self.clock_ns = 0
        self.last_ns = 0
        self.sessions: OrderedDict[bytes, Session] = OrderedDict()
        self.keys: OrderedDict[bytes, Key] = OrderedDict()
        self._sessions_size = 0
        self._keys_size = 0
        self._newest: Session | None = None
        self._due_ns = _NEVER
        """Nothing expires while the clock is not beyond this."""

    @property
    def is_pristine(self) -> bool:
        """Whether no envelope was ever applied, so that there is nothing to write down."""
        return not (self.last_ns or self.sessions or self.keys)

    def has_room_for(self, entries: int) -> bool:
        """Whether so many entries cannot reach a limit, whatever they are."""
        most = entries * _ENTRY_COST_BYTES_MAX
        return (
            self._sessions_size + most < SESSION_SIZE_BYTES_MAX
            and self._keys_size + most < KEYS_SIZE_BYTES_MAX
        )

    def decide(self, data: bytes, appended_at_ns: int | None) -> Waiting | bytes | Exception | None:
        """What one envelope comes to.

        Returns:
            None for an opened session; an exception for a refusal; the answer as it is remembered;
            or `Waiting`: a new one is to be applied, one that is taken already is a duplicate of a
            command of this batch.
        """
        if len(data) < ENVELOPE_SIZE_BYTES:
            return SessionFormatError(f"an envelope of {len(data)} bytes is too short")
        _, version, kind, key, a, b = HEAD.unpack_from(data)
        if version != VERSION or kind > Kind.ONCE:
            return SessionFormatError(f"envelope version {version}, kind {kind} is unknown here")
        if appended_at_ns != self.last_ns:
            self._move(appended_at_ns)
        if kind == Kind.REQUEST:
            return self._request(key, a, b)
        if kind == Kind.ONCE:
            return self._once(key, b)
        if kind == Kind.OPEN:
            self._open(key)
            return None
        return Waiting(None, 0)

    def remember(self, waiting: Waiting, answer: bytes) -> None:
        """The answer of a command that was applied."""
        waiting.remembered = answer
        holder = waiting.holder
        if holder is None or holder.size < 0:
            return
        size = len(answer) - 1
        if isinstance(holder, Key):
            holder.answer = answer
            holder.size += size
            self._keys_size += size
        elif holder.answers.get(waiting.sequence) is waiting:  # or a later request gave it up
            holder.answers[waiting.sequence] = answer
            size += ANSWER_COST_BYTES
            holder.size += size
            self._sessions_size += size

    # -- restoring

    def add_session(self, key: bytes, session: Session) -> None:
        """The next session of a snapshot."""
        session.size = SESSION_COST_BYTES
        for answer in session.answers.values():
            assert isinstance(answer, bytes), "nothing waits between batches"
            session.size += ANSWER_COST_BYTES + len(answer) - 1
        self.sessions[key] = session
        self._sessions_size += session.size
        self._due_ns = min(self._due_ns, session.used_ns + SESSION_TTL_NS)

    def add_key(self, key: bytes, entry: Key) -> None:
        """The next key of a snapshot."""
        assert isinstance(entry.answer, bytes), "nothing waits between batches"
        entry.size = KEY_COST_BYTES + len(entry.answer) - 1
        self.keys[key] = entry
        self._keys_size += entry.size
        self._due_ns = min(self._due_ns, entry.at_ns + KEY_TTL_NS)

    # -- inside

    def _move(self, appended_at_ns: int | None) -> None:
        if appended_at_ns is None or not 0 < appended_at_ns < _TIME_NS_END:
            return
        step = appended_at_ns - self.last_ns if self.last_ns else 0
        if step > 0:
            self.clock_ns += min(STEP_NS_MAX, step)
        self.last_ns = appended_at_ns
        if self.clock_ns > self._due_ns:
            self._expire()

    def _expire(self) -> None:
        due = _NEVER
        while self.sessions:
            first_due = next(iter(self.sessions.values())).used_ns + SESSION_TTL_NS
            if first_due >= self.clock_ns:
                due = first_due
                break
            self._drop_session()
        while self.keys:
            first_due = next(iter(self.keys.values())).at_ns + KEY_TTL_NS
            if first_due >= self.clock_ns:
                due = min(due, first_due)
                break
            self._drop_key()
        self._due_ns = due

    def _drop_session(self) -> None:
        _, session = self.sessions.popitem(last=False)
        self._sessions_size -= session.size
        session.size = -1

    def _drop_key(self) -> None:
        _, entry = self.keys.popitem(last=False)
        self._keys_size -= entry.size
        entry.size = -1

    def _use(self, key: bytes, session: Session) -> None:
        session.used_ns = self.clock_ns
        if self._newest is not session:
            self.sessions.move_to_end(key)
            self._newest = session

    def _open(self, key: bytes) -> None:
        session = self.sessions.get(key)
        if session is None:
            while self.sessions and (
                self._sessions_size + SESSION_COST_BYTES > SESSIONS_SIZE_BYTES_MAX
            ):
                self._drop_session()
            session = self.sessions[key] = Session(self.clock_ns)
            self._sessions_size += SESSION_COST_BYTES
            self._due_ns = min(self._due_ns, self.clock_ns + SESSION_TTL_NS)
        self._use(key, session)

    def _request(self, key: bytes, sequence: int, lowest: int) -> Waiting | bytes | Exception:
        session = self.sessions.get(key)
        if session is None:
            return SessionExpiredError("the session of this request is not known, or expired")
        if session is self._newest:
            session.used_ns = self.clock_ns
        else:
            self._use(key, session)
        if lowest > session.lowest:
            self._forget_below(session, lowest)
        if sequence < session.lowest:
            return SessionExpiredError(
                f"request {sequence} was given up: {session.lowest} is the lowest of its session"
            )
        known = session.answers.get(sequence)
        if known is not None:
            return known
        if session.size >= SESSION_SIZE_BYTES_MAX:
            return OverloadedError("too many answers of this session are not acknowledged")
        while self._sessions_size >= SESSIONS_SIZE_BYTES_MAX and len(self.sessions) > 1:
            self._drop_session()
        waiting = session.answers[sequence] = Waiting(session, sequence)
        return waiting

    def _forget_below(self, session: Session, lowest: int) -> None:
        answers = session.answers
        numbers: Iterable[int] = range(session.lowest, lowest)
        if lowest - session.lowest > len(answers):
            numbers = [number for number in answers if number < lowest]
        size = 0
        for number in numbers:
            answer = answers.pop(number, None)
            if type(answer) is bytes:
                size += ANSWER_COST_BYTES + len(answer) - 1
        session.lowest = lowest
        session.size -= size
        self._sessions_size -= size

    def _once(self, key: bytes, fingerprint: int) -> Waiting | bytes | Exception:
        known = self.keys.get(key)
        if known is not None:
            if fingerprint and known.fingerprint and fingerprint != known.fingerprint:
                return RequestReusedError("another request was made under this id")
            return known.answer
        while self._keys_size >= KEYS_SIZE_BYTES_MAX:
            if next(iter(self.keys.values())).at_ns + KEY_TTL_NS_MIN >= self.clock_ns:
                return OverloadedError("too many requests of the last ten minutes are remembered")
            self._drop_key()
        waiting = Waiting(None, 0)
        waiting.holder = self.keys[key] = Key(self.clock_ns, fingerprint, waiting)
        self._keys_size += KEY_COST_BYTES
        self._due_ns = min(self._due_ns, self.clock_ns + KEY_TTL_NS)
        return waiting
