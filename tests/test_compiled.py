"""What `make compiled` compiles keeps off what mypyc is known to do otherwise (ADR 13).

Type checkers and the other tests do not see these; on the compiled package they are crashes of
paths that are hardly ever taken.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rafthttp

ROOT = Path(__file__).parents[1]
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
    "wheel"
]["hooks"]["mypyc"]
COMPILED = sorted(
    path
    for pattern in HOOK["include"]
    for path in ROOT.glob(pattern.removeprefix("/"))
    if path.name != "__init__.py"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def reused_names(tree: ast.AST) -> list[str]:
    """`except A as e: … except B as e:`: the second raises TypeError, for `e` is an A."""
    found: list[str] = []
    for function in functions(tree):
        types: dict[str, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
                types.setdefault(node.name, set()).add(ast.unparse(node.type))
        found += [f"{function.name}: {name}" for name, of in types.items() if len(of) > 1]
    return found


def yields_in_handlers(tree: ast.AST) -> list[str]:
    """`except …: yield`: a generator that is closed there raises what was caught."""
    return [
        function.name
        for function in functions(tree)
        for handler in ast.walk(function)
        if isinstance(handler, ast.ExceptHandler)
        and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(handler))
    ]


def test_nothing_public_is_compiled() -> None:
    """Extension classes cannot be subclassed, copied or weakly referenced as others can."""
    compiled = {".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in COMPILED}
    rooms = {getattr(getattr(rafthttp, name), "__module__", "") for name in rafthttp.__all__}
    assert rooms & compiled == set()


def test_patterns_match_files() -> None:
    assert all(list(ROOT.glob(pattern.removeprefix("/"))) for pattern in HOOK["include"])
    assert any(path.name == "consensus.py" for path in COMPILED)


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_compiled_module_reads_the_same(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert reused_names(tree) == []
    assert yields_in_handlers(tree) == []


def test_what_is_looked_for_is_found() -> None:
    tree = ast.parse(
        "def f():\n try: pass\n except OSError as e: yield 1\n except ValueError as e: pass\n"
    )
    assert reused_names(tree) == ["f: e"]
    assert yields_in_handlers(tree) == ["f"]
