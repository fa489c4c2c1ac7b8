"""Says once, and loudly, that the tests with real hashicorp/raft members did not run."""

import os

import pytest

from rafthttp.testing.interop_member import missing_go

pytestmark = pytest.mark.interop


def test_the_go_program_is_built() -> None:
    reason = missing_go()
    if reason is not None:
        text = f"NOT TESTED AGAINST REAL hashicorp/raft: {reason}"
        if os.environ.get("RAFTHTTP_REQUIRE_INTEROP") == "1":
            pytest.fail(text)
        pytest.skip(text)
