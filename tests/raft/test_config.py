"""`Config.validate` names the wrong field and its bound, for every field and every wrong type."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from rafthttp.raft.config import _BOUNDS, Config  # pyright: ignore[reportPrivateUsage] # all of it
from rafthttp.raft.errors import ConfigError
from rafthttp.raft.types import ServerID

GOOD = Config(ServerID("n1"))
WRONG: dict[str, tuple[object, ...]] = {
    "ServerID": (None, "", b"n1", 7, True, math.nan, ["n1"]),
    "bool": (None, "yes", 0, 1, 1.0, math.nan, b""),
    "int": (None, "8", 8.0, math.nan, math.inf, True, b"8", [8], -1, 1 << 50, 10**400),
    "float": (None, "1", math.nan, math.inf, -math.inf, True, b"1", [1], -1.0, 0.0, 1e9, 10**400),
}


def refusal(**changed: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        replace(GOOD, **changed).validate()
    return str(caught.value)


@pytest.mark.parametrize("field", fields(Config), ids=lambda field: field.name)
def test_every_wrong_value_of_every_field_is_named(field: Any) -> None:
    for value in WRONG[field.type]:
        text = refusal(**{field.name: value})
        assert text.startswith(f"{field.name} is {value!r}; it must be "), text
        if field.name in _BOUNDS:
            least, most = _BOUNDS[field.name]
            assert text.endswith(f"from {least:g} to {most:g}")


@pytest.mark.parametrize("name", _BOUNDS)
def test_the_bounds_themselves_are_named(name: str) -> None:
    least, most = _BOUNDS[name]
    whole = isinstance(getattr(GOOD, name), int)
    step = 1 if whole else 0.001
    for value in (least - step, most + step):
        given: float = int(value) if whole else value
        assert f"from {least:g} to {most:g}" in refusal(**{name: given})


def test_a_whole_number_will_do_where_a_number_is_asked() -> None:
    replace(GOOD, election_timeout=2, heartbeat_timeout=1, snapshot_interval=60).validate()
    GOOD.validate()


def test_fields_that_must_agree_are_both_named() -> None:
    text = refusal(election_timeout=0.9)
    assert text.startswith("election_timeout is 0.9; it must be at least heartbeat_timeout (1.0)")
    text = refusal(leader_lease_timeout=1.5)
    assert text.startswith("leader_lease_timeout is 1.5; it must be at most heartbeat_timeout")
    text = refusal(lease_reads=True)
    assert "lease_reads and early_campaign" in text
