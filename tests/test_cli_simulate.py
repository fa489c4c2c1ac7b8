"""`rafthttp simulate`: what it prints, and its exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from rafthttp import cli
from rafthttp.raft.core.consensus import Consensus
from rafthttp.testing.driversim.run import DriverCluster
from rafthttp.testing.mutants import MUTANTS, Mutant, Patch, planted
from rafthttp.testing.sim.process import Process


def test_two_processes_do_the_seeds(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--seeds", "30", "--first", "5", "--jobs", "2"]) == 0
    text = capfd.readouterr().out
    assert re.fullmatch(r"30 of 30 seeds, \d+ seeds/s, \d{5} events, 0 failures\n", text)


def test_time_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--minutes", "0.001", "--jobs", "1"]) == 0
    assert re.match(r"\d+ seeds, .* 0 failures\n", capsys.readouterr().out)


@pytest.mark.interpreted
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


@pytest.mark.parametrize(("owner", "where"), [(Consensus, "on_request_vote"), (Process, "start")])
def test_any_error_is_a_seed_and_costs_no_other(
    owner: type, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a run, or before it has begun."""

    def plant(patch: Patch) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError(f"broken {where}")

        patch.set(owner, where, fail)

    with planted(Mutant("raises", plant, None, simulated=True)):
        assert cli.run(["simulate", "--first", "7", "--seeds", "2", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    for seed in (7, 8):
        assert f"seed {seed}: RuntimeError: broken {where}\n" in printed.out
        assert f"as found: simulate_core({seed})\n" in printed.out
    assert len(re.findall(r"\n    def test_seed_\d+\(\) -> None: simulate_core", printed.out)) == 2
    assert printed.err.endswith("rafthttp: 2 of 2 seeds failed\n")
    assert "Traceback" not in printed.err


def test_whole_servers_likewise(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--driver", "--seeds", "4", "--jobs", "2"]) == 0
    text = capfd.readouterr().out
    assert re.fullmatch(r"4 of 4 seeds, \d+ seeds/s, \d{5} events, 0 failures\n", text)


def test_a_failure_of_whole_servers_is_told_likewise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(DriverCluster, "_check_kept", fail)
    assert cli.run(["simulate", "--driver", "--seeds", "1", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    assert "seed 0: RuntimeError: broken\n  as found: simulate_driver(0)\n" in printed.out
    assert re.search(
        r"\n    def test_seed_\d+\(\) -> None: simulate_driver\(.*Faults\(.*, kind='.*'\)\n",
        printed.out,
    )
    assert printed.err.endswith("rafthttp: 1 of 1 seeds failed\n")


def test_a_failure_that_does_not_repeat_is_told_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Consensus, *_: Any) -> None:
        monkeypatch.undo()
        raise RuntimeError("once")

    monkeypatch.setattr(Consensus, "on_request_vote", fail)
    assert cli.run(["simulate", "--seeds", "1", "--jobs", "1"]) == 1
    told = capsys.readouterr().out
    assert "seed 0: RuntimeError: once\n" in told
    assert "it did not fail again" in told


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
