"""Every scenario of docs/scenarios.md is carried by a test, or named here with the reason why not.

A test carries one by its number (S28) in its docstring, a dialogue in a comment.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What does not apply, and why. A scenario that a test carries must not stand here.
DO_NOT_APPLY: dict[int, str] = {}


def scenarios() -> dict[int, str]:
    """By number."""
    text = (ROOT / "docs" / "scenarios.md").read_text("utf-8")
    return {int(m[1]): m[2] for m in re.finditer(r"^(\d+)\. (.*)$", text, re.MULTILINE)}


def numbers(text: str) -> set[int]:
    """The scenarios it names."""
    return {int(number) for number in re.findall(r"\bS(\d+)\b", text)}


def carried() -> dict[int, set[str]]:
    """By number, the files whose tests carry it."""
    found: dict[int, set[str]] = {}
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for number in numbers(ast.get_docstring(node) or ""):
                    found.setdefault(number, set()).add(path.name)
    for path in (tests / "raft" / "core" / "testdata").glob("*.txt"):
        for line in path.read_text("utf-8").splitlines():
            for number in numbers(line.partition("#")[2]):
                found.setdefault(number, set()).add(path.name)
    return found


def test_all_scenarios_are_read() -> None:
    assert sorted(scenarios()) == list(range(1, 77))


def test_every_scenario_is_carried_by_a_test() -> None:
    missing = scenarios().keys() - carried().keys() - DO_NOT_APPLY.keys()
    assert not missing, {number: scenarios()[number] for number in sorted(missing)}


def test_no_test_carries_a_scenario_that_is_not_there_or_does_not_apply() -> None:
    unknown = carried().keys() - scenarios().keys()
    assert not unknown, {number: carried()[number] for number in unknown}
    assert not DO_NOT_APPLY.keys() & carried().keys()
    assert all(DO_NOT_APPLY.values())


def test_those_that_random_histories_miss_are_scripted() -> None:
    """S1, S28, S50, S51 (docs/scenarios.md)."""
    by = carried()
    for number in (1, 28, 50, 51):
        assert any(name.endswith(".txt") for name in by[number]), number
