"""The dialogues in `testdata`: commands to a few cores and everything they answer.

`pytest tests/raft/core --rewrite` writes the answers anew; read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rafthttp.testing.dialogue import run_dialogue

TESTDATA = Path(__file__).parent / "testdata"


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.txt")), ids=lambda path: path.stem)
def test_dialogue(path: Path, request: pytest.FixtureRequest) -> None:
    told = path.read_text()
    answered = run_dialogue(told)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(answered)
    assert run_dialogue(path.read_text()) == answered, "one text, one history"
    if not request.config.getoption("--rewrite", default=False):
        assert answered == told
