"""What all snapshot stores and their callers have in common.

A store lists what looks whole; only opening one reads all of it. So whoever needs the state of the
newest whole snapshot asks `open_newest`, not for the first of the list.
"""

from __future__ import annotations

import logging
from typing import BinaryIO, Final

from rafthttp.raft.errors import CorruptSnapshotError
from rafthttp.raft.storage.protocols import (
    CheckingSnapshotStore,
    SnapshotMeta,
    SnapshotStore,
)
from rafthttp.raft.types import Index, Term

_logger = logging.getLogger("rafthttp.raft.storage")

SNAPSHOT_VERSION: Final = 1
"""hashicorp/raft's `SnapshotVersion`: 1 has a configuration. The only one that is kept."""

_NUMBER_MAX: Final = (1 << 63) - 1


def check_new(index: Index, term: Term, configuration_index: Index, version: int) -> None:
    """Check what a snapshot is begun with.

    Raises:
        ValueError: the caller's mistake: a number out of its bounds, or an unknown version.
    """
    numbers = {
        "index": (index, 1),
        "term": (term, 1),
        "configuration_index": (configuration_index, 0),
    }
    for name, (number, least) in numbers.items():
        if not least <= number <= _NUMBER_MAX:
            raise ValueError(
                f"a snapshot's {name} is {number}; it must be from {least} to 2**63 - 1"
            )
    if version != SNAPSHOT_VERSION:
        raise ValueError(
            f"snapshot version {version} is unknown; this is version {SNAPSHOT_VERSION}"
        )


def open_newest(store: SnapshotStore) -> tuple[SnapshotMeta, BinaryIO] | None:
    """The newest snapshot that is whole, opened; None where the store lists none (S9).

    Broken ones are passed over with a warning. The caller closes the file, and checks that the log
    reaches back to the snapshot it got (S10).

    Raises:
        CorruptSnapshotError: there are snapshots, and none is whole.
        StorageError: the disk failed.
    """
    first: CorruptSnapshotError | None = None
    for meta in store.list():
        try:
            return store.open(meta.id)
        except CorruptSnapshotError as error:
            _logger.warning("%s; the one before it is used, if there is one", error)
            first = first or error
    if first is not None:
        raise first
    return None


def open_checking(store: SnapshotStore, snapshot_id: str) -> tuple[SnapshotMeta, BinaryIO]:
    """One snapshot and its state, checked while it is read, where the store can do that.

    For whoever makes nothing of a state that it did not get to the end of.

    Raises:
        CorruptSnapshotError: it is broken; or a read says so, before the end (where the store
            checks a state beforehand, none does).
        StorageError: there is none of this name, or the disk failed.
    """
    if isinstance(store, CheckingSnapshotStore):
        return store.open_checking(snapshot_id)
    return store.open(snapshot_id)
