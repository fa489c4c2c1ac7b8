"""The replicated dictionary and its snapshots."""

import io

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafthttp import Log, LogType
from rafthttp.kv.commands import Command, CommandError, KeyInfo, Operation, encode
from rafthttp.kv.fsm import KVStateMachine, SnapshotFormatError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def entry(data: bytes, index: int = 1) -> Log:
    return Log(index=index, term=1, type=LogType.COMMAND, data=data)


def put(fsm: KVStateMachine, key: str, value: bytes) -> None:
    fsm.apply(entry(encode(Command(Operation.PUT, key, value))))


def filled(*pairs: tuple[str, bytes]) -> KVStateMachine:
    fsm = KVStateMachine()
    for key, value in pairs:
        put(fsm, key, value)
    return fsm


def written(fsm: KVStateMachine) -> bytes:
    sink = io.BytesIO()
    snapshot = fsm.snapshot()
    snapshot.persist(sink)
    snapshot.release()
    return sink.getvalue()


def test_put_get_overwrite_delete() -> None:
    fsm = filled(("a", b"1"), ("a", b"2"))
    assert fsm.get("a") == b"2"
    assert fsm.apply(entry(encode(Command(Operation.DELETE, "a")))) is True
    assert fsm.apply(entry(encode(Command(Operation.DELETE, "a")))) is False
    assert fsm.get("a") is None
    assert len(fsm) == 0


def test_a_command_of_another_version_is_answered_and_the_batch_goes_on() -> None:
    fsm = KVStateMachine()
    good = encode(Command(Operation.PUT, "a", b"1"))
    answers = fsm.apply_batch([entry(b"\x07" + good[1:], 1), entry(good, 2)])
    assert isinstance(answers[0], CommandError)
    assert answers[1] is None
    assert fsm.get("a") == b"1"


def test_list_gives_sizes_in_order_and_only_the_prefix() -> None:
    fsm = filled(("b/2", b"22"), ("b/10", b""), ("a", b"1"), ("b", b"x"), ("c", b"c"))
    assert fsm.list("b/", limit=10) == [KeyInfo("b/10", 0), KeyInfo("b/2", 2)]
    assert [info.key for info in fsm.list("", limit=10)] == ["a", "b", "b/10", "b/2", "c"]
    assert fsm.list("zz", limit=10) == []


@given(keys=st.sets(TEXT, max_size=30), prefix=st.text(max_size=2), limit=st.integers(1, 5))
def test_pages_put_together_are_the_whole_list(keys: set[str], prefix: str, limit: int) -> None:
    fsm = filled(*((key, b"") for key in keys))
    found: list[str] = []
    after = None
    while page := fsm.list(prefix, after=after, limit=limit):
        assert len(page) <= limit
        found += [info.key for info in page]
        after = found[-1]
    assert found == sorted(key for key in keys if key.startswith(prefix))


@given(st.dictionaries(TEXT, st.binary(max_size=20), max_size=20))
def test_a_snapshot_restores_to_the_same(data: dict[str, bytes]) -> None:
    fsm = filled(*data.items())
    other = filled(("gone", b"after restore"))
    other.restore(io.BytesIO(written(fsm)))
    assert {info.key: other.get(info.key) for info in other.list(limit=100)} == data


def test_a_snapshot_is_of_its_moment() -> None:
    fsm = filled(("a", b"1"))
    snapshot = fsm.snapshot()
    put(fsm, "a", b"2")
    put(fsm, "b", b"3")
    sink = io.BytesIO()
    snapshot.persist(sink)
    fsm.restore(io.BytesIO(sink.getvalue()))
    assert (fsm.get("a"), fsm.get("b")) == (b"1", None)


def test_the_format_of_a_snapshot_is_fixed() -> None:
    header = msgpack.packb({"format": "rafthttp-kv", "version": 1, "keys": 1})
    assert written(filled(("k", b"v"))) == header + msgpack.packb(["k", b"v"]) + b"\xc0"


def test_a_snapshot_cut_anywhere_is_refused_and_the_old_state_stays() -> None:
    whole = written(filled(("a", b"1"), ("b", b"2" * 40)))
    fsm = filled(("old", b"state"))
    for size in range(len(whole)):
        with pytest.raises(SnapshotFormatError):
            fsm.restore(io.BytesIO(whole[:size]))
        assert fsm.get("old") == b"state"
    assert len(fsm) == 1


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([1], "no snapshot"),
        ({"format": "other", "version": 1, "keys": 0}, "no snapshot"),
        ({"format": "rafthttp-kv", "version": 2, "keys": 0}, "version 2 is unknown"),
        ({"format": "rafthttp-kv", "version": 1, "keys": -1}, "how many"),
        ({"format": "rafthttp-kv", "version": 1}, "how many"),
    ],
)
def test_a_foreign_header_is_refused(header: object, says: str) -> None:
    with pytest.raises(SnapshotFormatError, match=says):
        KVStateMachine().restore(io.BytesIO(msgpack.packb(header)))


@pytest.mark.parametrize(
    "claim", [b"\xdd\x00\x10\x00\x00", b"\xdf\x00\x10\x00\x00", b"\xdc\x00\x03", b"\xc7\x10\x01"]
)
def test_nothing_is_built_because_it_is_claimed(claim: bytes) -> None:
    """msgpack 1.1 makes a list of the size that five bytes claim."""
    header = msgpack.packb({"format": "rafthttp-kv", "version": 1, "keys": 1})
    for begin in (b"", header):
        with pytest.raises(SnapshotFormatError, match="exceeds max"):
            KVStateMachine().restore(io.BytesIO(begin + claim + bytes(16)))


def test_nothing_stands_behind_the_end() -> None:
    fsm = filled(("old", b"state"))
    with pytest.raises(SnapshotFormatError, match="does not end"):
        fsm.restore(io.BytesIO(written(filled(("a", b"1"))) + b"\xc0"))
    assert fsm.get("old") == b"state"


def test_pairs_of_wrong_types_or_repeated_keys_are_refused() -> None:
    def stream(*pairs: object) -> io.BytesIO:
        header = {"format": "rafthttp-kv", "version": 1, "keys": len(pairs)}
        return io.BytesIO(b"".join(map(msgpack.packb, [header, *pairs, None])))

    for pairs in ([[1, b"v"]], [["k", "text"]], [["k"]], [7], [["k", b"1"], ["k", b"2"]]):
        with pytest.raises(SnapshotFormatError):
            KVStateMachine().restore(stream(*pairs))
