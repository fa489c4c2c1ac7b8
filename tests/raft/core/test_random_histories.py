"""Random histories of three to five cores under every fault, each step checked.

S3, S13, S17, S31, S35, S36. A failure prints its seed.
"""

from __future__ import annotations

from typing import Protocol

import pytest

from rafthttp.testing.corenet import CoreNet

HISTORIES = 240


class HistoryLike(Protocol):
    net: CoreNet


class RunHistory(Protocol):
    def __call__(self, seed: int, /) -> HistoryLike: ...


@pytest.mark.parametrize("batch", range(8))
def test_histories_keep_every_property(batch: int, history: RunHistory) -> None:
    """Election safety, log matching, leader completeness, state machine safety, fresh reads."""
    committed = 0
    for seed in range(batch, HISTORIES, 8):
        try:
            ended = history(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        committed += ended.net.checks.committed_index
    # A history that commits nothing checks nothing.
    assert committed > 10 * HISTORIES // 8
