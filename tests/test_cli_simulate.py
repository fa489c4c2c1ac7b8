"""`rafthttp simulate`: what it prints, and its exit code."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rafthttp import cli
from rafthttp.testing.mutants import MUTANTS, planted


def test_two_processes_do_the_seeds(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--seeds", "30", "--first", "5", "--jobs", "2"]) == 0
    text = capfd.readouterr().out
    assert re.fullmatch(r"30 of 30 seeds, \d+ seeds/s, \d{5} events, 0 failures\n", text)


def test_time_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--minutes", "0.001", "--jobs", "1"]) == 0
    assert re.match(r"\d+ seeds, .* 0 failures\n", capsys.readouterr().out)


def test_a_failure_is_a_seed_a_schedule_and_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1."""
    mutant = next(m for m in MUTANTS if m.name == "two_votes")
    with planted(mutant):
        assert cli.run(["simulate", "--seeds", "1", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    assert "seed 0: InvariantError: acknowledged: " in printed.out
    assert "as found: simulate_core(0)" in printed.out
    assert re.search(r"\n    def test_seed_\d+\(\) -> None: simulate_core\(.*\)\n", printed.out)
    assert printed.err.endswith("rafthttp: 1 of 1 seeds failed\n")


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--seeds", "0"]) == 2
    assert cli.run(["simulate", "--jobs", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_on_a_pipe_there_are_plain_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rafthttp", "simulate", "--seeds", "3"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("3 of 3 seeds")
    assert "\x1b" not in done.stdout + done.stderr
