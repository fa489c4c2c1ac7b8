"""The package's public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rafthttp


@pytest.mark.parametrize("name", rafthttp.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(rafthttp, name) is not None
    assert name in dir(rafthttp)


def test_type_checkers_and_the_running_program_see_the_same_names() -> None:
    tree = ast.parse(Path(rafthttp.__file__).read_text())
    imported: set[tuple[str, str]] = {
        (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rafthttp.")
        for alias in node.names
    }
    loaded = {(room, name) for room, names in rafthttp._ROOMS.items() for name in names}
    assert imported == loaded
    assert sorted(name for _, name in loaded) == sorted(rafthttp.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rafthttp.nonsense  # type: ignore[attr-defined] # what is tested


def test_the_consensus_server_loads_no_http() -> None:
    program = (
        "import sys, rafthttp; rafthttp.Raft;"
        "print([m for m in ('starlette', 'httpx', 'h11', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
