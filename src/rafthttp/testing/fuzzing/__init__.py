"""Every surface that strangers reach, as one function of bytes each.

`TARGETS` is for a coverage-guided fuzzer (`make fuzz`), for random tests, and for the inputs that
once broke something, which are test cases (`tests/fuzz`). Knows all rooms; starts nothing.
"""

from __future__ import annotations

from typing import Final

from rafthttp.testing.fuzzing.commands import COMMANDS, IDEMPOTENCY_KEY
from rafthttp.testing.fuzzing.disk import CONFIGURATIONS, LOG_RECORDS, LOG_ROWS, STABLE_VALUES
from rafthttp.testing.fuzzing.endpoint import ENDPOINT
from rafthttp.testing.fuzzing.frames import WEBSOCKET_FRAMES
from rafthttp.testing.fuzzing.rpc import RPC_ANSWERS, RPC_REQUESTS
from rafthttp.testing.fuzzing.snapshots import SNAPSHOT_META, SNAPSHOTS
from rafthttp.testing.fuzzing.target import Target

__all__ = ["TARGETS", "Target"]

TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        RPC_REQUESTS,
        RPC_ANSWERS,
        ENDPOINT,
        WEBSOCKET_FRAMES,
        SNAPSHOTS,
        SNAPSHOT_META,
        LOG_ROWS,
        LOG_RECORDS,
        STABLE_VALUES,
        CONFIGURATIONS,
        COMMANDS,
        IDEMPOTENCY_KEY,
    )
}
"""By name."""
