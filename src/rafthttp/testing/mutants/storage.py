"""Bugs of durability and snapshots."""

from __future__ import annotations

from typing import Any, Final

from rafthttp.raft.core.consensus import Consensus
from rafthttp.raft.core.durability import Durability
from rafthttp.raft.core.leadership import Leadership
from rafthttp.raft.core.ready import Persist, Seq
from rafthttp.raft.core.server import Server
from rafthttp.raft.types import Index, Term
from rafthttp.testing.mutants.plant import Patch

# pyright: reportPrivateUsage=false
# A bug is planted inside.


def vote_before_write(patch: Patch) -> None:
    """S1: a reply does not wait for term and vote."""

    def seq_of_hard_state(_self: Durability) -> Seq:
        return 0

    patch.set(Durability, "seq_of_hard_state", seq_of_hard_state)


def ack_before_write(patch: Patch) -> None:
    """S4: a reply does not wait for the entries it vouches for."""

    def seq_of(self: Durability, _index: Index) -> Seq:
        return self.seq_of_hard_state()

    patch.set(Durability, "seq_of", seq_of)


def term_without_vote(patch: Patch) -> None:
    """S2: the write of a term leaves the vote out."""
    original = Durability.take

    def take(self: Durability, term: Term, _voted_for: Any, *args: Any) -> Persist | None:
        return original(self, term, None, *args)

    patch.set(Durability, "take", take)


def hard_state_not_written(patch: Patch) -> None:
    """Raft Figure 2: term and vote live in memory only."""
    original = Durability.take

    def take(self: Durability, *args: Any) -> Persist | None:
        persist = original(self, *args)
        return None if persist is None else persist._replace(hard_state=None)

    patch.set(Durability, "take", take)


def undurable_leader(patch: Patch) -> None:
    """Thesis §10.2.1: the leader counts itself for what is not on its disk yet."""
    original = Leadership.advance_commit

    def advance_commit(self: Leadership) -> None:
        disk = self._server.disk
        durable, disk.durable_index = disk.durable_index, disk.submitted_index
        original(self)
        disk.durable_index = durable

    patch.set(Leadership, "advance_commit", advance_commit)


def unclipped_writes(patch: Patch) -> None:
    """Decision 5, S11: a truncation leaves the writes in flight as they are."""
    original = Durability.truncate_from

    def truncate_from(self: Durability, index: Index) -> None:
        writes = self._writes
        lasts = [write.last for write in writes]
        original(self, index)
        for write, last in zip(writes, lasts, strict=True):
            write.last = last

    patch.set(Durability, "truncate_from", truncate_from)


def failed_write_counts(patch: Patch) -> None:
    """S6: a write that failed is taken for done."""

    def on_persist_failed(self: Consensus, seq: Seq, now_ns: int) -> None:
        self.on_persisted(seq, now_ns)

    patch.set(Consensus, "on_persist_failed", on_persist_failed)


def truncation_not_written(patch: Patch) -> None:
    """Raft §5.3: a truncation stays in memory."""
    original = Durability.take

    def take(self: Durability, *args: Any) -> Persist | None:
        persist = original(self, *args)
        return None if persist is None else persist._replace(truncate_from=None)

    patch.set(Durability, "take", take)


def divergent_log_behind_a_snapshot(patch: Patch) -> None:
    """S38: a log that contradicts a snapshot at its end is kept behind it."""
    original = Consensus.on_snapshot_installed

    def on_snapshot_installed(
        self: Consensus, rpc: int, last_index: Index, _last_term: Term, *args: Any
    ) -> bool:
        held = self._server.log.term_at(last_index)
        return original(self, rpc, last_index, _last_term if held is None else held, *args)

    _set_inherited(patch, "on_snapshot_installed", on_snapshot_installed)


def _set_inherited(patch: Patch, name: str, value: Any) -> None:
    """Replace a method where it is defined, which may be a base of `Consensus`."""
    owner = next(base for base in Consensus.__mro__ if name in base.__dict__)
    patch.set(owner, name, value)


def snapshot_term_forgotten(patch: Patch) -> None:
    """Raft §7: after a snapshot the log begins at its index with no term."""
    original = Server.reset

    def reset(self: Server, index: Index, term: Term, *args: Any) -> None:
        original(self, index, max(term - 1, 0), *args)

    patch.set(Server, "reset", reset)


PLANTS: Final = (
    (vote_before_write, "vote_durability", True),
    (ack_before_write, "truncation_race", True),
    (term_without_vote, None, True),
    (hard_state_not_written, None, True),
    (undurable_leader, None, True),
    (unclipped_writes, "truncation_race", False),
    (failed_write_counts, "disk", True),
    (truncation_not_written, None, True),
    (divergent_log_behind_a_snapshot, "snapshot_divergence", False),
    (snapshot_term_forgotten, None, True),
)
