"""All targets for so many minutes, some at a time: `make fuzz MINUTES=30 FUZZERS=2`.

Each runs in a process of its own (`fuzz.one`). The corpus stays in `build/fuzz`, so that the next
run begins where this one ended; an input that breaks a promise becomes a file in
`tests/fuzz/testdata`, which the suite tries again. Exit code 1 where there is a new one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from rafthttp.testing.fuzzing import TARGETS

OUTPUT: Final = Path("build/fuzz")
WEIGHTS: Final = {"rpc-requests": 2, "endpoint": 2, "commands": 2}
"""Shares of the time; 1 where nothing is said. These have the most to reach."""

_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


class Run:
    """What became of each target."""

    def __init__(self, names: list[str], seconds_of_one: float, seed: int) -> None:
        self._waiting: SimpleQueue[str] = SimpleQueue()
        for name in sorted(names, key=lambda name: -WEIGHTS.get(name, 1)):
            self._waiting.put(name)
        self._seconds_of_one = seconds_of_one
        self._seed = seed
        self.results: list[dict[str, Any]] = []

    def lane(self) -> None:
        """One target after the other."""
        while True:
            try:
                name = self._waiting.get_nowait()
            except Empty:
                return
            self.results.append(self._one(name))
            print(_line(self.results[-1]), flush=True)

    def _one(self, name: str) -> dict[str, Any]:
        seconds = round(self._seconds_of_one * WEIGHTS.get(name, 1))
        arguments = [sys.executable, "-m", "fuzz.one", name]
        arguments += ["--seconds", str(seconds), "--seed", str(self._seed)]
        log = OUTPUT / f"{name}.log"
        begin = time.monotonic()
        with log.open("wb") as file:
            code = subprocess.call(arguments, stdout=file, stderr=file)
        text = log.read_text("utf-8", "replace")
        result: dict[str, Any] = {"target": name, "code": code, "executions": 0, "broken": {}}
        for line in text.splitlines():
            if line.startswith("DONE "):
                result |= json.loads(line.removeprefix("DONE "))
        found = _COVERAGE.findall(text)
        result["edges"], result["features"], result["corpus"] = found[-1] if found else (0, 0, 0)
        result["seconds"] = round(time.monotonic() - begin)
        return result


def _line(result: dict[str, Any]) -> str:
    cells = [
        *(result["target"], str(result["seconds"]), f"{result['executions']:,}"),
        *(str(result["edges"]), str(result["corpus"]), str(result.get("slowest", "?"))),
        ", ".join(result["broken"].values()) or ("none" if result["code"] == 0 else "see its log"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run, and print one line of a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=5.0, help="how long it takes in all")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names: list[str] = options.targets
    OUTPUT.mkdir(parents=True, exist_ok=True)
    weight = sum(WEIGHTS.get(name, 1) for name in names)
    # The largest share is one process's: more of them than that do not make it shorter.
    jobs = max(1, min(options.jobs, len(names)))
    run = Run(names, options.minutes * 60 * jobs / weight, options.seed)
    print("| target | seconds | executions | edges | corpus | slowest, s | broken |")
    print("|---|---|---|---|---|---|---|", flush=True)
    lanes = [threading.Thread(target=run.lane) for _ in range(jobs)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    total = sum(result["executions"] for result in run.results)
    print(f"{total:,} executions")
    return int(any(result["broken"] or result["code"] for result in run.results))


if __name__ == "__main__":
    sys.exit(main())
