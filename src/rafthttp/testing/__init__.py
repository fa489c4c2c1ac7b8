"""Public test tools.

`simulate` tries out an application's own state machine (docs/how-to/test-your-state-machine.md),
`sim` the consensus core, `driversim` whole servers: the real driver, transport and HTTP.
`invariants`, `linearizability` and `shrink` are what they judge and report by.
"""

from rafthttp.testing.simulating import simulate

__all__ = ["simulate"]
