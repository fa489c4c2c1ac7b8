"""The checker of recorded traffic: Go's own bytes pass, and every planted violation is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from rafthttp.testing.wirecheck import (
    RequestChecker,
    ViolationError,
    check_configuration,
    check_switching,
    check_upgrade,
    head_size,
    read_responses,
    sender_address,
)

GOLDEN = Path(__file__).parents[1] / "raft" / "wire" / "testdata"
NAMES = sorted(
    path.name.removesuffix(".req.hex")
    for path in GOLDEN.glob("*.req.hex")
    if not path.name.startswith("http_")
)


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


def check(data: bytes, *, ours: bool = True) -> RequestChecker:
    checker = RequestChecker(ours=ours)
    checker.read(data)
    return checker


# The time format of `append_3_newtime` is none that ours sends.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "append_3_newtime"])
def test_what_go_writes_passes(name: str) -> None:
    request, response = golden(f"{name}.req"), golden(f"{name}.resp")
    checker = check(request + request, ours=False)
    assert checker.sent.rpcs == [request[0]] * 2
    answers = read_responses(checker.sent.rpcs, response + response)
    assert sum(answers.kinds.values()) == 2


@pytest.mark.parametrize(
    "name",
    [
        "append_1_noop",
        "append_3",
        "append_64x64",
        "append_empty_commit",
        "append_heartbeat",
        "install_snapshot_200",
        "request_vote",
        "request_prevote",
        "timeout_now",
    ],
)
def test_a_sound_leader_passes_what_ours_is_held_to(name: str) -> None:
    sent = check(golden(f"{name}.req")).sent
    assert sum(sent.kinds[kind] for kind in sent.kinds if kind[0].isupper()) == 1
    assert sent.senders == {(b"n1", b"127.0.0.1:17301")}
    assert sender_address(golden(f"{name}.req"), 0) == b"127.0.0.1:17301"


def test_what_is_counted() -> None:
    data = golden("append_3.req") + golden("append_heartbeat.req") + golden("timeout_now.req")
    assert check(data).sent.kinds == {
        "AppendEntries": 2,
        "TimeoutNow": 1,
        "entries": 3,
        "configurations": 1,
        "heartbeats": 1,
    }


@pytest.mark.parametrize("name", ["append_3", "install_snapshot_200", "request_vote"])
def test_a_cut_at_any_byte_is_no_violation(name: str) -> None:
    request, response = golden(f"{name}.req"), golden(f"{name}.resp")
    for size in range(1, len(request)):
        sent = check(request + request[:size]).sent
        assert sum(sent.kinds[kind] for kind in sent.kinds if kind[0].isupper()) == 1
    for size in range(len(response)):
        read_responses([request[0]], response[:size])


VIOLATIONS = {
    "RPC byte": ("timeout_now", b"\x03\x83", b"\x05\x83"),
    "RPC byte as uint8": ("timeout_now", b"\x03\x83", b"\xcc\x03\x83"),
    "a missing field": ("timeout_now", b"\x83\xa4Addr\xaf127.0.0.1:17301", b"\x82"),
    "fields out of order": (
        "timeout_now",
        b"\xa2ID\xa2n1\xafProtocolVersion\x03",
        b"\xafProtocolVersion\x03\xa2ID\xa2n1",
    ),
    "map16": ("timeout_now", b"\x83\xa4Addr", b"\xde\x00\x03\xa4Addr"),
    "str8": ("timeout_now", b"\xaf127", b"\xd9\x0f127"),
    "bin8": ("timeout_now", b"\xaf127", b"\xc4\x0f127"),
    "raw16 for a short string": ("timeout_now", b"\xaf127", b"\xda\x00\x0f127"),
    "protocol 2": ("timeout_now", b"Version\x03", b"Version\x02"),
    "a negative version": ("timeout_now", b"Version\x03", b"Version\xff"),
    "no id": ("timeout_now", b"\xa2ID\xa2n1", b"\xa2ID\xc0"),
    "a key of another type": ("timeout_now", b"\xa2ID", b"\xc4\x02ID"),
    "a wide integer": ("append_1_noop", b"Term\x07\xa4Type", b"Term\xcc\x07\xa4Type"),
    "a wider integer": ("append_1_noop", b"\xcd\x04\xb0", b"\xce\x00\x00\x04\xb0"),
    "a signed integer": ("append_1_noop", b"\xcd\x04\xb0", b"\xd1\x04\xb0"),
    "a negative integer": ("append_1_noop", b"\xcd\x04\xb0", b"\xff"),
    "a float": ("append_1_noop", b"\xcd\x04\xb0", b"\xca\x00\x00\x00\x00"),
    "a nil integer": ("append_1_noop", b"\xcd\x04\xb0", b"\xc0"),
    "term 0 with an entry": (
        "append_1_noop",
        b"Version\x03\xa4Term\x07",
        b"Version\x03\xa4Term\x00",
    ),
    "a time in bin8": ("append_1_noop", b"AppendedAt\xaf", b"AppendedAt\xc4\x0f"),
    "a time of an odd size": ("append_1_noop", b"AppendedAt\xaf\x01", b"AppendedAt\xae"),
    "a time of version 3": ("append_1_noop", b"AppendedAt\xaf\x01", b"AppendedAt\xaf\x03"),
    "a time with too many ns": ("append_1_noop", b"\x07\x5b\xcd\x15", b"\x77\x5b\xcd\x15"),
    "a time with a wild offset": ("append_1_noop", b"\xff\xff\xa4Data", b"\x7f\xff\xa4Data"),
    "a nil entry": ("append_heartbeat", b"Entries\xc0", b"Entries\x91\xc0"),
    "entries as a map": ("append_heartbeat", b"Entries\xc0", b"Entries\x80"),
    "a heartbeat with an array": ("append_heartbeat", b"Entries\xc0", b"Entries\x90"),
    "a commit that is not clamped": ("append_1_noop", b"\xcd\x04\xb0", b"\xcd\x05\xb0"),
    "an empty frame that commits on": (
        "append_empty_commit",
        b"PrevLogEntry\xcd\x04\xd3",
        b"PrevLogEntry\xcd\x04\xd2",
    ),
    "an entry that does not follow": (
        "append_1_noop",
        b"Entry\xcd\x04\xd2",
        b"Entry\xcd\x04\xd1",
    ),
    "an entry of a later term": ("append_1_noop", b"Term\x07\xa4Type", b"Term\x08\xa4Type"),
    "an entry of an earlier term": ("append_1_noop", b"Term\x07\xa4Type", b"Term\x05\xa4Type"),
    "another leader's address": ("append_1_noop", b"Leader\xaf127", b"Leader\xaf128"),
    "a deprecated type": ("append_1_noop", b"Type\x01", b"Type\x02"),
    "a type over 255": ("append_1_noop", b"Type\x01", b"Type\xcd\x01\x00"),
    "a garbage configuration": ("append_1_noop", b"Type\x01", b"Type\x05"),
    "an unknown suffrage": ("append_3", b"Suffrage\x01", b"Suffrage\x03"),
    "a server twice": ("append_3", b"ID\xa2n2", b"ID\xa2n1"),
    "a server without an id": ("append_3", b"ID\xa2n2\xa8", b"ID\xa0\xa8"),
    "a size as unsigned": ("install_snapshot_200", b"Size\xd1\x00\xc8", b"Size\xcc\xc8"),
    "a wide size": ("install_snapshot_200", b"Size\xd1\x00\xc8", b"Size\xd2\x00\x00\x00\xc8"),
    "a snapshot without a configuration": (
        "install_snapshot_200",
        b"ConfigurationIndex\x03",
        b"ConfigurationIndex\x00",
    ),
    "a snapshot of version 0": ("install_snapshot_200", b"tVersion\x01", b"tVersion\x00"),
    "fewer bytes than the size": ("install_snapshot_200", b"Size\xd1\x00\xc8", b"Size\xd1\x00\xc7"),
    "a vote for an old term": ("request_vote", b"Term\x07", b"Term\x06"),
    "a vote for another": ("request_vote", b"date\xaf127", b"date\xaf128"),
    "a number for a flag": ("request_vote", b"Transfer\xc2", b"Transfer\x00"),
    "a pre-vote for an old term": ("request_prevote", b"\xa4Term\x08", b"\xa4Term\x01"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_planted_violation_is_caught(case: str) -> None:
    """Also behind sound messages, where the offset is told."""
    name, sound, planted = VIOLATIONS[case]
    request = golden(f"{name}.req")
    assert request.count(sound) >= 1
    # Sound messages behind it: what reads short must not pass for a cut.
    broken = request.replace(sound, planted, 1) + request * 3
    for before in (b"", request):
        with pytest.raises(ViolationError, match="message at"):
            check(before + broken)


def test_another_sender_on_the_same_connection_is_caught() -> None:
    request = golden("timeout_now.req")
    with pytest.raises(ViolationError, match="two senders"):
        check(request + request.replace(b"\xa2n1", b"\xa2n2"))


ANSWERS = {
    "nil for the error": ("append_3", b"\xa0\x87", b"\xc0\x87"),
    "str8 for the error": ("append_3", b"\xa0\x87", b"\xd9\x00\x87"),
    "nil without an error": ("append_3", b"\xa0\x87", b"\xa0\xc0\x87"),
    "a missing field": ("append_3", b"\x87\xa4Addr\xaf127.0.0.1:17302", b"\x86"),
    "an answer to another kind": ("append_3", b"\xa7LastLog", b"\xa7Granted"),
    "a number for a flag": ("append_3", b"Success\xc3", b"Success\x01"),
    "a wide term": ("append_3", b"Term\x07", b"Term\xcd\x00\x07"),
    "another protocol": ("append_3", b"Version\x03", b"Version\x04"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_planted_answer_is_caught(case: str) -> None:
    name, sound, planted = ANSWERS[case]
    answer = golden(f"{name}.resp")
    assert sound in answer
    with pytest.raises(ViolationError, match="answer to AppendEntries at"):
        read_responses([0, 0, 0], answer.replace(sound, planted, 1) + answer)


def test_an_answer_that_nobody_asked_for_is_caught() -> None:
    answer = golden("append_3.resp")
    with pytest.raises(ViolationError, match="nobody asked"):
        read_responses([0], answer + answer)


def test_handshakes() -> None:
    asked, answered = golden("http_upgrade.req"), golden("http_upgrade.resp")
    assert head_size(asked) == len(asked)
    assert head_size(asked[:-1]) is None
    check_upgrade(asked)
    check_switching(answered)
    for broken in (asked.replace(b"Upgrade: raft", b"Upgrade: Raft"), asked.replace(b"Up", b"Op")):
        with pytest.raises(ViolationError):
            check_upgrade(broken)
    for broken in (answered.replace(b"101", b"200"), answered.replace(b": raft", b": raft, h2c")):
        with pytest.raises(ViolationError):
            check_switching(broken)


def test_configurations() -> None:
    sound = golden("configuration")
    assert [(server[0], server[2]) for server in check_configuration(sound)] == [
        (b"n1", 0),
        (b"n2", 0),
        (b"n3", 1),
    ]
    for broken in (None, sound[:-1], sound + b"\xc0", sound.replace(b"rage\x00", b"rage\x01")):
        with pytest.raises(ViolationError):
            check_configuration(broken)
