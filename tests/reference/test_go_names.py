"""`docs/reference/go-names.md`: every exported name of the Go packages has a row, and every name
in a row is one that exists."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import textwrap
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

TESTDATA = Path(__file__).parent / "testdata"
NAMES = TESTDATA / "go-names.txt"
TABLE = Path(__file__).parents[2] / "docs" / "reference" / "go-names.md"


class GoName(NamedTuple):
    package: str
    file: str
    name: str


class Row(NamedTuple):
    go: GoName
    here: list[str]
    note: str


def listed() -> list[GoName]:
    lines = [line for line in NAMES.read_text().splitlines() if not line.startswith("#")]
    return [GoName(package, file, name) for package, file, _, name in map(str.split, lines)]


def rows() -> list[Row]:
    found: list[Row] = []
    package = file = ""
    for line in TABLE.read_text().splitlines():
        if heading := re.fullmatch(r"## (\w+): (\w+\.go)", line):
            package, file = heading.groups()
        elif line.startswith("| `"):
            go, here, note = (cell.strip() for cell in line.strip("|").split("|"))
            names = re.findall(r"`([^`]+)`", here)
            found.append(Row(GoName(package, file, go.strip("`")), names, note))
    return found


def attributes(value: object) -> set[str]:
    """What instances have beyond the class: annotated, or set when they are made."""
    if not inspect.isclass(value):
        return set()
    found = {name for base in value.__mro__ for name in inspect.get_annotations(base)}
    for base in value.__mro__[:-1]:
        made = base.__dict__.get("__init__")
        if not inspect.isfunction(made):
            continue
        try:
            source = inspect.getsource(made)
        except OSError:
            continue  # a dataclass's is made at run time; its fields are annotated
        for node in ast.walk(ast.parse(textwrap.dedent(source))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def exists(name: str) -> bool:
    parts = name.split(".") if name.startswith("rafthttp.") else ["rafthttp", *name.split(".")]
    value: object = None
    at = 0
    for at in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:at]))
            break
        except ModuleNotFoundError:
            continue
    for part in parts[at:]:
        if not hasattr(value, part):
            return part in attributes(value) and part == parts[-1]
        value = getattr(value, part)
    return True


def test_every_exported_name_has_one_row() -> None:
    mapped = [row.go for row in rows()]
    assert sorted(mapped) == sorted(listed())
    assert len(mapped) > 250


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.go.package}.{row.go.name}")
def test_a_row_names_what_exists_or_says_why_not(row: Row) -> None:
    missing = [name for name in row.here if not exists(name)]
    assert not missing
    if not row.here:
        assert row.note, "a name that is not here needs its reason"


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert not exists("Raft.nonsense")
    assert not exists("rafthttp.raft.nonsense")
    assert not exists("Config.local_id.nonsense")
    assert exists("Observer.dropped")


def exported() -> str:
    """The list made anew from the modules' sources."""
    text = NAMES.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    made = list(head)
    for line in head:
        if not (module := re.fullmatch(r"# (\w+) = (\S+) (\S+)", line)):
            continue
        package, path, version = module.groups()
        answer = subprocess.run(
            ["go", "mod", "download", "-json", f"{path}@{version}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        source = Path(json.loads(answer.stdout)["Dir"])
        files = list(dict.fromkeys(n.file for n in listed() if n.package == package))
        names = subprocess.run(
            # `--`: what follows is not part of the program.
            ["go", "run", str(TESTDATA / "exported.go"), "--", *(str(source / f) for f in files)],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        found = names.stdout.splitlines()
        made += [f"{package} {name}" for f in files for name in found if name.startswith(f"{f} ")]
        if package != "raft":
            # Of these two, every file counts.
            own = {p.name for p in source.glob("*.go") if not p.name.endswith("_test.go")}
            assert own - set(files) <= {"doc.go"}
    return "\n".join(made) + "\n"


@pytest.mark.interop
def test_the_list_is_what_the_modules_export(request: pytest.FixtureRequest) -> None:
    if shutil.which("go") is None:
        text = "NOT COMPARED WITH WHAT THE GO MODULES EXPORT: Go is not installed"
        if os.environ.get("RAFTHTTP_REQUIRE_INTEROP") == "1":
            pytest.fail(text)
        pytest.skip(text)
    made = exported()
    if request.config.getoption("--rewrite-go-names", default=False):
        NAMES.write_text(made)
    assert made == NAMES.read_text()
