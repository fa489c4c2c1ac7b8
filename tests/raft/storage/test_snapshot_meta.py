"""`meta.json`: what was written, or an error of its own, whatever the bytes are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp.raft.storage.protocols import SnapshotMeta
from rafthttp.raft.storage.snapshot_meta import (
    BrokenMetaError,
    NewerFormatError,
    StoredMeta,
    decode_meta,
    encode_meta,
    sealed,
)
from rafthttp.raft.types import Configuration, Server, ServerAddress, ServerID

STORED = StoredMeta(
    SnapshotMeta(
        "1-9-1", 9, 1, Configuration((Server(ServerID("n1"), ServerAddress("h:1")),)), 7, 100, 1
    ),
    "ab" * 32,
)
FIELDS: dict[str, Any] = json.loads(encode_meta(STORED))
del FIELDS["checksum"]

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_nesting_of_any_depth() -> None:
    """A parser and a writer of JSON give up at different depths."""
    for depth in [*range(900, 1050), 100_000]:
        with pytest.raises(BrokenMetaError):
            decode_meta(b'{"a":' * depth + b"1" + b"}" * depth)


@given(st.sampled_from(sorted(FIELDS)), JSON)
def test_fields_of_any_kind_under_a_right_checksum(name: str, value: object) -> None:
    """As another writer may make it: what is taken is what it says, and of the right kind."""
    data = sealed({**FIELDS, name: value})
    try:
        stored = decode_meta(data)
    except (BrokenMetaError, NewerFormatError):
        return
    assert encode_meta(stored) == data
    assert stored.meta.index >= 0
    assert stored.meta.size >= 0


@given(JSON)
def test_servers_of_any_kind(server: object) -> None:
    data = sealed({**FIELDS, "configuration": [server]})
    try:
        stored = decode_meta(data)
    except BrokenMetaError:
        return
    assert encode_meta(stored) == data
