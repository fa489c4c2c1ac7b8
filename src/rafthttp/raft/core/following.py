"""The follower's side of AppendEntries: log matching, truncation, and the hint for the leader.

Knows one frame and this server's log; not roles or timers.
"""

from __future__ import annotations

from collections.abc import Sequence

from rafthttp.raft.core.commitment import follower_commit
from rafthttp.raft.core.server import Server
from rafthttp.raft.core.termruns import TermRuns
from rafthttp.raft.errors import ProtocolError
from rafthttp.raft.types import Configuration, Index, Term


def check_frame(
    server: Server, term: Term, prev_index: Index, prev_term: Term, terms: Sequence[Term]
) -> None:
    """Refuse a frame that no correct leader of this cluster sends; nothing is changed by it.

    Raises:
        ProtocolError: the terms fall or exceed the leader's, or contradict a committed entry.
    """
    if terms and terms.count(terms[0]) != len(terms):
        at = 1
        while at < len(terms):
            if terms[at] < terms[at - 1]:
                raise ProtocolError(
                    f"entry {prev_index + 1 + at} has a lower term than its forerunner"
                )
            at += 1
    if terms and (terms[0] < prev_term or terms[-1] > term):
        raise ProtocolError("the entries' terms lie outside prev's and the leader's")
    # From here on: a leader of another cluster, or one that lost its disk (S60). Entries up to the
    # commit index are the same on every leader there will ever be (Raft Figure 3).
    if prev_index > 0 and prev_index <= server.commit_index:
        known = server.log.term_at(prev_index)
        if known is not None and known != prev_term:
            raise ProtocolError(f"the leader contradicts committed entry {prev_index}")
    first = max(prev_index + 1, server.log.base_index)
    for index in range(first, min(prev_index + len(terms), server.commit_index) + 1):
        if server.log.term_at(index) != terms[index - prev_index - 1]:
            raise ProtocolError(f"the leader contradicts committed entry {index}")


def conflict_hint(log: TermRuns, prev_index: Index, prev_term: Term, commit_index: Index) -> Index:
    """What to put in `LastLog` when `prev` does not match: below all that cannot match.

    The leader's terms up to `prev` are at most `prev_term`, so entries of higher terms cannot
    match; nor does the run of equal terms around `prev` match at its end, so it is skipped whole
    (Raft §5.3: one probe a divergent term). Entries up to the commit index always match. A leader
    in Go goes on at min(next - 1, hint + 1).
    """
    hint = log.last_at_most(min(prev_index, log.last_index), prev_term)
    if prev_index <= log.last_index:
        hint = min(hint, log.run_first(prev_index) - 1)
    return max(hint, commit_index)


def matches(server: Server, prev_index: Index, prev_term: Term) -> bool:
    """Whether this log holds the leader's entry at `prev` (Raft §5.3).

    What is committed matches without looking: `check_frame` saw to it, and it may be compacted.
    """
    return prev_index <= server.commit_index or server.log.term_at(prev_index) == prev_term


def first_new_index(server: Server, prev_index: Index, terms: Sequence[Term]) -> Index | None:
    """First entry of the frame that this log lacks; None if it holds them all (S29, S37)."""
    log = server.log
    last = prev_index + len(terms)
    index = max(prev_index, server.commit_index) + 1
    overlap = min(last, log.last_index)
    while index <= overlap and log.term_at(index) == terms[index - prev_index - 1]:
        index += 1
    return index if index <= last else None


def append(
    server: Server,
    prev_index: Index,
    terms: Sequence[Term],
    sizes: Sequence[int],
    shown_commit: Index,
    configurations: Sequence[tuple[Index, Configuration]],
) -> Index | None:
    """Take in a frame whose `prev` matches. Returns the first index that is new, or None."""
    assert len(sizes) == len(terms), "one size an entry"
    last = prev_index + len(terms)
    first = first_new_index(server, prev_index, terms)
    if first is not None:
        if first <= server.log.last_index:
            server.truncate_from(first)
        skip = first - prev_index - 1
        server.log.extend(terms[skip:] if skip else terms)
        server.sizes.extend(sizes[skip:] if skip else sizes)
        for index, configuration in configurations:
            if index >= first:
                server.members.append(index, configuration)
    commit = follower_commit(server.commit_index, shown_commit, last)
    if commit > server.commit_index:
        server.commit(commit)
    return first
