"""Fuzz one target with atheris, in this process: `python -m fuzz.one TARGET --seconds 60`.

A broken promise does not end the run: the first input of each kind is kept as a test case, and the
search goes on. The line `DONE {…}` at the end is for `fuzz.run`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

INSTRUMENTED: Final = ["rafthttp", "h11", "websockets", "uvicorn"]
CASES: Final = Path("tests/fuzz/testdata")
CPU_SECONDS_MAX: Final = 1.0
"""No input of a few kilobytes may take more; of the processor's time, as others use it too."""
ROOM_BYTES: Final = 768 << 20
"""What a process may take beyond its size at the start: an allocation that an input merely claims
fails, and is a crash."""


class Watch:
    """Runs a check, keeps what breaks it, and counts."""

    def __init__(self, name: str, check: Any) -> None:
        self._name = name
        self._check = check
        self.executions = 0
        self.kinds: dict[str, str] = {}
        self.slowest = 0.0

    def __call__(self, data: bytes) -> None:
        self.executions += 1
        begin = time.process_time()
        try:
            self._check(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            self._keep(data, _kind(error))
        seconds = time.process_time() - begin
        self.slowest = max(self.slowest, seconds)
        if seconds > CPU_SECONDS_MAX:
            self._keep(data, "too slow")

    def _keep(self, data: bytes, kind: str) -> None:
        if kind in self.kinds:
            return
        directory = CASES / self._name
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        self.kinds[kind] = str(path)
        print(f"BROKEN {kind}: {path}", flush=True)


def _kind(error: BaseException) -> str:
    """What broke: the exception, and the last line of ours on the way to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "rafthttp" in frame.filename] or frames
    text = str(error) if isinstance(error, AssertionError) else ""
    return (
        f"{type(error).__name__} {ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno} "
        + (text.partition(":")[0][:80])
    )


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """Fuzz for the time given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module("rafthttp.testing.fuzzing").TARGETS
    target = targets[options.target]
    corpus: Path = options.corpus / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for octets in target.seeds():
        (corpus / f"seed-{hashlib.sha256(octets).hexdigest()[:12]}").write_bytes(octets)
    watch = Watch(target.name, target.check)
    ends = time.monotonic() + options.seconds
    told = False

    def once(data: bytes) -> None:
        nonlocal told
        watch(data)
        if not told and time.monotonic() > ends:
            told = True
            result = {
                "target": target.name,
                "executions": watch.executions,
                "slowest": round(watch.slowest, 3),
                "broken": watch.kinds,
            }
            print(f"DONE {json.dumps(result)}", flush=True)

    _bound_memory()
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={options.seconds + 2}",
        "-max_len=4096",
        "-timeout=30",
        "-rss_limit_mb=2048",
        f"-seed={options.seed}",
        f"-artifact_prefix={corpus.parent.parent}/{target.name}-",
    ]
    atheris.Setup(arguments, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
