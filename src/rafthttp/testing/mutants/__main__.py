"""`python -m rafthttp.testing.mutants DIALOGUES`: plants every mutant, prints the score.

Exit code 0 where each was caught by all that must catch it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rafthttp.testing.mutants import MUTANTS
from rafthttp.testing.mutants.hunt import (
    SEEDS_MAX,
    caught_by_dialogue,
    caught_by_replicas,
    caught_by_simulator,
)


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(description="plant bugs in the core; each must be caught")
    parser.add_argument("dialogues", type=Path, help="the directory with the scripted schedules")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="tried for each mutant")
    options = parser.parse_args()
    caught = 0
    for mutant in MUTANTS:
        by: list[str] = []
        needed = (mutant.dialogue is not None) + mutant.simulated + mutant.replicated
        if mutant.dialogue is not None:
            text = (options.dialogues / f"{mutant.dialogue}.txt").read_text()
            if caught_by_dialogue(mutant, text):
                by.append(f"dialogue {mutant.dialogue}")
        if mutant.simulated:
            found = caught_by_simulator(mutant, range(options.seeds))
            if found is not None:
                by.append(f"seed {found.seed}: {found.text[:60]}")
        if mutant.replicated:
            told = caught_by_replicas(mutant)
            if told is not None:
                by.append(f"replicas: {told[:70]}")
        caught += len(by) == needed
        verdict = "caught" if len(by) == needed else "ALIVE "
        sys.stdout.write(f"{verdict} {mutant.name:32} {'; '.join(by)}\n")
        sys.stdout.flush()
    score = 100 * caught // len(MUTANTS)
    sys.stdout.write(f"\nmutation score: {caught} of {len(MUTANTS)} = {score} %\n")
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
