"""Applies a history's commands in a process with another `PYTHONHASHSEED`, and compares answers.

For a set of strings has another order there; inside one process all replicas share it.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import cast

from rafthttp.raft.fsm import FSM
from rafthttp.raft.types import Log, LogType
from rafthttp.testing.replicas import Seen, StateMachineError

_SECONDS_MAX = 60


def check_other_salt(seen: Seen) -> None:
    """Raise where another salt gives another answer. Left out where it cannot be made there."""
    make = seen.make
    name = getattr(make, "__qualname__", "<")
    module = inspect.getmodule(make)
    path = getattr(module, "__file__", None)
    if "<" in name or path is None:
        return
    commands = [(index, data.hex()) for index, data in sorted(seen.commands.items())]
    asked = json.dumps({"path": path, "name": name, "commands": commands})
    salt = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    own = apply_all(make, commands)
    # The module may stand where only this process looks.
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", "from rafthttp.testing.salted import main; main()"],
        env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": paths},
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS_MAX,
    )
    if done.returncode:
        raise StateMachineError(
            f"{seen.name} cannot be made in another process: {done.stderr.strip()[-300:]}"
        )
    for (_, data), one, other in zip(commands, own, json.loads(done.stdout), strict=True):
        if one != other:
            raise StateMachineError(
                f"{seen.name} is not deterministic: to {bytes.fromhex(data)!r} it answers {one}"
                f" here, and {other} in a process with another PYTHONHASHSEED; does an answer"
                " follow the order of a set, or a hash?"
            )


def apply_all(make: object, commands: Sequence[tuple[int, str]]) -> list[str]:
    """Their answers, as text."""
    assert callable(make)
    fsm = cast("FSM", make())
    logs = [Log(index, 1, LogType.COMMAND, bytes.fromhex(data)) for index, data in commands]
    return [_text(answer) for log in logs for answer in fsm.apply_batch([log])]


def _text(answer: object) -> str:
    if isinstance(answer, set | frozenset):  # equal, whatever its order
        answer = sorted(map(repr, cast("set[object]", answer)))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(answer))


def main() -> None:
    """The other process: a history on stdin, its answers on stdout."""
    asked = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("state_machine_module", asked["path"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    made: object = module
    for part in asked["name"].split("."):
        made = getattr(made, part)
    answers = apply_all(made, asked["commands"])
    sys.stdout.write(json.dumps(answers))
